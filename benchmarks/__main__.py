"""Measure, print and keep the tables: `python -m benchmarks [startup peers limit ...]`; all of them by default.

What is measured replaces its part of benchmarks/README.md, with the machine that it was measured on. On another device
than the CPU (`--device cuda`, which needs torch only; peers that are not installed are left out) each dtype has a file
of its own in benchmarks/, with the name of the card.
"""

import argparse
import platform
import re
import sys
import time
from pathlib import Path

import torch

from benchmarks import cases
from benchmarks.measure import CPU, Place
from benchmarks.tables import TABLES

README = Path(__file__).with_name("README.md")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def machine(device: str) -> str:
    """Processor or card, threads and versions."""
    if device != "cpu":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        name = f"{next(names, platform.processor())}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def file_of(place: Place) -> Path:
    """Where the tables of a place are kept."""
    if place.device == "cpu":
        return README
    card = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower())
    return README.with_name(f"{card}-{str(place.dtype).removeprefix('torch.')}.md")


def keep(name: str, text: str, file: Path) -> None:
    """Put a table between its marks in a file, which are added at its end where it has none."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    whole = file.read_text() if file.exists() else f"# {file.stem}\n\nWhat is measured: README.md.\n"
    if begin not in whole:
        whole += f"\n## {name}\n\n{begin}{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    file.write_text(pattern.sub(lambda _: f"{begin}{text}\n{end}", whole))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="table", help=f"of {', '.join(TABLES)}; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    help_case = "only the shapes of this name, such as 'N = 16,384' (of peers); printed, not kept"
    parser.add_argument("--case", help=help_case)
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="on the CPU float32, else all three by default")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - TABLES.keys():
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if arguments.device == "cpu" and arguments.dtype not in (None, "float32"):
        parser.error(f"on the CPU float32 is measured, got --dtype {arguments.dtype}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if arguments.case is not None:
        cases.CASES[:] = [case for case in cases.CASES if case.name == arguments.case]
        if not cases.CASES or arguments.tables != ["peers"]:
            parser.error(f"--case is for the table peers and the name of a shape in cases.py, got {arguments.case!r}")
    torch.set_flush_denormal(True)
    of_the_cpu = ("startup", "allocator", "decoders", "scaling")
    for dtype in [arguments.dtype] if arguments.dtype else list(DTYPES) if arguments.device == "cuda" else ["float32"]:
        place = Place(arguments.device, DTYPES[dtype])
        for name in arguments.tables or [name for name in TABLES if place == CPU or name not in of_the_cpu]:
            started = time.monotonic()
            try:
                text = TABLES[name](place)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error.name} is not installed", file=sys.stderr)
                continue
            minutes = (time.monotonic() - started) / 60
            text += f"\n\n*{machine(place.device)}, {dtype}; measured in {minutes:.0f} minutes.*"
            print(f"\n## {name}\n\n{text}", flush=True)
            if arguments.case is None:
                keep(name, f"\n{text}\n", file_of(place))


if __name__ == "__main__":
    main()
