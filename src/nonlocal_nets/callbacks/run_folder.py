"""Where callbacks leave their files."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint


def run_folder(trainer: pl.Trainer) -> Path:
    """The folder beside the checkpoints, or the current one where nothing is checkpointed."""
    checkpoint = trainer.checkpoint_callback
    return Path(checkpoint.dirpath or ".").parent if isinstance(checkpoint, ModelCheckpoint) else Path()
