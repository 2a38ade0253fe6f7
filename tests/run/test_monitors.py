"""A monitor that is never logged, and one that takes the worst for the best, are refused before training."""

from pathlib import Path

import pytest
import pytorch_lightning as pl

from nonlocal_nets.run.cli import main
from nonlocal_nets.tasks import ImageClassification
from tests.run.conftest import SMALL

pytestmark = pytest.mark.usefixtures("small_images")

STOPPING = "--trainer.callbacks+=EarlyStopping"


class NeverTrains(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        raise AssertionError("it trains")


class LogsMore(ImageClassification):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/more", 1.0)


def test_a_task_s_own_metric_is_known_from_the_sanity_check(refused):
    own = ["--model=tests.run.test_monitors.LogsMore", "--model.backbone=local_convnet", "--trainer.max_epochs=1"]
    best = ["--checkpoint.monitor=val/more", "--checkpoint.mode=max"]
    cli = fit(*own, *best)
    assert float(cli.trainer.checkpoint_callback.best_model_score) == 1
    line = refused(fit, *own, *best, "--id=y", "--trainer.num_sanity_val_steps=0")
    assert line.startswith("BestCheckpoint monitors 'val/more', which is never logged; there are")


def fit(*args):
    return main(["fit", *SMALL, "--id=x", *args])


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--checkpoint.monitor=val/f1"], "BestCheckpoint monitors 'val/f1', which is never logged; there are epoch, "),
        (
            [STOPPING, "--trainer.callbacks.monitor=val_loss"],
            "EarlyStopping monitors 'val_loss', which is never logged",
        ),
        ([STOPPING, "--trainer.callbacks.monitor=epoch"], "EarlyStopping monitors 'epoch', which is never logged"),
        (
            ["--trainer.num_sanity_val_steps=0", "--checkpoint.monitor=val/f1"],
            "BestCheckpoint monitors 'val/f1', which is never logged",
        ),
        (
            ["--trainer.limit_val_batches=0", "--checkpoint.monitor=val/loss"],
            "BestCheckpoint monitors 'val/loss', which is never logged; there are epoch, step, train/accuracy, ",
        ),
        (
            [STOPPING, "--trainer.callbacks.monitor=val/accuracy"],
            "EarlyStopping takes the worst val/accuracy for the best: mode must be 'max', got 'min'",
        ),
        (
            ["--checkpoint.monitor=val/loss", "--checkpoint.mode=max"],
            "BestCheckpoint takes the worst val/loss for the best: mode must be 'min', got 'max'",
        ),
        (["--checkpoint.mode=min"], "BestCheckpoint takes the worst val/accuracy for the best: mode must be 'max'"),
        (["--checkpoint.monitor=train/lr"], "checkpoint.mode must be min or max: whether higher train/lr is better is"),
    ],
)
def test_refused(refused, args, line):
    assert refused(fit, *args, "--trainer.callbacks+=tests.run.test_monitors.NeverTrains").startswith(line)


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
def test_the_direction_follows_from_the_metric(monitor, mode):
    cli = fit(f"--checkpoint.monitor={monitor}", STOPPING, "--trainer.callbacks.monitor=val/loss")
    assert cli.trainer.checkpoint_callback.mode == mode
    assert len(list(Path("runs/default/x/checkpoints").glob("epoch=*.ckpt"))) == 1
