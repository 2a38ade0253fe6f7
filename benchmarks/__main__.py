"""Measure tables: `python -m benchmarks [startup peers limit ...]`; all of them by default.

A table is printed and replaces its part of benchmarks/README.md, with the name of the machine. With `--device cuda`,
each dtype has a file of its own in benchmarks/, with the name of the GPU; only torch has to be installed, and missing
peers are left out.
"""

import argparse
import importlib
import platform
import re
import time
from pathlib import Path

import torch

from benchmarks import cases
from benchmarks.measure import Target, note

README = Path(__file__).with_name("README.md")
OF_PROCESSORS = ("layers",)  # tables of which that of each processor is kept
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_ONLY = ("startup", "allocator", "decoders", "scaling")
TABLES = (  # each one is the function `table` of the module of that name
    "startup",
    "peers",
    "layers",
    "limit",
    "growth",
    "allocator",
    "choice",
    "kernels",
    "networks",
    "compiled",
    "decoders",
    "video",
    "sequences",
    "scaling",
)


def main() -> None:
    """The command."""
    arguments = parse()
    torch.set_flush_denormal(True)
    device = arguments.device
    dtypes = ["float32"] if device == "cpu" else list(DTYPES)
    for dtype in [arguments.dtype] if arguments.dtype else dtypes:
        target = Target(device, DTYPES[dtype])
        for name in arguments.tables or [name for name in TABLES if device == "cpu" or name not in CPU_ONLY]:
            text = measured(name, target)
            if text is not None and arguments.case is None:
                keep(section_of(name, target), f"\n{text}\n", file_of(target))


def parse() -> argparse.Namespace:
    """The arguments; an error if they do not fit together. `--case` leaves only this case in `cases.CASES`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="table", help=f"one of {', '.join(TABLES)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    help_case = "of the table peers, only the shapes of this name, such as 'N = 16,384'; printed, not kept"
    parser.add_argument("--case", help=help_case)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: all three on a GPU, float32 on a CPU")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; the tables are {', '.join(TABLES)}")
    if arguments.device == "cpu" and arguments.dtype not in (None, "float32"):
        parser.error(f"--dtype on a CPU must be float32, got {arguments.dtype}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if arguments.case is not None:
        cases.CASES[:] = [case for case in cases.CASES if case.name == arguments.case]
        if not cases.CASES or arguments.tables != ["peers"]:
            parser.error(f"--case needs the table peers and the name of a case in cases.py, got {arguments.case!r}")
    return arguments


def measured(name: str, target: Target) -> str | None:
    """A table as Markdown with a line on the machine, printed too; None if a package that it needs is missing."""
    started = time.monotonic()
    try:
        text: str = importlib.import_module(f"benchmarks.{name}").table(target)
    except ModuleNotFoundError as error:
        note(f"{name} is left out: {error.name} is not installed")
        return None
    minutes = (time.monotonic() - started) / 60
    dtype = str(target.dtype).removeprefix("torch.")
    text += f"\n\n*{machine(target.device)}, {dtype}; measured in {minutes:.0f} minutes.*"
    print(f"\n## {name}\n\n{text}", flush=True)
    return text


def machine(device: str) -> str:
    """Processor or GPU, number of threads, and versions."""
    if device != "cpu":
        name = torch.cuda.get_device_name()
    else:
        name = f"{processor()} ({capability()}), {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def capability() -> str:
    """The widest vectors that torch uses on this processor, such as AVX2."""
    return torch.backends.cpu.get_cpu_capability()


def section_of(name: str, target: Target) -> str:
    """The name of a table's section in its file; one a processor where those of others are kept."""
    return f"{name}, {processor()}, {capability()}" if target.device == "cpu" and name in OF_PROCESSORS else name


def file_of(target: Target) -> Path:
    """The file with the tables of a device and dtype."""
    if target.device == "cpu":
        return README
    card = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower())
    return README.with_name(f"{card}-{str(target.dtype).removeprefix('torch.')}.md")


def keep(name: str, text: str, file: Path) -> None:
    """Put a table between its marks in a file. Missing marks are added at the end."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    whole = file.read_text() if file.exists() else f"# {file.stem}\n\nWhat is measured: README.md.\n"
    if begin not in whole:
        whole += f"\n## {name}\n\n{begin}{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    file.write_text(pattern.sub(lambda _: f"{begin}{text}\n{end}", whole))


if __name__ == "__main__":
    main()
