"""What the tasks share: one step for all stages, exact metrics, and the optimiser with its schedule."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MetricCollection

STAGES = ("train", "val", "test")


class Task(pl.LightningModule):
    """A network, a loss and metrics; a subclass builds them and calls `super().__init__`.

    Args:
        network: called with the batch's input, gives logits.
        loss: of (logits, target).
        metrics: of (logits, target); each stage gets a copy.
        report: what is in the network, said when training starts.
        lr: the highest learning rate.
        weight_decay: AdamW's.
        warmup_steps: optimiser steps over which lr rises from 0; then it falls to 0 by a cosine until the end.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        metrics: MetricCollection,
        report: str,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
    ) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("warmup_steps", warmup_steps)):
            if value < 0 or not math.isfinite(value):
                raise ValueError(f"{name} must not be negative, got {value}")
        self.network: nn.Module = network
        self.loss: nn.Module = loss
        self.metrics = nn.ModuleList(metrics.clone(prefix=f"{stage}/") for stage in STAGES)
        self.report = report
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def on_fit_start(self) -> None:
        rank_zero_info(self.report)

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """The loss of a batch, logged with the stage's metrics."""
        x, target = batch
        logits = self(x)
        loss: Tensor = self.loss(logits, target)
        metrics = self.metrics[STAGES.index(stage)]
        assert isinstance(metrics, MetricCollection)
        metrics.update(logits, target)
        training = stage == "train"
        self.log(f"{stage}/loss", loss, prog_bar=training, on_step=training, on_epoch=True, batch_size=len(target))
        self.log_dict(metrics, prog_bar=not training, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay)
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / (self.warmup_steps + 1)
            return 0.5 + 0.5 * math.cos(math.pi * (step - self.warmup_steps) / max(total - self.warmup_steps, 1))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
