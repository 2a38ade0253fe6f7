"""The last checkpoint of a run, and the best one that it tells of."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from nonlocal_nets.checkpoints.files import read


class LastCheckpoint(ModelCheckpoint):
    """Writes last.ckpt as often as the user wants checkpoints, by default every epoch, good or bad, and at the end.

    Lightning 2.6's `save_last` writes it only together with a new best one, from which a run would then go on.

    Args:
        words: arguments of the run's ModelCheckpoint.
    """

    def __init__(self, words: Any) -> None:
        often = {name: words[name] for name in ("every_n_train_steps", "train_time_interval", "every_n_epochs")}
        # at the end of an epoch: where only some are validated, Lightning would save after these
        super().__init__(filename="last", enable_version_counter=False, save_on_train_epoch_end=True, **often)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The end of a run is often between two intervals."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        """Not told to the loggers: wandb's would make it the artifact of the best one."""
        trainer.save_checkpoint(filepath, self.save_weights_only)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath


def best_checkpoint(last: Path) -> Path:
    """The best checkpoint that a run's last one tells of; a ValueError where it does not."""
    if not last.is_file():
        raise ValueError(f"no last checkpoint in {last.parent}")
    read(last)  # says why, if it is none
    states = torch.load(last, map_location="cpu", weights_only=True)["callbacks"]
    paths = [Path(state["best_model_path"]) for state in states.values() if state.get("best_model_score") is not None]
    if not paths:
        raise ValueError(f"{last} tells of no best checkpoint: nothing was monitored")
    return paths[0] if paths[0].is_file() else last.with_name(paths[0].name)  # the run's folder may have moved
