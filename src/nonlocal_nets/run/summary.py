"""The results of a run, its duration, and its folder, logged at its end."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info

from nonlocal_nets.run.checkpoints import best_of
from nonlocal_nets.tasks import Task


class Summary(pl.Callback):
    """Logs at the end of fit, validate and test: the figures, the best checkpoint, the time, and the run's folder.

    The samples a second of a fit are those of training, all processes together, without the time of validation.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.started = self.training_started = self.evaluation_started = time.monotonic()
        self.evaluating, self.samples = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.training_started, self.evaluating = time.monotonic(), 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, Task):
            self.samples += pl_module.num_samples(batch) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluation_started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluating += time.monotonic() - self.evaluation_started
        if trainer.state.fn == TrainerFn.VALIDATING:
            log_lines(trainer, self.lines(trainer, "val"))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log_lines(trainer, self.lines(trainer, "test"))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        training = time.monotonic() - self.training_started - self.evaluating
        lines = self.lines(trainer, "val")
        if self.samples:  # none where a run that had ended is resumed
            lines["speed"] = f"{self.samples / training:.1f} samples/s in training ({self.samples} samples)"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
                reason = str(callback.stopping_reason_message).removesuffix(" Signaling Trainer to stop.")
                lines["ended"] = f"early, in epoch {callback.stopped_epoch}: {reason}"
        checkpoint = best_of(trainer)
        if checkpoint is not None and checkpoint.best_model_score is not None:
            best = f"{checkpoint.monitor} {checkpoint.best_model_score:.4f}"
            lines["best"] = f"{best}: {checkpoint.best_model_path}"
        log_lines(trainer, lines)

    def lines(self, trainer: pl.Trainer, stage: str) -> dict[str, str]:
        """Figures of a stage and wall time since set-up."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        figures = [f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith(f"{stage}/")]
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return {"figures": ", ".join(figures) or "none", "time": f"{minutes} min {seconds} s"}


def log_lines(trainer: pl.Trainer, lines: dict[str, str]) -> None:
    """Print the lines and the run's folder, once in a distributed run."""
    lines["folder"] = trainer.default_root_dir
    rank_zero_info("\n".join(f"{name:8}{text}" for name, text in lines.items()))
