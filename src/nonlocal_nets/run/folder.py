"""The folder of a run and what is in it; no other module knows the layout."""

import os
from dataclasses import dataclass
from glob import escape
from pathlib import Path

CONFIG, LAST, METRICS = "config.yaml", "last.ckpt", "metrics.csv"
RUN_ID = "NONLOCAL_NETS_RUN_ID"  # hands the id to the processes that Lightning starts with the same command


@dataclass(frozen=True)
class RunFolder:
    """The folder <root>/<project>/<id> of a run: config, logs, results, and the checkpoints unless they are elsewhere.

    Callbacks find it as `trainer.default_root_dir`.

    Args:
        root: of all runs, "runs" by default (`--trainer.default_root_dir`).
        project: name of the project.
        id: name of the run.
        checkpoint_dir: where the checkpoints are (`--checkpoint.dirpath`); None: in the run's folder.
    """

    root: Path
    project: str
    id: str
    checkpoint_dir: Path | None = None

    @property
    def path(self) -> Path:
        return self.root / self.project / self.id

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """What the run has logged (`curve.py`)."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        return self.checkpoint_dir or self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.checkpoints / LAST


def expanded(path: str) -> Path:
    """A path that a user gave, with ~ and variables of the environment in it."""
    return Path(os.path.expandvars(path)).expanduser()


def find(root: Path, run_id: str) -> Path | None:
    """The folder of the run with this id, of any project; None where there is none."""
    return next(iter(sorted(path for path in root.glob(f"*/{escape(run_id)}") if path.is_dir())), None)


def shared_id() -> str | None:
    """The id that all processes of a run find: of a sweep, torchrun, the process that started them, or a SLURM job."""
    started = ["TORCHELASTIC_RUN_ID", RUN_ID] if "LOCAL_RANK" in os.environ else []
    names = ["WANDB_RUN_ID", *started, "SLURM_JOB_ID"]
    return next((os.environ[name] for name in names if os.environ.get(name, "none") != "none"), None)
