"""Measure, print and keep the tables: `python -m benchmarks [startup peers limit ...]`; all of them by default.

What is measured replaces its part of benchmarks/README.md, with the machine that it was measured on.
"""

import argparse
import platform
import re
import time
from pathlib import Path

import torch

from benchmarks.tables import TABLES

README = Path(__file__).with_name("README.md")


def machine() -> str:
    """Processor, threads and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor())
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def keep(name: str, text: str) -> None:
    """Put a table between its marks in the README."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    whole = README.read_text()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if not pattern.search(whole):
        raise SystemExit(f"{README} has no place for {name}: expected {begin.strip()} and {end.strip()}")
    README.write_text(pattern.sub(lambda _: f"{begin}{text}\n{end}", whole))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="*", metavar="table", help=f"of {', '.join(TABLES)}; all by default")
    given = parser.parse_args().tables or list(TABLES)
    if unknown := set(given) - TABLES.keys():
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    torch.set_flush_denormal(True)
    for name in given:
        started = time.monotonic()
        text = TABLES[name]()
        text += f"\n\n*{machine()}; measured in {(time.monotonic() - started) / 60:.0f} minutes.*"
        print(f"\n## {name}\n\n{text}", flush=True)
        keep(name, f"\n{text}\n")


if __name__ == "__main__":
    main()
