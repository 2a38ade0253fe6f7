"""Starts the runs of a sweep, watches them and ends them."""

import hashlib
import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import IO

from nonlocal_nets.experiments.arguments import ExperimentError
from nonlocal_nets.experiments.history import history
from nonlocal_nets.experiments.sweep.config import command, read, root
from nonlocal_nets.experiments.sweep.engine import given_up, propose
from nonlocal_nets.experiments.sweep.process import Process, signals
from nonlocal_nets.experiments.sweep.results import csv_rows, figure, markdown
from nonlocal_nets.experiments.sweep.state import Run, State
from nonlocal_nets.experiments.table import save_csv
from nonlocal_nets.files import replacing
from nonlocal_nets.run.folder import find

POLL = 1.0  # seconds
FAILURES = 3  # runs that fail before any has finished: then the command is wrong


class Sweep:
    """A sweep: its runs so far, and which of them are processes now.

    Args:
        path: its yaml.
        at_once: how many runs may be processes at the same time.
        limit: of the number of runs; None takes the yaml's run_cap.

    Raises:
        ExperimentError: something in the yaml cannot be run here, or the runs would never end.
    """

    def __init__(self, path: Path, at_once: int, limit: int | None = None) -> None:
        self.config = read(path)
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:6]
        self.id = re.sub(r"[^\w-]+", "-", str(self.config.get("name", path.stem))) + f"-{digest}"
        self.at_once, self.limit = at_once, limit or self.config.get("run_cap")
        if self.limit is None and self.config["method"] != "grid":
            raise ExperimentError(f"{path}: a {self.config['method']} search never ends; give --runs or run_cap")
        self.metric: str = self.config["metric"]["name"]
        self.mode = "max" if self.config["metric"]["goal"] == "maximize" else "min"
        self.root = root(self.config)
        self.state = State(self.root / "sweeps" / self.id)
        self.runs: list[Run] = []
        self.begun: list[Run] = []  # in an earlier start, and not finished
        self.processes: dict[str, Process] = {}

    def run(self) -> None:
        """Run it to its end, from where an earlier start left it, and report; on SIGINT or SIGTERM stop, and report.

        Raises:
            ExperimentError: runs failed, or have no such metric.
            SystemExit: a signal has ended it; the exit code is 128 + its number.
        """
        with signals() as received:
            lock = self.wait_for_lock(received)
            try:
                if lock:
                    self.load()
                    self.go(lock, received)
            finally:
                self.end()
                self.report()
                if lock:
                    lock.close()
        if received:
            print(f"interrupted; the same command continues {self.id}", flush=True)
            raise SystemExit(128 + received[0])
        if failed := [run.id for run in self.runs if run.state == "failed"]:
            logs = f"see their .log in {self.state.folder}"
            raise ExperimentError(f"failed: {', '.join(failed)}; {logs}; the same command tries again")

    def wait_for_lock(self, received: list[int]) -> IO[str] | None:
        """The lock, which a killed start of the same sweep leaves to its runs until they end; None after a signal."""
        announced = False
        while not received:
            if lock := self.state.lock():
                return lock
            if not announced:
                print(f"{self.state.folder}: waiting for the runs of another start to end", flush=True)
            announced = True
            time.sleep(POLL)
        return None

    def load(self) -> None:
        """The runs of earlier starts; those that were running or failed will run again."""
        self.runs = self.state.load()
        self.begun = [run for run in self.runs if run.state in ("running", "failed")]
        for run in self.begun:
            run.state = "running"

    def go(self, lock: IO[str], received: list[int]) -> None:
        """Run all of them, as many at once as wanted, until there is none left or a signal arrives."""
        while not received:
            self.collect()
            self.stop_early()
            while len(self.processes) < self.at_once and (run := self.next()):
                self.start(run, lock)
            if not self.processes:
                return
            time.sleep(POLL)

    def next(self) -> Run | None:
        """A run that had begun, or a new one. What is drawn follows from the sweep and the number of the run."""
        if self.begun:
            return self.begun.pop(0)
        number = len(self.runs)
        if self.limit is not None and number >= self.limit:
            return None
        parameters = propose(self.config, self.runs, f"{self.id} {number}")
        if parameters is None:
            return None
        self.runs.append(Run(f"{self.id}-{number:03}", parameters))
        return self.runs[-1]

    def start(self, run: Run, lock: IO[str]) -> None:
        """Start a run, from its last checkpoint if it had begun."""
        resume = ["--ckpt_path=last"] if self.state.file(run).exists() else []
        self.save(run)
        args = command(self.config, run.parameters) + resume
        print(f"{run.id}: {shlex.join(args)}", flush=True)
        threads = max((os.cpu_count() or 1) // self.at_once, 1)
        self.processes[run.id] = Process(args, run.id, threads, self.state.log(run), lock)

    def collect(self) -> None:
        """Read what the running ones have logged, and see which have ended."""
        for run in self.running():
            code = self.processes[run.id].exit_code()  # first: of a run that has ended everything is read
            run.values, names = history(find(self.root, run.id), self.metric)
            if code is not None:
                self.ended(run, code, names)

    def running(self) -> list[Run]:
        return [run for run in self.runs if run.id in self.processes]

    def ended(self, run: Run, code: int, names: list[str]) -> None:
        """A run has ended by itself, or was stopped early."""
        stopped = self.processes[run.id].stopped is not None
        run.state = "finished" if code == 0 else "stopped" if stopped else "failed"
        self.close(run)
        print(f"{run.id}: {run.state}, {self.metric} {run.best(self.mode):.4g}, {run.seconds:.0f} s", flush=True)
        if run.state == "failed":
            self.failed(run, code)
        elif run.state == "finished" and not run.values:
            logged = ", ".join(names) or "none"
            raise ExperimentError(f"{run.id} has no metric {self.metric!r}; there are: {logged}")

    def failed(self, run: Run, code: int) -> None:
        """Report a failure; an error if the first runs of the sweep have all failed."""
        lines = self.state.log(run).read_text(errors="replace").strip().splitlines()
        print(f"{run.id}: exit code {code}: {lines[-1] if lines else ''}", flush=True)
        states = [run.state for run in self.runs]
        if "finished" not in states and states.count("failed") >= min(FAILURES, self.limit or FAILURES):
            raise ExperimentError(f"the first runs failed, see {self.state.log(run)}; the same command tries again")

    def stop_early(self) -> None:
        """Stop the runs that `early_terminate` gives up."""
        names = given_up(self.config, self.runs) if self.processes else []
        for name, process in self.processes.items():
            if name in names or process.stopped is not None:
                process.stop()

    def end(self) -> None:
        """Stop all; they go on with the next start."""
        while self.processes:
            for run in self.running():
                process = self.processes[run.id]
                process.stop()
                if process.exit_code() is not None:
                    self.close(run)
            time.sleep(min(POLL, 0.1))

    def close(self, run: Run) -> None:
        run.seconds += self.processes.pop(run.id).seconds
        self.save(run)

    def save(self, run: Run) -> None:
        """The state of a run, and the csv of all runs."""
        self.state.save(run)
        save_csv(csv_rows(self.runs, self.metric, self.mode, self.root), self.state.folder / "sweep.csv")

    def report(self) -> None:
        """The picture and the table of the results so far."""
        if any(run.values for run in self.runs):
            with replacing(self.state.folder / "sweep.png") as part:
                figure(self.config, self.runs, self.mode).savefig(part, dpi=120)
            print(f"\n{markdown(self.runs, self.metric, self.mode)}\n\nevery run: {self.state.folder / 'sweep.csv'}")
