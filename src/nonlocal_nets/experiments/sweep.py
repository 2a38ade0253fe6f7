"""Run a sweep of configs/sweeps/ on this machine, without an account: wandb's engine proposes, this starts the runs.

    python -m nonlocal_nets.experiments.sweep configs/sweeps/pairwise.yaml --processes 2

The yaml is that of `wandb sweep`, and each run is the command that `wandb agent` would start. The folder
runs/sweeps/<name>-<digest of the yaml> gets each run's output and state, sweep.csv and sweep.png. After a kill the same
command goes on: runs that ended stay as they are, one that had begun goes on from its last checkpoint.
"""

import argparse
import fcntl
import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

import numpy as np

from nonlocal_nets.experiments.sweep_config import SweepError, command, engine, read
from nonlocal_nets.experiments.sweep_results import RUNS, Run, history, picture, save_csv, table

POLL = 1.0  # seconds
PATIENCE = 30.0  # seconds that a run has to save and end; wandb's agent gives as many
FAILURES = 3  # runs that fail before any has finished: then the command is wrong
STATES = {"stopped": "killed"}  # ours in the engine's words, where they differ


class Sweep:
    """The runs of a sweep: those that ended, in the files of its folder, and those that are processes now."""

    def __init__(self, path: Path, processes: int, limit: int | None) -> None:
        self.config = read(path)
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:6]
        self.id = re.sub(r"[^\w-]+", "-", str(self.config.get("name", path.stem))) + f"-{digest}"  # of folders and runs
        self.folder = RUNS / "sweeps" / self.id
        self.processes, self.limit = processes, limit or self.config.get("run_cap")
        if self.limit is None and self.config["method"] != "grid":
            raise SweepError(f"{path}: a {self.config['method']} search has no end of its own; give --runs or run_cap")
        self.metric: str = self.config["metric"]["name"]
        self.maximise = self.config["metric"].get("goal") == "maximize"
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.started: dict[str, float] = {}
        self.told: dict[str, float] = {}  # to stop, and when
        self.runs: list[Run] = []
        self.waiting: list[Run] = []  # that had begun in an earlier start

    def open(self) -> IO[str]:
        """Read what an earlier start left; the lock is held as long as this process or one of its runs lives."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{self.folder}: waiting for the runs of another start to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(self.folder.glob("*.json")):
            self.runs.append(Run(**json.loads(path.read_text())))
        self.waiting = [run for run in self.runs if run.state in ("running", "failed")]
        for run in self.waiting:
            run.state = "running"
        return lock

    def go(self, lock: IO[str]) -> None:
        """All runs, as many at once as wanted."""
        while True:
            self.collect()
            self.stop_early()
            while len(self.children) < self.processes and (run := self.next()):
                self.start(run, lock)
            if not self.children:
                return
            time.sleep(POLL)

    def next(self) -> Run | None:
        """One that had begun, or a new one. A draw follows from the sweep and the number of the run."""
        if self.waiting:
            return self.waiting.pop(0)
        number = len(self.runs)
        if self.limit is not None and number >= self.limit:
            return None
        seed = int(hashlib.sha256(f"{self.id} {number}".encode()).hexdigest()[:8], 16)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the engine's
        with warnings.catch_warnings():  # bayes fits a few runs as well as that goes
            warnings.filterwarnings("ignore", "The optimal value found for dimension")
            proposed = engine().next_run(self.config, self.known())
        if proposed is None:
            return None
        values = {name: item["value"] for name, item in proposed.config.items()}
        plain = json.loads(json.dumps(values, default=lambda number: number.item()))  # numpy's
        self.runs.append(Run(f"{self.id}-{number:03}", plain))
        return self.runs[-1]

    def known(self) -> list[Any]:
        """The runs as the engine wants them."""
        return [
            engine().SweepRun(
                name=run.id,
                state=STATES.get(run.state, run.state),
                config={name: {"value": value} for name, value in run.parameters.items()},
                history=[{self.metric: value} for value in run.values],
                summary_metrics={self.metric: run.values[-1]} if run.values else {},
            )
            for run in self.runs
        ]

    def start(self, run: Run, lock: IO[str]) -> None:
        """As the agent does: the id in the environment, a process group of its own."""
        again = self.file(run).exists()
        self.save(run)
        words = command(self.config, run.parameters) + ["--ckpt_path=last"] * again
        print(f"{run.id}: {shlex.join(words)}", flush=True)
        threads = str(max((os.cpu_count() or 1) // self.processes, 1))
        environment = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": threads} | os.environ | {"WANDB_RUN_ID": run.id}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for `python`
        with self.log(run).open("ab") as log:
            self.children[run.id] = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches this process only, which tells the runs
                pass_fds=[lock.fileno()],
            )
        self.started[run.id] = time.monotonic()

    def collect(self) -> None:
        """What the running ones have logged, and which have ended."""
        for run in [run for run in self.runs if run.id in self.children]:
            code = self.children[run.id].poll()
            run.values, names = history(run.id, self.metric)
            if code is None:
                continue
            run.state = "finished" if code == 0 else "stopped" if run.id in self.told else "failed"
            self.forget(run)
            best = run.best(self.maximise)
            print(f"{run.id}: {run.state}, {self.metric} {best:.4g}, {run.seconds:.0f} s", flush=True)
            if run.state == "failed":
                self.failed(run, code)
            elif run.state == "finished" and not run.values:
                raise SweepError(f"{run.id} has no metric {self.metric!r}; there are: {', '.join(names) or 'none'}")

    def failed(self, run: Run, code: int) -> None:
        lines = self.log(run).read_text(errors="replace").strip().splitlines()
        print(f"{run.id}: exit code {code}: {lines[-1] if lines else ''}", flush=True)
        states = [run.state for run in self.runs]
        if "finished" not in states and states.count("failed") >= min(FAILURES, self.limit or FAILURES):
            raise SweepError(f"the first runs failed, see {self.log(run)}; the same command tries them again")

    def stop_early(self) -> None:
        """Tell runs to end that `early_terminate` gives up; kill those that do not."""
        if "early_terminate" in self.config and self.children:
            for run in engine().stop_runs(self.config, self.known()):
                if run.name in self.children and run.name not in self.told:
                    self.told[run.name] = time.monotonic()
                    self.children[run.name].terminate()
        for name, since in self.told.items():
            if name in self.children and time.monotonic() > since + PATIENCE:
                self.children[name].kill()

    def end(self) -> None:
        """Tell all to end, and wait; they go on with the next start."""
        for child in self.children.values():
            child.terminate()
        deadline = time.monotonic() + PATIENCE
        for run in [run for run in self.runs if run.id in self.children]:
            try:
                self.children[run.id].wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                self.children[run.id].kill()
                self.children[run.id].wait()
            self.forget(run)

    def forget(self, run: Run) -> None:
        run.seconds += time.monotonic() - self.started[run.id]
        del self.children[run.id]
        self.save(run)

    def file(self, run: Run) -> Path:
        return self.folder / f"{run.id.rpartition('-')[2]}.json"

    def log(self, run: Run) -> Path:
        return self.file(run).with_suffix(".log")

    def save(self, run: Run) -> None:
        """Whole or not at all, and the csv of all runs."""
        part = self.file(run).with_suffix(".part")
        part.write_text(json.dumps(asdict(run)))
        part.replace(self.file(run))
        save_csv(self.runs, self.metric, self.maximise, self.folder / "sweep.csv")


def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM is as Ctrl-C."""
    raise KeyboardInterrupt


def run(sweep: Sweep) -> None:
    """A sweep from where it is to its end, or until it is told to end, and its results."""
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with sweep.open() as lock:
            sweep.go(lock)
    except KeyboardInterrupt:
        print(f"told to end; the same command goes on with {sweep.id}", flush=True)
        raise SystemExit(130) from None
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # the runs are told already
        sweep.end()
        for number, handler in before.items():
            signal.signal(number, handler)
        if any(run.values for run in sweep.runs):
            picture(sweep.config, sweep.runs, sweep.maximise, sweep.folder / "sweep.png")
            print(f"\n{table(sweep.runs, sweep.metric, sweep.maximise)}\n\nevery run: {sweep.folder / 'sweep.csv'}")
    if failed := [run.id for run in sweep.runs if run.state == "failed"]:
        raise SweepError(f"failed: {', '.join(failed)}; see their .log in {sweep.folder}; the same command tries again")


def main(args: list[str] | None = None) -> Sweep:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m nonlocal_nets.experiments.sweep", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("config", type=Path, help="a sweep's yaml, such as configs/sweeps/pairwise.yaml")
    parser.add_argument("--processes", type=int, default=1, help="how many runs at once (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, help="how many runs at most (default: the yaml's run_cap, or the whole grid)"
    )
    given = parser.parse_args(args)
    try:
        for name in ("processes", "runs"):
            if getattr(given, name) is not None and getattr(given, name) < 1:
                raise SweepError(f"--{name} must be at least 1, got {getattr(given, name)}")
        sweep = Sweep(given.config, given.processes, given.runs)
        run(sweep)
    except SweepError as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    return sweep


if __name__ == "__main__":
    main()
