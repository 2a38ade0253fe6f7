"""The means over a training epoch cover all of it, also where the run was resumed in its middle."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torchmetrics import Metric

from nonlocal_nets.tasks import Task

KEY = "training_metrics"  # in a checkpoint


class EpochMeans(pl.Callback):
    """Puts what a task's metrics have seen of the epoch into checkpoints, that of all processes together."""

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}
        self.unlogged = False  # where a run was resumed after the last step of an epoch

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        seen = {name: metric for name, metric in training_metrics(pl_module).items() if metric.update_called}
        checkpoint[KEY] = {name: _of_all_processes(metric) for name, metric in seen.items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.states = checkpoint.get(KEY, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In the middle of an epoch only: one that has ended has its means."""
        states, self.states = self.states, {}
        self.unlogged = trainer.fit_loop.restarting and bool(states)
        if trainer.fit_loop.restarting:
            for name, metric in training_metrics(pl_module).items():
                if name in states:
                    # the first process gets what all have seen; they are added up again at the end of the epoch
                    whole = states[name] if trainer.is_global_zero else states[name] | {"values": {}}
                    restore(metric, whole)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.unlogged = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.unlogged and isinstance(pl_module, Task):
            pl_module.log_means()
        self.unlogged = False


def training_metrics(module: pl.LightningModule) -> dict[str, Metric]:
    """The loss and the metrics that a task keeps of a training epoch; none of another module."""
    return {"loss": module.train_loss, **dict(module.train_metrics.items())} if isinstance(module, Task) else {}


def _of_all_processes(metric: Metric) -> dict[str, Any]:
    with metric.sync_context():
        return state_of(metric)


def state_of(metric: Metric) -> dict[str, Any]:
    """A copy of what a metric has seen, in tensors and in lists of what is concatenated."""
    values = {
        name: value.clone() if isinstance(value, Tensor) else list(value) for name, value in metric.metric_state.items()
    }
    return {"updates": metric.update_count, "values": values}


def restore(metric: Metric, state: dict[str, Any]) -> None:
    """Let a metric have seen what is in a copy, and no more."""
    metric._update_count, metric._computed = state["updates"], None
    for name, value in state["values"].items():
        if isinstance(getattr(metric, name), Tensor):
            setattr(metric, name, value.to(metric.device))
        else:  # what is concatenated is a list, or in checkpoints of several processes a tensor
            parts = [value] if isinstance(value, Tensor) else value
            setattr(metric, name, [part.to(metric.device) for part in parts])
