"""What callbacks monitor is checked before training: that it is logged in time, and that their mode is right."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from nonlocal_nets.data.base import listed
from nonlocal_nets.run.checkpoints import ALWAYS_LOGGED, BestCheckpoint
from nonlocal_nets.run.errors import RunError
from nonlocal_nets.tasks import Task


class Monitors(pl.Callback):
    """Refuses a checkpoint or an early stopping that monitors what is never logged, or later, or with the wrong mode.

    What is logged in validation is known from the sanity check. Without one, and for training, it is what the task says
    (`Task.logged`).
    """

    def __init__(self) -> None:
        self.validated: set[str] = set()

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = set(trainer.callback_metrics)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first step.

        Raises:
            RunError: see above.
        """
        if not isinstance(pl_module, Task):
            return
        names = {name for name in pl_module.logged() if trainer.enable_validation or not name.startswith("val/")}
        names |= self.validated
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str):
                _check_name(callback, monitor, names)
                _check_mode(callback, monitor, pl_module.mode_of(monitor))
            if isinstance(callback, EarlyStopping):
                _check_time(callback, trainer, {"train/loss_epoch", *pl_module.train_metrics}, self.validated)


def _check_name(callback: pl.Callback, monitor: str, names: set[str]) -> None:
    if isinstance(callback, ModelCheckpoint):
        names = {*names, *ALWAYS_LOGGED}
    of_the_task = isinstance(callback, BestCheckpoint) and not callback.given_monitor  # perhaps without a validation
    if monitor not in names and not of_the_task:
        given = f"{type(callback).__name__} monitors {monitor!r}"
        raise RunError(f"{given}, which is never logged; there are {listed(sorted(names), 160)}")


def _check_mode(callback: pl.Callback, monitor: str, better: str | None) -> None:
    mode = getattr(callback, "mode", None)
    if isinstance(callback, BestCheckpoint) and not callback.mode_is_known:
        raise RunError(f"checkpoint.mode must be min or max: whether higher {monitor} is better is not known")
    if better is not None and mode in ("min", "max") and mode != better:
        given = f"{type(callback).__name__} takes the worst {monitor} for the best"
        raise RunError(f"{given}: mode must be {better!r}, got {mode!r}")


def _check_time(stopping: EarlyStopping, trainer: pl.Trainer, of_epochs: set[str], validated: set[str]) -> None:
    """Refuse one that looks before its metric is first logged, for which Lightning ends the run after its first epoch.

    Args:
        stopping: an early stopping.
        trainer: of the run.
        of_epochs: what is logged at the end of a training epoch, which is after its validations.
        validated: what is logged in validation.
    """
    name, at_the_end = stopping.monitor, bool(stopping._check_on_train_epoch_end)
    of_validation = name in validated or name.startswith("val/")
    if at_the_end and of_validation and trainer.check_val_every_n_epoch != 1:
        when, value = "after each epoch, and not every one has a validation", "false"
    elif not at_the_end and name in of_epochs:
        when, value = "after a validation, before it is logged", "true"
    else:
        return
    raise RunError(f"EarlyStopping looks at {name!r} {when}: give check_on_train_epoch_end={value}")
