"""The state of a sweep on disk: a json, a log and a lock in its folder."""

import fcntl
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from nonlocal_nets.experiments.arguments import ExperimentError
from nonlocal_nets.experiments.table import write


@dataclass
class Run:
    """A run of a sweep."""

    id: str
    parameters: dict[str, Any]
    state: str = "running"  # then "finished", "stopped" (by early_terminate) or "failed"
    seconds: float = 0.0  # of all its starts
    values: list[float] = field(default_factory=list)  # of the metric, one per validation

    def best(self, mode: str) -> float:
        """The highest value, or the lowest if the mode is "min"; NaN if there is none."""
        finite = [value for value in self.values if math.isfinite(value)]
        return (max if mode == "max" else min)(finite, default=math.nan)


class State:
    """The folder of a sweep. The last part of a run's id is the name of its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lock(self) -> IO[str] | None:
        """The lock, open; None while another start of this sweep, or one of its runs, which inherit it, holds it.

        Raises:
            ExperimentError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("w")
        except OSError as error:
            raise ExperimentError(f"cannot write in {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def load(self) -> list[Run]:
        """The runs that earlier starts left, in the order in which they began."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: int(path.stem))
        return [Run(**json.loads(path.read_text())) for path in paths]

    def save(self, run: Run) -> None:
        write(self.file(run), json.dumps(asdict(run)))

    def file(self, run: Run) -> Path:
        return self.folder / f"{run.id.rpartition('-')[2]}.json"

    def log(self, run: Run) -> Path:
        """Where its output goes."""
        return self.file(run).with_suffix(".log")
