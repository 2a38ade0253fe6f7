"""What callbacks monitor is checked before training: that it is logged, and that their mode is the right one."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from nonlocal_nets.data.base import listed
from nonlocal_nets.run.checkpoints import ALWAYS_LOGGED, BestCheckpoint
from nonlocal_nets.run.errors import RunError
from nonlocal_nets.tasks import Task


class Monitors(pl.Callback):
    """Refuses a checkpoint or an early stopping that monitors what is never logged, or whose mode is the wrong one.

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
