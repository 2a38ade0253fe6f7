"""Commands in forked children of one process that has imported everything: a start takes no 11 seconds."""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.run.warm_imports"])


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: a signal), what it printed, and how long it took in seconds."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def error(self) -> str:
        """The last line of stderr that says what is wrong; empty where there is none."""
        lines = [line for line in self.stderr.splitlines() if ": error: " in line]
        return lines[-1] if lines else ""


def command(args: list[str], folder: Path, timeout: float = 120) -> Ended:
    """Run `train.py` with these arguments in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder.with_name(folder.name + ".out"), folder.with_name(folder.name + ".err")
    process = CONTEXT.Process(target=_run, args=(args, folder, out, err))
    started = time.monotonic()
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    texts = [path.read_text(errors="replace") if path.is_file() else "" for path in (out, err)]
    return Ended(int(process.exitcode or 0), *texts, time.monotonic() - started)


def commands(given: dict[str, list[str]], folder: Path, at_once: int = 2) -> dict[str, Ended]:
    """Several commands, each in a folder of its own."""
    folders = [folder / str(k) for k in range(len(given))]
    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(given, pool.map(command, given.values(), folders), strict=True))


def _run(args: list[str], folder: Path, out: Path, err: Path) -> None:
    os.chdir(folder)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        stream.flush()
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    from nonlocal_nets.run.cli import main

    sys.argv = [str(ROOT / "train.py"), *args]
    main(args)
