"""A run that is killed or told to end at any moment ends as one that is not: weights, best and top-k files, rows."""

import csv
import os
import random
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from nonlocal_nets.run import checkpoints
from nonlocal_nets.run.cli import main

CONFIG = str(Path(__file__).parents[2] / "configs" / "image" / "cued_digits.yaml")
FOLDER = Path("runs/cued_digits")
EARLY_STOPPING = "{class_path: EarlyStopping, init_args: {monitor: val/loss, mode: min, patience: 2}}"
WORDS = [
    "fit",
    f"--config={CONFIG}",
    "--data.batch_size=4",
    "--data.train_samples=24",
    "--data.val_samples=8",
    "--model.mixup=0.3",
    "--model.optimizer.lr=0.02",
    "--checkpoint.monitor=val/loss",
    "--checkpoint.save_top_k=3",
    "--checkpoint.every_n_train_steps=1",
    "--trainer.max_epochs=4",
    "--trainer.accumulate_grad_batches=2",  # 3 steps an epoch, and a validation in the middle of the second
    "--trainer.val_check_interval=0.5",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),  # exactly
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # it should, on a resume
]


class StopError(Exception):
    """As if the process had been killed."""


class Events(pl.Callback):
    """Ends the process, or sends it a signal, at an event: the n-th of this start."""

    names = ("on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_validation_end", "written")
    last, number, seen = -1, None, 0

    @classmethod
    def begin(cls, last, number=None):
        cls.last, cls.number, cls.seen = last, number, 0

    @classmethod
    def happens(cls, trainer=None):
        if trainer is not None and trainer.sanity_checking:
            return
        cls.seen += 1
        if cls.seen == cls.last and cls.number is None:
            raise StopError
        if cls.seen == cls.last:
            os.kill(os.getpid(), cls.number)

    def on_train_batch_end(self, trainer, module, *_):
        self.happens(trainer)

    on_train_epoch_end = on_validation_start = on_validation_batch_end = on_validation_end = on_train_batch_end


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save = checkpoints.WholeCheckpoints.save_checkpoint

    def saves(self, *args, **kwargs):
        save(self, *args, **kwargs)
        Events.happens()

    monkeypatch.setattr(checkpoints.WholeCheckpoints, "save_checkpoint", saves)
    Events.begin(-1)


def fit(run, *more):
    callbacks = ["--trainer.callbacks=[]", f"--trainer.callbacks+={EARLY_STOPPING}"]
    return main([*WORDS, *callbacks, f"--trainer.callbacks+={__name__}.Events", f"--id={run}", *more])


def left_of(run):
    """What a run leaves, without what its starts have logged twice."""
    folder = FOLDER / run / "checkpoints"
    saved = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")}
    best = next(state for state in saved["last.ckpt"]["callbacks"].values() if state.get("best_model_score") is not None)
    weights = {name: each["state_dict"] for name, each in saved.items()}
    scores = {Path(path).name: float(value) for path, value in best["best_k_models"].items()}
    return weights, (Path(best["best_model_path"]).name, float(best["best_model_score"]), scores), rows_of(run)


def rows_of(run):
    """By step and kind, whatever was logged; what several starts have logged is the same."""
    rows = {}
    for path in (FOLDER / run / "csv").glob("*/metrics.csv"):
        for row in csv.DictReader(path.read_text().splitlines()):
            values = {name: value for name, value in row.items() if value}
            kind = (int(row["step"]), *sorted(values))
            assert rows.setdefault(kind, values) == values
    return rows


def is_the_same(run, whole):
    for ours, theirs in zip(left_of(run)[0:1] + left_of(run)[1:], whole, strict=True):
        assert ours.keys() == theirs.keys() if isinstance(ours, dict) else ours == theirs
    weights, theirs = left_of(run)[0], whole[0]
    for name, state in theirs.items():
        assert [key for key, value in state.items() if not torch.equal(weights[name][key], value)] == [], name
    assert left_of(run)[2] == whole[2]


def test_killed_at_any_moment():
    cli = fit("whole")
    whole = left_of("whole")
    print(cli.trainer.global_step, whole[1], sorted(whole[0]), Events.seen)
    draw, starts, ended = random.Random(0), 0, None
    while ended is None:
        starts += 1
        Events.begin(draw.randint(4, 16))
        try:
            ended = fit("killed", "--ckpt_path=last")
        except StopError:
            pass
        print(starts, Events.last, Events.seen)
    is_the_same("killed", whole)
