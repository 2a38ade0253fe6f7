"""Pictures are shown by TensorBoard and wandb as well. (What wandb keeps of them: tests/run/test_wandb.py.)"""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nonlocal_nets.callbacks.publish import publish


def test_tensorboard_gets_the_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    path = tmp_path / "attention.png"
    Image.fromarray(pixels).save(path)
    logger = TensorBoardLogger(tmp_path, name="logs")
    publish(SimpleNamespace(loggers=[logger, CSVLogger(tmp_path)], global_step=7), path)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    (event,) = events.Images("attention.png")
    assert (event.step, event.width, event.height) == (7, 6, 4)
    (tmp_path / "seen.png").write_bytes(event.encoded_image_string)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "seen.png")), pixels)


def test_wandb_gets_pictures_as_images_and_animations_as_videos(tmp_path):
    logger = mock.create_autospec(WandbLogger, instance=True)
    picture, film = (str(tmp_path / f"attention-0.{ending}") for ending in ("png", "gif"))
    for path in (picture, film):
        publish(SimpleNamespace(loggers=[logger], global_step=7), Path(path))
    logger.log_image.assert_called_once_with("attention-0.png", [picture], 7)
    logger.log_video.assert_called_once_with("attention-0.gif", [film], 7, format=["gif"])
