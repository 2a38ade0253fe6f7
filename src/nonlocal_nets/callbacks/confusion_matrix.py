"""Which classes are taken for which: a picture and a table after the test."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from nonlocal_nets.callbacks.publish import publish
from nonlocal_nets.files import replacing


class ConfusionMatrix(pl.Callback):
    """Writes `confusion.png` and `classes.csv` (samples and accuracy of each class) into `default_root_dir`.

    Needs a test_step that returns logits (B, K) and target (B,), or None for a batch without samples of this process.
    The names of the classes are the data module's `class_names`, else their numbers.

    Raises:
        ValueError: a test_step that returns something else.
    """

    def __init__(self) -> None:
        self.counts: Tensor | None = None  # (K true, K predicted), of this process

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.counts = None

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is None:
            return
        logits, target = _classified(outputs)
        counts = multiclass_confusion_matrix(logits, target, logits.shape[1])
        self.counts = counts if self.counts is None else self.counts + counts

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        counts = total(self.counts, trainer.strategy.reduce, pl_module.device)
        if not trainer.is_global_zero:
            return
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        names = [str(name) for name in (names if names is not None else range(len(counts)))]
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        table(counts, names, folder / "classes.csv")
        draw(counts, names, folder / "confusion.png")
        publish(trainer, folder / "confusion.png")
        rank_zero_info(f"Which classes are taken for which: {folder / 'confusion.png'}")


def _classified(outputs: Any) -> tuple[Tensor, Tensor]:
    """The logits (B, K) and the target (B,) of a test_step."""
    expected = "ConfusionMatrix needs a test_step that returns logits (B, K) and target (B,)"
    if not isinstance(outputs, Mapping) or not {"logits", "target"} <= outputs.keys():
        given = f"a dict of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(f"{expected}, got {given}")
    logits, target = outputs["logits"], outputs["target"]
    if logits.ndim != 2 or target.ndim != 1:
        raise ValueError(f"{expected}, got {tuple(logits.shape)} and {tuple(target.shape)}")
    return logits, target


def total(counts: Tensor | None, reduce: Any, device: torch.device) -> Tensor:
    """The sum of the counts of all processes, (K, K), on the CPU.

    All processes must call it: one that saw no sample, and has None, learns K from the others.

    Args:
        counts: of this process.
        reduce: of the Trainer's strategy.
        device: of this process.

    Raises:
        ValueError: no process has any.
    """
    classes = int(reduce(torch.tensor(0 if counts is None else len(counts), device=device), reduce_op="max"))
    if not classes:
        raise ValueError("ConfusionMatrix needs a test_step that returns logits and target, got None for every batch")
    local = torch.zeros(classes, classes, dtype=torch.long, device=device) if counts is None else counts
    summed: Tensor = reduce(local, reduce_op="sum")
    return summed.cpu()


def table(counts: Tensor, names: list[str], path: Path) -> None:
    """The samples of each class and the share of them that is recognised, from counts (K true, K predicted)."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "samples", "accuracy"])
        for name, row, right in zip(names, counts, counts.diagonal(), strict=True):
            samples = int(row.sum())
            writer.writerow([name, samples, f"{int(right) / samples:.4f}" if samples else ""])


def draw(counts: Tensor, names: list[str], path: Path) -> None:
    """A heat map of each row's shares, with the counts in it where there is room; rows are the true classes."""
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
        axis.set_xticks(range(classes), names, rotation=90, parse_math=False)
        axis.set_yticks(range(classes), names, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    with replacing(path) as part:
        figure.savefig(part, dpi=110)
