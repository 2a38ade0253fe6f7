"""What is said at the end of a run is what happened."""

import logging
import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from nonlocal_nets.run.summary import Summary
from nonlocal_nets.tasks import Blocks, ImageClassification


@pytest.fixture
def said():
    """The one summary of a command, as a dictionary."""
    texts = []
    handler, logger = logging.Handler(), logging.getLogger("pytorch_lightning.utilities.rank_zero")
    handler.emit = lambda record: texts.append(record.getMessage())
    level = logger.getEffectiveLevel()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    def read():
        (summary,) = (text for text in texts if text.startswith("figures"))
        texts.clear()
        return dict(re.match(r"(\w+) +(.*)", line).groups() for line in summary.splitlines())

    yield read
    logger.removeHandler(handler)
    logger.setLevel(level)


def loader(samples):
    torch.manual_seed(0)
    images, labels = torch.randn(samples, 3, 16, 16), torch.randint(3, (samples,))
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def test_fit_validate_and_test(tmp_path, said):
    checkpoint = ModelCheckpoint(tmp_path / "run" / "checkpoints", monitor="val/loss", save_last=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=[Summary(), checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path / "run",
    )
    model = ImageClassification(3, "local_convnet", (3, 16, 16), blocks=Blocks(at="layer3"))
    trainer.fit(model, loader(10), loader(6))
    fit = said()
    assert fit["folder"] == str(tmp_path / "run")
    assert fit["best"] == f"val/loss {checkpoint.best_model_score:.4f}: {checkpoint.best_model_path}"
    assert f"val/accuracy {trainer.callback_metrics['val/accuracy']:.4f}" in fit["figures"]
    assert "train/" not in fit["figures"]
    speed = re.fullmatch(r"([\d.]+) samples/s in training \(20 samples\)", fit["speed"])
    assert float(speed[1]) > 0
    assert re.fullmatch(r"0 min \d+ s", fit["time"])

    (figures,) = trainer.validate(model, loader(6), verbose=False)
    assert said()["figures"] == ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    (figures,) = trainer.test(model, loader(6), verbose=False)
    tested = said()
    assert tested["figures"] == ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    assert tested.keys() == {"figures", "time", "folder"}


def test_time_of_validation_is_not_time_of_training(tmp_path, said, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("nonlocal_nets.run.summary.time", SimpleNamespace(monotonic=lambda: next(clock)))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        callbacks=[Summary()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = ImageClassification(3, "local_convnet", (3, 16, 16), blocks=Blocks(at="none"))
    trainer.fit(model, loader(12), loader(4))
    # ticks of 10 s: set-up, sanity check, training starts, validation starts, it ends, fit ends: 30 s less 10 s
    assert said()["speed"] == "0.6 samples/s in training (12 samples)"


def test_samples_are_those_of_all_processes():
    summary, module = Summary(), ImageClassification(3, "local_convnet", blocks=Blocks(at="none"))
    summary.setup(None, module, "fit")
    for samples in (3, 2):
        batch = torch.zeros(samples, 1), torch.zeros(samples)
        summary.on_train_batch_end(SimpleNamespace(world_size=2), module, None, batch, 0)
    assert summary.samples == 10


def test_minutes_and_the_best_checkpoint_not_the_last(tmp_path, said, monkeypatch):
    clock = iter([0, 100.2, 100.2])
    monkeypatch.setattr("nonlocal_nets.run.summary.time", SimpleNamespace(monotonic=lambda: next(clock)))
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss")
    checkpoint.best_model_score, checkpoint.current_score = torch.tensor(0.25), torch.tensor(0.5)
    checkpoint.best_model_path, checkpoint.last_model_path = "best.ckpt", "last.ckpt"
    figures = {"val/loss": torch.tensor(0.5), "train/loss": torch.tensor(1.0), "val/accuracy": torch.tensor(0.75)}
    trainer = SimpleNamespace(
        callback_metrics=figures,
        callbacks=[],
        checkpoint_callbacks=[checkpoint],
        default_root_dir=str(tmp_path),
        world_size=1,
    )
    summary = Summary()
    summary.setup(trainer, None, "fit")
    summary.on_fit_end(trainer, None)
    expected = {"figures": "val/loss 0.5000, val/accuracy 0.7500", "time": "1 min 40 s"}
    assert said() == expected | {"best": "val/loss 0.2500: best.ckpt", "folder": str(tmp_path)}
