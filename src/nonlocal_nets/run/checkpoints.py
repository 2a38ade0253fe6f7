"""The checkpoints of a run: written completely or not at all, best and last, and which of them to resume from."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from nonlocal_nets.run.folder import LAST
from nonlocal_nets.run.non_finite import has_nan
from nonlocal_nets.weights import read

ALWAYS_LOGGED = ("epoch", "step")  # Lightning gives them to every ModelCheckpoint; the highest is the newest
PART = ".part"  # ending of a file that is being written


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the one before is whole. The message names the file, in one line."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a new file, flushes it to the disk, and then renames it over the old one.

    Even if the process is killed or the disk is full, a checkpoint is always the old one or the new one. Lightning
    2.6 writes in the folder for temporary files and copies from there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + PART)
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's, when its writer cannot finish
            part.unlink(missing_ok=True)
            reason = getattr(error.__context__ or error, "strerror", None) or str(error).partition("\n")[0]
            kept = f"; the one before, {path}, is whole" if path.is_file() else ""
            raise CheckpointWriteError(f"cannot write the checkpoint {path}: {reason}{kept}") from error


def load(path: Path) -> dict[str, Any]:
    """All that is in a checkpoint; its tensors stay on the disk. A ValueError says why a file is none."""
    weights = read(path)
    if path.suffix == ".safetensors":
        return {"state_dict": weights}
    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))


def newest(folder: Path, resume: bool = False) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and why others were passed over.

    last.ckpt, or if that cannot be read the one after the most steps. Times of files say nothing: copying changes them.

    Args:
        folder: of the checkpoints.
        resume: whether training is to go on, for which weights alone are not enough.
    """
    passed, others = [], []
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: (path.name != LAST, path.name)):
        try:
            saved = load(path)
            if resume and "optimizer_states" not in saved:
                raise ValueError(f"{str(path)!r} holds weights only")
        except ValueError as error:
            passed.append(str(error))
            continue
        if path.name == LAST:
            return path, passed
        others.append((int(saved.get("global_step", 0)), path))
    return (max(others)[1] if others else None), passed


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which by default monitors what the task says, in the direction that it says.

    The best are always weights that were validated: where validation logs the monitored metric, they are considered
    after each validation (or after that of every n-th epoch), and every_n_train_steps and train_time_interval only tell
    how often last.ckpt is written. Lightning 2.6 would give weights of later steps the value of the last validation.

    Args:
        monitor: the metric by which the best checkpoint is chosen; null: that of the task.
        mode: "max" if the highest is the best, "min" if the lowest; null: what the metric calls better.
        **kwargs: arguments of ModelCheckpoint.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, **kwargs: Any) -> None:
        super().__init__(monitor=monitor or "of the task", mode=mode or "min", **kwargs)
        try:
            self._format_checkpoint_name(self.filename, {"epoch": torch.tensor(0), "step": torch.tensor(0)})
        except ValueError as error:
            raise ValueError(f"checkpoint.filename={self.filename!r} is no format: {error}") from error
        if self.filename == Path(LAST).stem:
            raise ValueError(f"checkpoint.filename={self.filename!r} is the name of the last checkpoint")
        self.given_monitor, self.given_mode, self.mode_is_known = monitor, mode, mode is not None
        self.resumed, self.of_validation, self.validated_step = False, False, -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.monitor = self.given_monitor or getattr(pl_module, "monitor", None)
        mode_of = getattr(pl_module, "mode_of", None)
        newest_is_best = "max" if self.monitor in ALWAYS_LOGGED else None
        known = self.given_mode or (mode_of and mode_of(self.monitor)) or newest_is_best
        self.mode, self.mode_is_known = known or "min", known is not None
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of a run whose folder was moved, or is named in another way: Lightning would forget its best ones."""
        here = {path: str(Path(str(self.dirpath)) / Path(path).name) for path in state_dict["best_k_models"]}
        if all(Path(path).is_file() for path in here.values()):
            names = ("best_model_path", "kth_best_model_path")
            paths = {name: here.get(state_dict[name], state_dict[name]) for name in names}
            values = {here[path]: value for path, value in state_dict["best_k_models"].items()}
            state_dict = state_dict | paths | {"best_k_models": values, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)
        self.resumed = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.resumed:
            found = [path for path in self.best_k_models if Path(path).is_file()]
            self._forget_all_but(trainer.strategy.broadcast(found))

    def _forget_all_but(self, found: list[str]) -> None:
        """A run that was killed may have replaced checkpoints since the one from which it goes on."""
        if len(found) == len(self.best_k_models):
            return
        self.best_k_models = {path: self.best_k_models[path] for path in found}
        best = (min if self.mode == "min" else max)(found, key=lambda path: self.best_k_models[path], default="")
        self.best_model_path, self.best_model_score = best, self.best_k_models.get(best)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._of_steps(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._of_steps(trainer):
            return super().on_validation_end(trainer, pl_module)
        logged = trainer.fit_loop.epoch_loop.val_loop._results.metrics(False)["callback"]
        self.of_validation, self.validated_step = self.monitor in logged, trainer.global_step
        if self.of_validation and not self._should_save_on_train_epoch_end(trainer):
            self._consider(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._of_steps(trainer):
            return super().on_train_epoch_end(trainer, pl_module)
        validated = self.validated_step == trainer.global_step and self._should_save_on_train_epoch_end(trainer)
        of_training = not self.of_validation and self.monitor in trainer.callback_metrics
        if validated or of_training:
            self._consider(trainer)

    def _of_steps(self, trainer: pl.Trainer) -> bool:
        """Whether each step has a value of its own."""
        logged = trainer.fit_loop.epoch_loop._results.metrics(True)["callback"]
        return self.monitor in (None, "epoch", "step", *logged)

    def _consider(self, trainer: pl.Trainer) -> None:
        due = (trainer.current_epoch + 1) % max(self._every_n_epochs, 1) == 0
        if due and not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            if self._last_global_step_saved == trainer.global_step:
                self._save_last_checkpoint(trainer, candidates)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """A network that is not finite is never the best; argmax takes NaN for the first class, which may be right."""
        losses = [value for name, value in trainer.callback_metrics.items() if name.rpartition("/")[2] == "loss"]
        known = [value for value in (current, *losses) if value is not None]
        finite = all(bool(value.isfinite().all()) for value in known) and not has_nan(trainer.lightning_module)
        if trainer.strategy.reduce_boolean_decision(finite):
            return super().check_monitor_top_k(trainer, current)
        reason = "its weights, its loss or what is monitored are not finite"
        rank_zero_warn(f"step {trainer.global_step} is not among the best: {reason}")
        return False

    def file_exists(self, filepath: Any, trainer: pl.Trainer) -> bool:
        """A resumed run writes again what it wrote after the checkpoint from which it goes on, under the same name."""
        checkpoints = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        known = {path for each in checkpoints for path in (*each.best_k_models, each.best_model_path)}
        return (not self.resumed or str(filepath) in known) and super().file_exists(filepath, trainer)


def best_of(trainer: pl.Trainer) -> ModelCheckpoint | None:
    """What keeps the best checkpoints of a run; a user's own ModelCheckpoint only where there is no other."""
    found = sorted(trainer.checkpoint_callbacks, key=lambda callback: not isinstance(callback, BestCheckpoint))
    return next((callback for callback in found if isinstance(callback, ModelCheckpoint)), None)


class LastCheckpoint(ModelCheckpoint):
    """Writes last.ckpt as often as the user wants checkpoints, by default every epoch, good or bad, and at the end.

    Lightning 2.6's `save_last` writes it only together with a new best one, from which a run would then go on.

    Args:
        dirpath: the folder of the checkpoints.
        arguments: those of the run's BestCheckpoint.
    """

    def __init__(self, dirpath: Path, arguments: Any) -> None:
        often = {name: arguments[name] for name in ("every_n_train_steps", "train_time_interval", "every_n_epochs")}
        # at the end of an epoch: where only some are validated, Lightning would save after these
        often |= {"save_on_train_epoch_end": True, "enable_version_counter": False}
        self.path = dirpath / LAST
        super().__init__(dirpath, filename=self.path.stem, **often)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Too early: the row of the step is not logged yet, and the gradients of half a step would not be saved."""

    def after_step(self, trainer: pl.Trainer) -> None:
        """See `loops.EpochLoop`."""
        super().on_train_batch_end(trainer, trainer.lightning_module, None, None, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Too early: the row of the epoch is not logged yet."""

    def after_epoch(self, trainer: pl.Trainer) -> None:
        """See `loops.FitLoop`."""
        due = self._every_n_epochs > 0 and trainer.current_epoch % self._every_n_epochs == 0
        if due:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The end of a run is often between two intervals; what its last step has saved knows no later validation."""
        if not self._every_n_epochs:
            self._last_global_step_saved = -1
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Without a word to the loggers: wandb's would make it the artifact of the best one."""
        trainer.save_checkpoint(filepath, self.save_weights_only)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath


def best_checkpoint(last: Path) -> Path:
    """The best checkpoint of a run, as recorded in its last one; a ValueError where none is recorded."""
    if not last.is_file():
        raise ValueError(f"no last checkpoint in {last.parent}")
    found = load(last).get("callbacks", {})
    states = {key: state for key, state in found.items() if key.startswith(BestCheckpoint.__name__)} or found
    paths = [Path(state["best_model_path"]) for state in states.values() if state.get("best_model_score") is not None]
    if not paths:
        raise ValueError(f"{last} records no best checkpoint: nothing was monitored")
    beside = last.with_name(paths[0].name)  # first: the folder may be a copy
    there = paths[0].is_file() and (not beside.is_file() or beside.samefile(paths[0]))
    return paths[0] if there else beside
