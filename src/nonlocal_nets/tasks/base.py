"""What the tasks share: one step for all stages, exact metrics, and the optimiser."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import MetricCollection

from nonlocal_nets.tasks.optimisation import Optimisation

STAGES = ("train", "val", "test")


class Task(pl.LightningModule):
    """A network, a loss and metrics; a subclass builds them and calls `super().__init__`.

    Args:
        network: called with the batch's input, gives logits.
        loss: of (logits, target).
        metrics: of (logits, target); each stage gets a copy.
        optimisation: how it learns.
        report: what is in the network, said when training starts.
    """

    def __init__(
        self, network: nn.Module, loss: nn.Module, metrics: MetricCollection, optimisation: Optimisation, report: str
    ) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.loss: nn.Module = loss
        self.metrics = nn.ModuleList(metrics.clone(prefix=f"{stage}/") for stage in STAGES)
        self.optimisation, self.report = optimisation, report

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def on_fit_start(self) -> None:
        rank_zero_info(self.report)

    def augment(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """What the network and the loss see of a training batch; metrics see the batch's own target."""
        return x, target

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> tuple[Tensor, Tensor]:
        """The loss and the logits of a batch, logged with the stage's metrics."""
        x, target = batch
        training = stage == "train"
        x, wanted = self.augment(x, target) if training else (x, target)
        logits = self(x)
        loss: Tensor = self.loss(logits, wanted)
        metrics = self.metrics[STAGES.index(stage)]
        assert isinstance(metrics, MetricCollection)
        metrics.update(logits, target)
        self.log(f"{stage}/loss", loss, prog_bar=training, on_step=training, on_epoch=True, batch_size=len(target))
        self.log_dict(metrics, prog_bar=not training, on_step=False, on_epoch=True)
        return loss, logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.step(batch, "train")[0]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The logits and targets, for the callbacks that draw them."""
        return {"logits": self.step(batch, "test")[1], "target": batch[1]}

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.optimisation.build(self, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
