"""A run that is killed and resumed, from an epoch's end or middle, ends with the very weights of one that is not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nonlocal_nets.data import image_folder
from nonlocal_nets.run.cli import main

CONFIG = str(Path(__file__).parents[2] / "configs" / "image" / "cued_digits.yaml")
WORDS = [
    "--config",
    CONFIG,
    "--data.batch_size=4",
    "--data.num_workers=2",
    "--model.loss.label_smoothing=0.1",
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
KILL = """
import os, signal, sys
import pytorch_lightning as pl, torch
from nonlocal_nets.run import cli

torch.set_num_threads(1)

class Kill(pl.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGKILL)

cli.Predictions = Kill
cli.main(sys.argv[1:])
"""


def cued_digits(folder):
    return ["--data.train_samples=24", "--model.mixup=0.3"]


def augmented_images(folder):
    """Random crops and mirrors, drawn in the workers."""
    fake = [f"--data.{name}={value}" for name, value in image_folder.fake(folder).items()]
    return ["--data=ImageFolder", *fake, "--data.image_size=16", "--data.batch_size=2", "--data.scale=[0.3, 1.0]"]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")  # exactly
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it should, on a resume
@pytest.mark.parametrize(
    ("data", "every", "step"),
    [
        pytest.param(cued_digits, "epochs=1", 4, marks=pytest.mark.slow),
        pytest.param(cued_digits, "train_steps=3", 6, marks=pytest.mark.slow),
        pytest.param(augmented_images, "train_steps=3", 6, marks=pytest.mark.slow),  # fast ones: test_survival.py
    ],
)
def test_killed_and_resumed_is_bit_identical(tmp_path, monkeypatch, data, every, step):
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, *data(tmp_path / "data"), f"--checkpoint.every_n_{every}"]
    whole = main(["fit", *words, "--id=whole"])
    killed = subprocess.run([sys.executable, "-c", KILL, "fit", *words, "--id=killed"], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    before = torch.load("runs/cued_digits/killed/checkpoints/last.ckpt", weights_only=True)
    assert before["global_step"] == step, "the end of the first epoch, or the middle of the second"
    resumed = main(["fit", *words, "--id=killed", "--ckpt_path=last"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 12
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_that_had_ended_is_resumed_to_no_effect(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", *WORDS, *cued_digits(tmp_path), "--data.num_workers=0", "--trainer.max_epochs=1", "--id=ended"]
    ended = main(words).model.state_dict()
    again = main([*words, "--ckpt_path=last"])
    assert again.trainer.global_step == 4
    assert all(torch.equal(value, ended[name]) for name, value in again.model.state_dict().items())
