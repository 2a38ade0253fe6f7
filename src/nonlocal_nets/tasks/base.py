"""What the tasks share: one step for all stages, exact metrics, and the optimiser."""

from typing import Any

import pytorch_lightning as pl
from lightning_utilities import apply_to_collection
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

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
        self.mean_losses = nn.ModuleList(MeanMetric() for _ in STAGES)
        self.optimisation, self.report = optimisation, report

    def forward(self, x: Any) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    def configure_model(self) -> None:
        """With Lightning's ModelParallelStrategy (FSDP2) each process keeps a share of every weight.

        Gathered for the time that they are used are the weights of one child of a stage, such as a residual block.
        """
        if self.device_mesh is None or any(isinstance(p, DTensor) for p in self.network.parameters()):
            return  # it is called before fit, test and predict alike
        units = [unit for stage in self.network.children() for unit in stage.children() if list(unit.parameters())]
        for module in [*units, self.network]:
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

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
        loss: Tensor = self.loss(logits, wanted) if len(target) else logits.sum()  # of none: 0
        metrics, mean_loss = self.metrics[STAGES.index(stage)], self.mean_losses[STAGES.index(stage)]
        assert isinstance(metrics, MetricCollection)
        if len(target):
            metrics.update(logits, target.long())
            mean_loss.update(loss.detach(), len(target))  # type: ignore[operator]
        if training:
            self.log("train/loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
        # not by self.log's own mean: Lightning 2.6 divides by a whole number of samples a process
        name = "train/loss_epoch" if training else f"{stage}/loss"
        self.log(name, mean_loss, on_step=False, on_epoch=True)  # type: ignore[arg-type]
        self.log_dict(metrics, prog_bar=not training, on_step=False, on_epoch=True)
        return loss, logits

    def own(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """A batch of evaluation without the samples that Lightning repeats so that all processes have equally many."""
        loaders = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        batches = batches_of(loaders[0] if isinstance(loaders, list) else loaders)
        sampler = getattr(batches, "sampler", None)
        if not isinstance(sampler, DistributedSampler):
            return batch
        mine = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
        left = max(mine - batch_idx * batches.batch_size, 0)
        first: tuple[Tensor, Tensor] = apply_to_collection(batch, Tensor, lambda x: x[:left])  # inputs may be several
        return first

    @property
    def global_batch(self) -> int | None:
        """Training samples of an optimiser step, all processes together; None where the loader does not say."""
        if self.trainer.train_dataloader is None:  # before Lightning needs it
            self.trainer.fit_loop.setup_data()
        size = getattr(batches_of(self.trainer.train_dataloader), "batch_size", None)
        return None if size is None else size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)
        if self.global_batch is not None:
            self.log("train/global_batch", float(self.global_batch), on_step=True, on_epoch=False)
        return self.step(batch, "train")[0]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(self.own(batch, batch_idx), "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The logits and targets, for the callbacks that draw them."""
        batch = self.own(batch, batch_idx)
        return {"logits": self.step(batch, "test")[1], "target": batch[1]}

    def configure_optimizers(self) -> Any:
        steps, batch = self.trainer.estimated_stepping_batches, self.global_batch
        peak = self.optimisation.peak(batch)
        rank_zero_info(f"{batch or 'an unknown number of'} samples a step; the highest learning rate is {peak:g}")
        if peak > self.optimisation.lr and not self.optimisation.warmup_steps:
            rank_zero_warn(f"lr is {peak / self.optimisation.lr:g} times as high for {batch} samples; set warmup_steps")
        optimizer, schedule = self.optimisation.build(self, steps, batch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def batches_of(loader: Any) -> Any:
    """What puts a DataLoader's samples into batches; None where its dataset does, or where it is no DataLoader."""
    return getattr(loader, "batch_sampler", None)


def accuracies(num_classes: int) -> MetricCollection:
    """Of one label a sample: overall, mean over the classes, and top 5 where there are more classes."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "balanced_accuracy": MulticlassAccuracy(num_classes, average="macro"),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return MetricCollection(metrics)
