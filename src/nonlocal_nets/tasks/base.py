"""The contract of a task: what it says of itself, and what it then gets for nothing.

A subclass builds its network and metrics, and says what it monitors, its training loss of a batch, and how a batch is
evaluated. The optimiser and its schedule, logging, FSDP, and counting each evaluated sample once are here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import pytorch_lightning as pl
from lightning_utilities import apply_to_collection
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DistributedSampler
from torchmetrics import MeanMetric, MetricCollection

from nonlocal_nets.nn.insert import check_attached
from nonlocal_nets.tasks.options import Optimizer, Schedule

STAGES = ("train", "val", "test")
OF_THE_LEARNING_RATE = ("base_values", "warmup_lr_init", "warmup_steps")  # in the state of a timm schedule


class Task(pl.LightningModule, ABC):
    """A network and how it learns.

    A subclass must define `monitor`, `mode`, `training_loss` and `evaluate`. What it may define has a default.

    Args:
        network: what is trained.
        metrics: for evaluation, and for training if `training_loss` updates them; each stage gets a copy.
        optimizer: the optimiser.
        schedule: its learning rate over the run.
        report: what there is to know of the network, logged when training starts.
    """

    monitor: str
    """The metric by which the best checkpoint is chosen, such as "val/accuracy"."""
    may_differ: frozenset[str] = frozenset({"input_size", "weights", "loss", "optimizer", "schedule"})
    """The arguments of which a checkpoint may have others, since a trained network computes the same without them."""
    mode: str
    """Whether the best value of `monitor` is the highest, "max", or the lowest, "min"."""

    def __init__(
        self,
        network: nn.Module,
        metrics: MetricCollection,
        optimizer: Optimizer,
        schedule: Schedule,
        report: str = "",
    ) -> None:
        super().__init__()
        self.network: nn.Module = network
        self.train_metrics, self.val_metrics, self.test_metrics = (metrics.clone(prefix=f"{s}/") for s in STAGES)
        # NaN stays NaN, which MeanMetric would leave out; its "disable" forgets the weights (torchmetrics 1.9.0)
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric(nan_strategy=float("nan")) for _ in STAGES)
        self.optimizer, self.schedule, self.report = optimizer, schedule, report

    # What a subclass says.

    @abstractmethod
    def training_loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch. May update `self.train_metrics`, which are logged if it does."""

    @abstractmethod
    def evaluate(self, batch: Any, metrics: MetricCollection) -> Mapping[str, Any] | None:
        """Update the metrics with a batch; returns what callbacks may look at.

        "loss" in it, the mean over the batch, is averaged over the samples and logged as val/loss or test/loss.
        """

    def inputs(self, batch: Any, stage: str) -> Any:
        """What the network is called with, a tuple where it takes several; by default the first of the batch.

        Args:
            batch: of the data.
            stage: "train", or "val", "test" or "predict".
        """
        return batch[0]

    def num_samples(self, batch: Any) -> int:
        """How many samples a batch has; by default the length of its last item, its targets."""
        return len(batch[-1])

    def first_samples(self, batch: Any, count: int) -> Any:
        """The first samples of a batch; by default the start of each tensor in it."""
        return apply_to_collection(batch, Tensor, lambda x: x[:count])

    def rows(self, batch: Any, prediction: Any) -> Iterable[Mapping[str, object]] | None:
        """The rows of predictions.csv, by column, for a batch and what `predict_step` made of it; None: no table."""
        return None

    def check_data(self, data: pl.LightningDataModule) -> None:
        """Raise a ValueError for data of another kind, before they meet the network."""

    # What it gets.

    def mode_of(self, name: str) -> str | None:
        """Whether the best value of what is logged under a name is the highest, "max", or the lowest, "min".

        None where neither the task nor the metric says.
        """
        if name == self.monitor:
            return self.mode
        metric = dict([*self.val_metrics.items(), *self.train_metrics.items()]).get(name)
        higher = False if name.rpartition("/")[2].startswith("loss") else getattr(metric, "higher_is_better", None)
        return None if higher is None else "max" if higher else "min"

    def logged(self) -> set[str]:
        """The names under which training and validation log. A subclass that logs more itself should add these."""
        of_training = {f"train/{name}" for name in ("loss_step", "loss_epoch", "lr", "global_batch")}
        return {"val/loss", *of_training, *self.train_metrics, *self.val_metrics}

    def forward(self, inputs: Any) -> Any:
        return self.network(*inputs) if isinstance(inputs, (tuple, list)) else self.network(inputs)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.check_data(data)

    def configure_model(self) -> None:
        """With Lightning's ModelParallelStrategy (FSDP2) each process keeps a share of every weight.

        The weights of one child of a stage, such as a residual block, are gathered for the time that they are used.
        """
        if self.device_mesh is None or any(isinstance(p, DTensor) for p in self.network.parameters()):
            return  # it is called before fit, test and predict alike
        units = [unit for stage in self.network.children() for unit in stage.children() if list(unit.parameters())]
        for module in [*units, self.network]:
            fully_shard(module, mesh=self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Once the strategy has converted the network.

        Raises:
            ValueError: a block that would not run.
        """
        check_attached(self.network)
        if self.report:
            rank_zero_info(self.report)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        self.train_loss.update(loss.detach(), self.num_samples(batch))
        self.log("train/loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)
        if self.global_batch_size is not None:
            self.log("train/global_batch", float(self.global_batch_size), on_step=True, on_epoch=False)
        self.log_means()
        return loss

    def log_means(self) -> None:
        """Log the figures of a training epoch, which are computed at its end."""
        # not by self.log's own mean: Lightning 2.6 divides by a whole number of samples in each process
        self.log("train/loss_epoch", self.train_loss, on_step=False, on_epoch=True)
        if any(metric.update_called for metric in self.train_metrics.values()):
            self.log_dict(self.train_metrics, on_step=False, on_epoch=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step(batch, batch_idx, "val", self.val_metrics, self.val_loss)

    def test_step(self, batch: Any, batch_idx: int) -> Mapping[str, Any] | None:
        """What `evaluate` returned; None for a batch of duplicates only."""
        return self._evaluation_step(batch, batch_idx, "test", self.test_metrics, self.test_loss)

    def _evaluation_step(
        self, batch: Any, batch_idx: int, stage: str, metrics: MetricCollection, mean_loss: MeanMetric
    ) -> Mapping[str, Any] | None:
        unique = self._without_duplicates(batch, batch_idx)
        # of a batch of duplicates the network still runs: with FSDP all processes must meet in it
        outputs = self.evaluate(batch, metrics.clone()) if unique is None else self.evaluate(unique, metrics)
        if outputs is not None and "loss" in outputs:
            if unique is not None:
                mean_loss.update(outputs["loss"].detach(), self.num_samples(unique))
            self.log(f"{stage}/loss", mean_loss, on_step=False, on_epoch=True)
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True)
        return None if unique is None else outputs

    def _without_duplicates(self, batch: Any, batch_idx: int) -> Any:
        """A batch of evaluation without the duplicates that DistributedSampler adds; None if nothing is left."""
        loaders = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        batches = _batch_sampler(loaders[0] if isinstance(loaders, list) else loaders)
        sampler = getattr(batches, "sampler", None)
        if not isinstance(sampler, DistributedSampler):
            return batch
        share = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
        left = share - batch_idx * batches.batch_size
        if left <= 0:
            return None
        if left >= self.num_samples(batch):
            return batch
        first = self.first_samples(batch, left)
        if self.num_samples(first) != left:
            given = f"got {self.num_samples(first)} samples instead of the first {left}"
            raise ValueError(f"{type(self).__name__} must define first_samples for batches like its own: {given}")
        return first

    @property
    def global_batch_size(self) -> int | None:
        """Training samples in an optimiser step of all processes together; None where the loader does not tell."""
        if self.trainer.train_dataloader is None:  # before Lightning needs it
            self.trainer.fit_loop.setup_data()
        size = getattr(_batch_sampler(self.trainer.train_dataloader), "batch_size", None)
        return None if size is None else size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def configure_optimizers(self) -> Any:
        steps, size = self.trainer.estimated_stepping_batches, self.global_batch_size
        peak = self.optimizer.peak(size)
        rank_zero_info(f"{size or 'an unknown number of'} samples in a step; the highest learning rate is {peak:g}")
        if peak > self.optimizer.lr and not self.schedule.warmup_steps:
            times = f"{peak / self.optimizer.lr:g} times as high"
            rank_zero_warn(f"the learning rate is {times} for {size} samples in a step; set schedule.warmup_steps")
        optimizer = self.optimizer.build(self, peak)  # all parameters, also those outside of the network
        schedule = self.schedule.build(optimizer, peak, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def no_weight_decay(self) -> set[str]:
        """The parameters that the network exempts from weight decay, beside norms and biases; timm asks for them."""
        names: set[str] = getattr(self.network, "no_weight_decay", set)()
        return {f"network.{name}" for name in names}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """timm's schedules count steps; a callback, such as StochasticWeightAveraging, may bring one of torch's."""
        if hasattr(scheduler, "step_update"):
            scheduler.step_update(self.trainer.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Options as plain dicts, so that the checkpoint loads with weights_only=True; Lightning makes them anew."""
        arguments = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        options = {
            name: asdict(value)
            for name, value in arguments.items()
            if is_dataclass(value) and not isinstance(value, type)
        }
        if options:
            arguments |= options | {"_instantiator": "pytorch_lightning.cli.instantiate_module"}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resumed run keeps its learning rate, but ends when the command says, not when it was once to end."""
        states = checkpoint.get("lr_schedulers", [])
        checkpoint["lr_schedulers"] = [{name: state[name] for name in OF_THE_LEARNING_RATE} for state in states]


def _batch_sampler(loader: Any) -> Any:
    """What puts the samples of a DataLoader into batches; None where its dataset does, or where it is no DataLoader."""
    return getattr(loader, "batch_sampler", None)
