"""One table of what `predict` predicts."""

import csv
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info

from nonlocal_nets.files import beside, is_at, naming, try_lock
from nonlocal_nets.run.errors import RunError

TABLE = re.compile(r"predictions(-\d+)?\.csv")


class Predictions(BasePredictionWriter):
    """Writes `predictions.csv` into the run's folder, with the rows that the task makes of its predictions (`rows`).

    It takes the place of an older one once all is predicted. Of several processes each writes a file of its own,
    `predictions-<rank>.csv`; those of an earlier command with another number of processes are then removed. A name
    that is not UTF-8 keeps its bytes: Python reads it with errors="surrogateescape".
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self.file: TextIO | None = None
        self.columns: list[str] = []

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        make_rows = getattr(pl_module, "rows", None)
        rows = None if make_rows is None else make_rows(batch, prediction)
        if rows is not None:
            with naming(_path(trainer)):
                self._write([dict(row) for row in rows], _path(trainer))
        elif batch_idx == 0:
            rank_zero_info(f"no predictions.csv: {type(pl_module).__name__} does not define rows(batch, prediction)")

    def _write(self, rows: Sequence[Mapping[str, object]], path: Path) -> None:
        if self.file is None and rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = _locked(beside(path))
            self.columns = list(rows[0])
            csv.DictWriter(self.file, self.columns).writeheader()
        if self.file is not None:
            csv.DictWriter(self.file, self.columns).writerows(rows)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.file is not None:
            with naming(_path(trainer)):
                self.file.close()
                beside(_path(trainer)).replace(_path(trainer))
            self.file = None
            rank_zero_info(f"Predictions: {_path(trainer)}")
            if trainer.is_global_zero:
                _remove_others(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.file is not None:
            with suppress(OSError):  # the same again, where the disk is full
                self.file.close()
            beside(_path(trainer)).unlink(missing_ok=True)
            self.file = None


def _path(trainer: pl.Trainer, rank: int | None = None) -> Path:
    """The table of a process, by default of this one."""
    number = f"-{trainer.global_rank if rank is None else rank}" if trainer.world_size > 1 else ""
    return Path(trainer.default_root_dir) / f"predictions{number}.csv"


def _locked(path: Path) -> TextIO:
    """An empty file to write to, which no other process writes to until this one closes it.

    Raises:
        RunError: another process writes to it.
    """
    while True:
        file = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
        if not try_lock(file):
            file.close()
            advice = "wait for its end, or choose another --id"
            raise RunError(f"another process predicts into {path.parent}: {advice}")
        if is_at(path, file.fileno()):
            file.truncate(0)
            return file
        file.close()  # another process has just put it in its place


def _remove_others(trainer: pl.Trainer) -> None:
    """Remove the tables of an earlier command with another number of processes: they are not parts of this one."""
    parts = {_path(trainer, rank) for rank in range(trainer.world_size)}
    found = [path for path in _path(trainer).parent.glob("predictions*.csv") if TABLE.fullmatch(path.name)]
    for path in set(found) - parts:
        path.unlink(missing_ok=True)
