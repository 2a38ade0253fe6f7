"""Do the fast tests see mistakes? Makes each mistake of tests/mutants.toml, one at a time, and runs the tests on it.

    python tests/mutants.py [name ...]     # all, or those whose file or name contains one of the names

Prints what killed each mistake and the share killed. Exit code 1: under 95 % killed, the tests fail without a mistake,
or a mistake cannot be made because its old text does not occur exactly once.

One process imports what takes long, and forks a child for each mistake, which imports nonlocal_nets from a copy of src/
with the mistake in it and runs pytest. No child sees another's changes.
"""

import argparse
import contextlib
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
SRC = Path("src/nonlocal_nets")
LIST = Path(__file__).with_suffix(".toml")
CHILDREN = os.cpu_count() or 1
ENOUGH = 0.95  # share killed
HEAVY = (
    "av",
    "mlxtend.data",
    "matplotlib.figure",
    "numpy",
    "PIL",
    "pytest",
    "pytorch_lightning.cli",
    "safetensors.torch",
    "sklearn",
    "tensorboard",
    "timm",
    "torch.utils.tensorboard",
    "torchmetrics",
    "torchvision",
    "wandb",
)


@dataclass(frozen=True)
class Mutant:
    """One mistake: in a file of src/nonlocal_nets `old` becomes `new`; `tests` (files, functions) should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self) -> str:
        """The file with the mistake in it; a ValueError where it cannot be made."""
        text = (ROOT / SRC / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: {self.name}: the old text occurs {count} times")
        return text.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    """The mistakes of tests/mutants.toml: a table for each file, its tests, and [name, old, new, other tests ...]."""
    tables = tomllib.loads(LIST.read_text())
    return [
        Mutant(name, file, old, new, tuple(others or table["tests"]))
        for file, table in tables.items()
        for name, old, new, *others in table["mistakes"]
    ]


@dataclass
class Outcome:
    """Of one run of pytest: its exit code, or None after a timeout; seconds; what it printed."""

    code: int | None
    seconds: float
    output: str

    @property
    def failed(self) -> str:
        """The test that failed, as pytest's summary has it, or the last line."""
        lines = self.output.strip().splitlines() or [""]
        return next((line for line in lines if re.match(r"(FAILED|ERROR) ", line)), lines[-1])[:150]

    @property
    def killed(self) -> bool:
        return self.code not in (0, 2, 3, 4, 5)  # pytest's codes of what is no failure of a test

    def __str__(self) -> str:
        how = {0: "SURVIVED", 1: "killed", None: "killed (timeout)"}
        word = how.get(self.code, "killed (died)" if self.killed else f"NOT RUN (code {self.code})")
        return f"{word:8} {self.seconds:4.0f} s  {self.failed}"


@dataclass(frozen=True)
class Job:
    """Tests to run on a copy of src, as it is or with a mistake in it."""

    tests: tuple[str, ...]
    mutant: Mutant | None
    limit: float  # seconds


def child(job: Job, folder: Path) -> NoReturn:
    """Run pytest on a copy of src in the folder; never returns."""
    os.setsid()  # so that a timeout ends grandchildren too
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    shutil.copytree(ROOT / "src", folder / "src")
    if job.mutant:
        (folder / SRC / job.mutant.file).write_text(job.mutant.source())
    os.environ["PYTHONPATH"] = str(folder / "src")  # of grandchildren
    sys.path.insert(0, str(folder / "src"))  # before that of the editable install
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"--basetemp={folder / 'tmp'}"]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # plugins, in the parent
    code = 3
    try:
        code = int(sys.modules["pytest"].main([*options, *(f"tests/{test}" for test in job.tests)]))
        assert Path(sys.modules["nonlocal_nets"].__file__ or "").is_relative_to(folder)
    except BaseException:
        traceback.print_exc()
        code = 3
    finally:
        sys.stdout.flush()
        os._exit(code)


def outcomes(jobs: list[Job]) -> Iterator[tuple[Job, Outcome]]:
    """What came out of each job, CHILDREN at once, as they end."""
    running: dict[int, tuple[Job, float, Path]] = {}
    waiting = list(jobs)
    try:
        while waiting or running:
            while waiting and len(running) < CHILDREN:
                job, folder = waiting.pop(0), Path(tempfile.mkdtemp(prefix="mutant-"))
                pid = os.fork() or child(job, folder)
                running[pid] = job, time.monotonic(), folder
            time.sleep(0.1)
            for pid, (job, started, folder) in list(running.items()):
                seconds = time.monotonic() - started
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended or seconds > job.limit:
                    del running[pid]
                    kill(pid, ended)
                    output = (folder / "output").read_text(errors="replace")
                    shutil.rmtree(folder, ignore_errors=True)
                    yield job, Outcome(os.waitstatus_to_exitcode(status) if ended else None, seconds, output)
    finally:
        for pid in running:
            kill(pid, 0)


def kill(pid: int, ended: int) -> None:
    """End a child's session, and the child unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.kill(pid, signal.SIGKILL)  # it may not have its session yet
        os.waitpid(pid, 0)


def clean(tests: set[str]) -> dict[str, float]:
    """The seconds that each of the tests takes without a mistake; ends where one fails."""
    seconds = {}
    for job, outcome in outcomes([Job((test,), None, 900) for test in sorted(tests)]):
        seconds[job.tests[0]] = outcome.seconds
        print(f"{job.tests[0]}: {outcome.failed if outcome.code else 'passes'}, {outcome.seconds:.0f} s", flush=True)
        if outcome.code:
            print(outcome.output)
            raise SystemExit(f"{job.tests[0]} fails without a mistake: no kill would mean anything")
    return seconds


def preload() -> None:
    """Import what takes long, but nothing of ours, and start no thread: they do not survive a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)  # type: ignore[attr-defined]
    assert "nonlocal_nets" not in sys.modules


def main(names: list[str]) -> int:
    """The command; returns the exit code."""
    chosen = [m for m in mutants() if not names or any(name in f"{m.file}: {m.name}" for name in names)]
    for mutant in chosen:
        mutant.source()
    os.chdir(ROOT)
    preload()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without the children
    seconds = clean({test for mutant in chosen for test in mutant.tests})
    killed = 0
    jobs = [Job(m.tests, m, 60 + 3 * sum(seconds[test] for test in m.tests)) for m in chosen]
    for job, outcome in outcomes(jobs):
        killed += outcome.killed
        assert job.mutant
        print(f"{job.mutant.file:28} {job.mutant.name:60} {outcome}", flush=True)
    print(f"{killed} of {len(chosen)} killed, {killed / max(len(chosen), 1):.0%}")
    return int(killed < ENOUGH * len(chosen))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="parts of the files or names of the mistakes to make (default: all)")
    raise SystemExit(main(parser.parse_args().names))
