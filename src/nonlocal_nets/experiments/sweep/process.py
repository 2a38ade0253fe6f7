"""A run of a sweep as a process, and the signals that end the sweep."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PATIENCE = 30.0  # seconds that a run has to save and end; wandb's agent gives as many


class Process:
    """Starts a run as wandb's agent does: its id is in the environment, it has a process group of its own.

    Args:
        args: the command.
        run_id: of the run.
        threads: how many it may use, unless the user's environment says otherwise.
        log: the file that its output is appended to.
        lock: of the sweep, which it holds too.
    """

    def __init__(self, args: list[str], run_id: str, threads: int, log: Path, lock: IO[str]) -> None:
        self.started = time.monotonic()
        self.stopped: float | None = None
        environment = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": str(threads)} | os.environ | {"WANDB_RUN_ID": run_id}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for `python`
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                args,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches the sweep only, which then stops its runs
                pass_fds=[lock.fileno()],
            )

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def stop(self) -> None:
        """Have it save and end. To be called again and again: it is killed if it has not ended after a while."""
        if self.stopped is None:
            self.stopped = time.monotonic()
            self.process.terminate()
        elif time.monotonic() > self.stopped + PATIENCE:
            self.process.kill()


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are appended to, instead of ending this process."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
