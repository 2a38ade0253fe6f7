"""Which classes are taken for which: a picture and a table after the test."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from nonlocal_nets.callbacks.publish import publish
from nonlocal_nets.callbacks.run_folder import run_folder


class ConfusionMatrix(pl.Callback):
    """Writes `confusion.png` and `classes.csv` (samples and accuracy of each class) into the run's folder.

    Needs a test_step that returns logits (B, K) and targets (B,); class names come from the data module.
    """

    def __init__(self) -> None:
        self.matrix: MulticlassConfusionMatrix | None = None

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        logits, target = outputs["logits"], outputs["target"]
        if self.matrix is None:
            self.matrix = MulticlassConfusionMatrix(logits.shape[1]).to(logits.device)
        self.matrix.update(logits, target)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.matrix is None:
            return
        counts: Tensor = self.matrix.compute().cpu()  # on every rank: it gathers
        self.matrix = None
        if not trainer.is_global_zero:
            return
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        names = [str(name) for name in (names if names is not None else range(len(counts)))]
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        table(counts, names, folder / "classes.csv")
        draw(counts, names, folder / "confusion.png")
        publish(trainer, folder / "confusion.png")
        rank_zero_info(f"Which classes are taken for which: {folder / 'confusion.png'}")


def table(counts: Tensor, names: list[str], path: Path) -> None:
    """Of each class its samples and the share of them that is recognised, from counts (K true, K predicted)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "samples", "accuracy"])
        for name, row, right in zip(names, counts, counts.diagonal(), strict=True):
            samples = int(row.sum())
            writer.writerow([name, samples, f"{int(right) / samples:.4f}" if samples else ""])


def draw(counts: Tensor, names: list[str], path: Path) -> None:
    """A heat map of the rows' shares, with the counts in it where there is room."""
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind

    classes = len(names)
    side = min(3 + 0.35 * classes, 14)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if classes <= 20:
        for i in range(classes):
            for j in range(classes):
                colour = "white" if shares[i, j] > 0.5 else "black"
                axis.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=8)
    if classes <= 40:
        axis.set_xticks(range(classes), names, rotation=90)
        axis.set_yticks(range(classes), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    figure.savefig(path, dpi=110)
