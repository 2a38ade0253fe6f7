"""Pictures of a run's folder, in its loggers as well."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger


def publish(trainer: pl.Trainer, path: Path) -> None:
    """Show a picture or an animation in TensorBoard and wandb, under its file's name; on the first process.

    TensorBoard shows the first frame of an animation.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(path.name, pixels, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger) and path.suffix == ".gif":
            logger.log_video(path.name, [str(path)], trainer.global_step, format=["gif"])
        elif isinstance(logger, WandbLogger):
            logger.log_image(path.name, [str(path)], trainer.global_step)
