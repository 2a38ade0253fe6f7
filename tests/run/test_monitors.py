"""A monitor that is never logged, and one that takes the worst for the best, are refused before training."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from nonlocal_nets.run.checkpoints import BestCheckpoint
from nonlocal_nets.run.cli import main
from nonlocal_nets.run.errors import RunError
from nonlocal_nets.run.monitors import Monitors
from nonlocal_nets.tasks import Blocks, ImageClassification
from tests.run.conftest import SMALL

STOPPING = "--trainer.callbacks+=EarlyStopping"


class NeverTrains(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        raise AssertionError("it trains")


class LogsMore(ImageClassification):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/more", 1.0)


@pytest.mark.usefixtures("small_images")
def test_the_command_line_refuses_with_one_line(refused):
    words = [*SMALL, "--checkpoint.monitor=val/f1", "--trainer.callbacks+=tests.run.test_monitors.NeverTrains"]
    line = "BestCheckpoint monitors 'val/f1', which is never logged; there are epoch, "
    assert refused(main, ["fit", *words]).startswith(line)


@pytest.mark.usefixtures("small_images")
def test_the_command_line_finds_the_direction():
    words = ["--checkpoint.monitor=val/loss", STOPPING, "--trainer.callbacks.monitor=val/loss", "--id=x"]
    cli = main(["fit", *SMALL, *words])
    assert cli.trainer.checkpoint_callback.mode == "min"
    assert len(list(Path("runs/default/x/checkpoints").glob("epoch=*.ckpt"))) == 1


def train(folder, *callbacks, task=ImageClassification, best=None, **arguments):
    """Two epochs of two batches of a sample, without the command line. Returns the trainer."""
    best = BestCheckpoint(dirpath=folder, filename="{epoch}", auto_insert_metric_name=False, **(best or {}))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        log_every_n_steps=1,
        callbacks=[Monitors(), *callbacks, best],
        **quiet | arguments,
    )
    network = task(2, "local_convnet", (3, 16, 16), Blocks(at="none"))
    samples = DataLoader([(torch.zeros(3, 16, 16), k) for k in range(2)])
    trainer.fit(network, samples, samples)
    return trainer


def test_a_task_s_own_metric_is_known_from_the_sanity_check(tmp_path):
    best = {"monitor": "val/more", "mode": "max"}
    trainer = train(tmp_path, task=LogsMore, best=best)
    assert float(trainer.checkpoint_callback.best_model_score) == 1
    with pytest.raises(RunError, match="BestCheckpoint monitors 'val/more', which is never logged; there are"):
        train(tmp_path / "other", NeverTrains(), task=LogsMore, best=best, num_sanity_val_steps=0)


@pytest.mark.parametrize(
    ("best", "stopping", "arguments", "line"),
    [
        ({"monitor": "val/f1"}, None, {}, "BestCheckpoint monitors 'val/f1', which is never logged; there are epoch, "),
        ({}, "val_loss", {}, "EarlyStopping monitors 'val_loss', which is never logged"),
        ({}, "epoch", {}, "EarlyStopping monitors 'epoch', which is never logged"),
        (
            {"monitor": "val/f1"},
            None,
            {"num_sanity_val_steps": 0},
            "BestCheckpoint monitors 'val/f1', which is never logged",
        ),
        (
            {"monitor": "val/loss"},
            None,
            {"limit_val_batches": 0},
            "BestCheckpoint monitors 'val/loss', which is never logged; there are epoch, step, train/accuracy, ",
        ),
        (
            {},
            "val/accuracy",
            {},
            "EarlyStopping takes the worst val/accuracy for the best: mode must be 'max', got 'min'",
        ),
        (
            {"monitor": "val/loss", "mode": "max"},
            None,
            {},
            "BestCheckpoint takes the worst val/loss for the best: mode must be 'min', got 'max'",
        ),
        ({"mode": "min"}, None, {}, "BestCheckpoint takes the worst val/accuracy for the best: mode must be 'max'"),
        (
            {"monitor": "train/lr"},
            None,
            {},
            "checkpoint.mode must be min or max: whether higher train/lr is better is",
        ),
    ],
)
def test_refused(tmp_path, best, stopping, arguments, line):
    callbacks = [NeverTrains(), *([EarlyStopping(stopping)] if stopping else [])]
    with pytest.raises(RunError) as error:
        train(tmp_path, *callbacks, best=best, **arguments)
    assert str(error.value).startswith(line)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val/loss", "min"),
        ("val/balanced_accuracy", "max"),
        ("train/accuracy", "max"),
        ("train/loss_epoch", "min"),
        ("step", "max"),
    ],
)
def test_the_direction_follows_from_the_metric(tmp_path, monitor, mode):
    trainer = train(tmp_path, EarlyStopping("val/loss"), best={"monitor": monitor})
    assert trainer.checkpoint_callback.mode == mode
    assert len(list(tmp_path.glob("*.ckpt"))) == 1


@pytest.mark.parametrize(
    ("monitor", "looks", "arguments", "line"),
    [
        (
            "val/loss",
            True,
            {"check_val_every_n_epoch": 2},
            "after each epoch, and not every one has a validation: give",
        ),
        ("train/loss_epoch", None, {"val_check_interval": 0.5}, "after a validation, before it is logged: give"),
        ("train/accuracy", None, {"check_val_every_n_epoch": 2}, "after a validation, before it is logged: give"),
        ("train/accuracy", False, {}, "after a validation, before it is logged: give check_on_train_epoch_end=true"),
    ],
)
def test_an_early_stopping_that_looks_too_early_is_refused(tmp_path, monitor, looks, arguments, line):
    mode = "max" if monitor.endswith("accuracy") else "min"
    stopping = EarlyStopping(monitor, mode=mode, check_on_train_epoch_end=looks)
    with pytest.raises(RunError, match=f"EarlyStopping looks at '{monitor}' {line}"):
        train(tmp_path, NeverTrains(), stopping, **arguments)


@pytest.mark.parametrize(
    ("monitor", "looks", "arguments"),
    [
        ("val/loss", None, {"check_val_every_n_epoch": 2}),
        ("val/loss", None, {"check_val_every_n_epoch": None, "val_check_interval": 2}),
        ("val/loss", False, {"val_check_interval": 0.5}),
        ("train/loss_step", None, {"check_val_every_n_epoch": 2}),
        ("train/loss_epoch", True, {"val_check_interval": 0.5}),
    ],
)
def test_one_that_looks_in_time_is_not(tmp_path, monitor, looks, arguments):
    stopping = EarlyStopping(monitor, check_on_train_epoch_end=looks)
    train(tmp_path, stopping, **arguments)
    assert torch.isfinite(stopping.best_score)
