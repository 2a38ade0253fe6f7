"""A loss or a gradient that is not finite ends the run before it reaches a checkpoint, or its step is skipped."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from nonlocal_nets.data.base import listed
from nonlocal_nets.run.epoch_means import restore, state_of, training_metrics
from nonlocal_nets.run.errors import RunError
from nonlocal_nets.run.samples import names

SWITCH = "--non_finite.max_skipped"


class NonFinite(pl.Callback):
    """Ends a run whose loss or gradient is NaN or infinite: names the step and the samples. last.ckpt is from before.

    Steps that a GradScaler skips by design, as 16-mixed does while it looks for its scale, do not count. On a GPU the
    steps are checked together, every `log_every_n_steps` and before each validation and checkpoint, so that it need not
    wait in each; where steps may be skipped, it does.

    Args:
        max_skipped: the share of an epoch's steps that may be skipped instead, but at least one; 0: none. The weights,
            the state of the optimiser, running means and the figures of the epoch stay as they were before such a step.

    Raises:
        ValueError: a share that is not in [0, 1).
    """

    def __init__(self, max_skipped: float = 0.0) -> None:
        if not 0 <= max_skipped < 1:
            raise ValueError(f"non_finite.max_skipped must be a share in [0, 1), got {max_skipped}")
        self.max_skipped = max_skipped
        self.epoch, self.skipped = 0, 0  # steps of this epoch
        self.batches: list[int] = []  # of the step in progress
        self.losses: list[Tensor] = []  # of each of them: whether it is not finite
        self.unchecked: list[tuple[int, list[int], Tensor]] = []  # step, its batches, and flags: gradient, losses
        self.before: Before | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.skipped = state_dict["epoch"], state_dict["skipped"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.batches, self.losses, self.unchecked = [], [], []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch != self.epoch:
            self.epoch, self.skipped = trainer.current_epoch, 0
        if self.max_skipped and not self.batches:
            self.before = Before(pl_module)
        self.batches.append(batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.losses.append(~loss.detach().isfinite().all())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        gradient = torch.tensor(False, device=pl_module.device) if scaled else ~has_finite_gradient(pl_module)
        self.unchecked.append((trainer.global_step, self.batches, torch.stack([gradient, *self.losses])))
        self.batches, self.losses = [], []
        later = on_an_accelerator(pl_module) and not self.max_skipped
        if later and len(self.unchecked) < trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        if message := self._first(trainer):
            self._skip(trainer, message)
            optimizer.zero_grad(set_to_none=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check(trainer)

    def _check(self, trainer: pl.Trainer) -> None:
        """Before weights are validated or saved, look at the steps that have not been looked at."""
        if self.unchecked and (message := self._first(trainer)):
            self._skip(trainer, message)

    def _first(self, trainer: pl.Trainer) -> str | None:
        """What there is to say of the first step that is not finite in any process; None where all are finite."""
        steps, self.unchecked = self.unchecked, []
        bad = torch.stack([flags.any() for *_, flags in steps]).tolist()
        if not trainer.strategy.reduce_boolean_decision(any(bad), all=False):
            return None
        found = [_describe(trainer, *steps[bad.index(True)])] if any(bad) else []
        found = [each for texts in _gathered(found) for each in texts]
        of_losses = [text for is_loss, text in found if is_loss]  # a loss makes the gradients of all processes so
        return "; ".join(dict.fromkeys(of_losses or [text for _, text in found[:1]]))

    def _skip(self, trainer: pl.Trainer, message: str) -> None:
        """Undo what a step has changed before its end.

        Raises:
            RunError: it may not be skipped.
        """
        if self.before is None:
            raise RunError(f"{message}; {SWITCH}=0.01 skips such steps")
        self.skipped += 1
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        if self.skipped > max(1, self.max_skipped * steps):
            many = f"{self.skipped} such steps in this epoch are too many"
            raise RunError(f"{message}; {many}, {SWITCH} is {self.max_skipped}")
        self.before.restore()
        rank_zero_warn(f"skipped: {message}")


class Before:
    """What the forward pass of a step changes: running means, and the figures of the epoch."""

    def __init__(self, module: pl.LightningModule) -> None:
        self.buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        self.metrics = [(metric, state_of(metric)) for metric in training_metrics(module).values()]

    def restore(self) -> None:
        for buffer, value in self.buffers:
            buffer.copy_(value)
        for metric, state in self.metrics:
            restore(metric, state)


def on_an_accelerator(module: pl.LightningModule) -> bool:
    """Whether reading a result waits for all that was queued before it."""
    return module.device.type != "cpu"


def has_finite_gradient(module: torch.nn.Module) -> Tensor:
    """Whether all gradients are finite, those of this process: a boolean on their device, which is not waited for."""
    found = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return largest(each._values() if each.is_sparse else each for each in found).isfinite()


def has_nan(module: torch.nn.Module) -> bool:
    """Whether a weight or a running mean is NaN, of a sharded network those of this process."""
    values = (*module.parameters(), *module.buffers())
    return bool(largest(value.detach() for value in values if value.is_floating_point()).isnan())


def largest(values: Iterable[Tensor]) -> Tensor:
    """The largest absolute value in this process, a scalar; NaN if there is one, and unlike a sum no overflow."""
    local = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    return torch.nn.utils.get_total_norm(local, torch.inf)


def _describe(trainer: pl.Trainer, step: int, batches: list[int], flags: Tensor) -> tuple[bool, str]:
    """Whether a loss of a step is not finite, else its gradient, and a text that says so."""
    losses = flags.tolist()[1:]
    of_losses = [batch for batch, bad in zip(batches, losses, strict=False) if bad]
    kind = "loss" if any(losses) else "gradient"
    samples = listed(names(trainer, of_losses or batches), 110)
    return any(losses), f"the {kind} of step {step + 1} (epoch {trainer.current_epoch}) is not finite; {samples}"


def _gathered(found: list[Any]) -> list[list[Any]]:
    """What all processes have found."""
    if not torch.distributed.is_initialized():
        return [found]
    of_all: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_all, found)
    return of_all
