"""One table of what `predict` predicts."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info


class Predictions(BasePredictionWriter):
    """Writes `predictions.csv` into the run's folder, with the rows that the task makes of its predictions (`rows`).

    Of several processes each writes a file of its own, `predictions-<rank>.csv`.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self.columns: list[str] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.columns = None

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
        if rows is None:
            if batch_idx == 0:
                rank_zero_info(
                    f"no predictions.csv: {type(pl_module).__name__} does not define rows(batch, prediction)"
                )
            return
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"predictions{rank}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write([dict(row) for row in rows], path)

    def _write(self, rows: list[dict[str, object]], path: Path) -> None:
        if not rows:
            return
        first = self.columns is None
        if self.columns is None:
            self.columns = list(rows[0])
        with path.open("w" if first else "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if first:
                writer.writeheader()
                rank_zero_info(f"Predictions: {path}")
            writer.writerows(rows)
