"""One table of what `predict` predicts."""

import csv
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from nonlocal_nets.callbacks.run_folder import run_folder


class Predictions(BasePredictionWriter):
    """Writes `predictions.csv` into the run's folder: path, class, and the (up to) five likeliest with probabilities.

    Needs a predict_step that returns probabilities (B, K), batches (input, paths), and the data module's class names.
    """

    def __init__(self) -> None:
        super().__init__("batch")
        self.started = False

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        names = trainer.datamodule.class_names  # type: ignore[attr-defined]
        top = prediction.topk(min(5, prediction.shape[1]))
        rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = run_folder(trainer) / f"predictions{rank}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if self.started else "w", newline="") as file:
            writer = csv.writer(file)
            if not self.started:
                ranked = [f"{word}_{k}" for k in range(1, top.values.shape[1] + 1) for word in ("class", "probability")]
                writer.writerow(["path", "class", *ranked])
                rank_zero_info(f"Predictions: {path}")
            for image, values, indices in zip(batch[1], top.values.tolist(), top.indices.tolist(), strict=True):
                pairs = [x for v, k in zip(values, indices, strict=True) for x in (names[k], f"{v:.6f}")]
                writer.writerow([image, names[indices[0]], *pairs])
        self.started = True
