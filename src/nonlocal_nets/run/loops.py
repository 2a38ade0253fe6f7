"""Lightning's loops of training, which go on after a checkpoint with what an undisturbed run would do next.

Lightning 2.6 skips a validation that was due when the checkpoint was written, the end of the epoch after it, and counts
some batches and steps twice.
"""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.utilities import rank_zero_info


class ValidationLoop(_EvaluationLoop):
    """Knows whether it has come to its end since the last step."""

    ended = False

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = not self.trainer.sanity_checking
        super()._on_evaluation_end(*args, **kwargs)


class EpochLoop(_TrainingEpochLoop):
    """A checkpoint records what was left of its step: a validation that was due, and the end of the epoch.

    Callbacks with `after_step(trainer)` are called after each step of the optimiser, once its row is logged, before a
    validation. `left` is that of the checkpoint from which training goes on, until it is done: "validation", "nothing"
    (but the end of the epoch, after its last step), or None after an epoch that had ended.
    """

    val_loop: ValidationLoop
    left: str | None = None
    _validates: bool | None = None  # whether the rest of a step does, where it is that of a checkpoint

    def on_save_checkpoint(self) -> dict[str, Any]:
        fetcher, left = self.trainer.fit_loop._data_fetcher, None
        if self.trainer.fit_loop.in_epoch and fetcher is not None:
            due = self._should_check_val_fx(fetcher) and not self.val_loop.ended
            left = "validation" if due else "nothing"
        return super().on_save_checkpoint() | {"left": left}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.left = state_dict.get("left", "nothing")
        progress: Any
        for progress in (self.batch_progress.total, self.batch_progress.current):
            progress.completed = progress.processed  # Lightning counts on after callbacks have saved

    def run(self, data_fetcher: _DataFetcher) -> None:
        if not self.restarting:
            self.left = None
        super().run(data_fetcher)
        self.left = None

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Another step, or, first after a resume, what was left of the last one."""
        resumed, left, self.left = self.restarting, self.left, None
        if resumed:
            self.trainer.fit_loop.restarting = False  # with the loops in it
        if resumed and left:
            self._validates = left == "validation"
            return
        self.val_loop.ended = False
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        if self._validates is None and not self._should_accumulate():
            _tell(self.trainer, "after_step")
        super().on_advance_end(data_fetcher)
        self._validates = None

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        return super()._should_check_val_fx(data_fetcher) if self._validates is None else self._validates


class FitLoop(_FitLoop):
    """Goes on in the middle of an epoch, or with the next one; a run that was stopped early does not go on.

    Callbacks with `after_epoch(trainer)` are called after each epoch, once its row is logged.
    """

    epoch_loop: EpochLoop

    @property
    def in_epoch(self) -> bool:
        """Whether training is between the first step of an epoch and what is done at its end."""
        epochs: Any = self.epoch_progress.current
        begun = self.epoch_loop.batch_progress.current.ready > 0
        return begun and bool(epochs.ready == epochs.started > epochs.processed)

    @_FitLoop.restarting.setter  # type: ignore[untyped-decorator]
    def restarting(self, restarting: bool) -> None:
        """Lightning takes an epoch that has ended for an unfinished one where there is a max_steps."""
        epochs: Any = self.epoch_progress.current
        _Loop.restarting.fset(self, restarting and epochs.ready != epochs.processed)  # type: ignore[attr-defined]

    @property
    def done(self) -> bool:
        return self.epoch_loop.left is None and super().done

    def on_advance_end(self) -> None:
        super().on_advance_end()
        _tell(self.trainer, "after_epoch")

    def on_save_checkpoint(self) -> dict[str, Any]:
        trainer = self.trainer
        early = [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]  # type: ignore[attr-defined]
        stopped = trainer.should_stop and any(each.stopped_epoch >= trainer.current_epoch - 1 for each in early)
        return super().on_save_checkpoint() | {"stopped_early": stopped}

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        super().load_state_dict(state_dict, prefix)
        batches = self.epoch_loop.batch_progress
        progress: Any
        for progress in (self.epoch_progress.total, self.epoch_progress.current):
            if progress.started < progress.ready:  # between two epochs
                progress.ready = progress.started
            elif batches.current.ready and not batches.is_last_batch:  # cut short, as by max_steps
                progress.processed = progress.completed = progress.ready - 1
        self.restarting = True
        self._stop(state_dict[prefix + "state_dict"].get("stopped_early", False))

    def _stop(self, stopped_early: bool) -> None:
        if stopped_early and any(isinstance(each, EarlyStopping) for each in self.trainer.callbacks):  # type: ignore[attr-defined]
            rank_zero_info("EarlyStopping had ended this run")
            self.trainer.should_stop = True


def _tell(trainer: pl.Trainer, hook: str) -> None:
    """Call a hook, which Lightning has not, of the callbacks that have it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, hook):
            getattr(callback, hook)(trainer)


def resumable(trainer: pl.Trainer) -> None:
    """Make a trainer's loops these, where they are: they may have their data already."""
    for loop, kind in (
        (trainer.fit_loop, FitLoop),
        (trainer.fit_loop.epoch_loop, EpochLoop),
        (trainer.fit_loop.epoch_loop.val_loop, ValidationLoop),
    ):
        loop.__class__ = kind
