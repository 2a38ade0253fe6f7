"""A run that is killed or told to end at any moment ends as one that is not: weights, best and top-k files, rows."""

import csv
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from nonlocal_nets.run import checkpoints
from nonlocal_nets.run.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "image" / "cued_digits.yaml")
FOLDER = Path("runs/cued_digits")
EARLY_STOPPING = "{class_path: EarlyStopping, init_args: {monitor: val/loss, mode: min, patience: 3}}"
WORDS = [
    "fit",
    f"--config={CONFIG}",
    "--data.batch_size=4",
    "--data.train_samples=24",
    "--data.val_samples=8",
    "--model.mixup=0.3",
    "--model.optimizer.lr=0.0005",
    "--checkpoint.monitor=val/loss",
    "--checkpoint.save_top_k=3",
    "--trainer.max_epochs=3",
    "--trainer.accumulate_grad_batches=2",  # 3 steps an epoch, and a validation in the middle of the second
    "--trainer.val_check_interval=0.5",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks=[]",
    f"--trainer.callbacks+={EARLY_STOPPING}",
    f"--trainer.callbacks+={__name__}.Events",
]
OFTEN = "--checkpoint.every_n_train_steps=1"
# Of two processes each: a whole run, and starts that are killed; all are children of one that has imported everything.
TWO_KILLED = """
import os, random, signal, sys, time
import torch
from nonlocal_nets.run import cli
import timm.data.mixup, torch._dynamo  # as training does, at once

torch.set_num_threads(1)
last = "runs/cued_digits/killed/checkpoints/last.ckpt"

def start(*more):
    child = os.fork()
    if child == 0:
        os.setpgrp()
        cli.main([*sys.argv[1:], *more])
        os._exit(0)
    return child

def written():
    return os.stat(last).st_mtime_ns if os.path.exists(last) else 0

assert os.waitpid(start("--id=whole"), 0)[1] == 0
random.seed(0)
killed = 0
while True:
    before, child = written(), start("--id=killed", "--ckpt_path=last")
    while (state := os.waitpid(child, os.WNOHANG)) == (0, 0) and written() == before:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    if state != (0, 0) or (state := os.waitpid(child, os.WNOHANG)) != (0, 0):
        assert state[1] == 0
        break
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    killed += 1
print("killed", killed)
"""
pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),  # exactly
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # it should, on a resume
]


class StopError(Exception):
    """As if the process had been killed."""


class Events(pl.Callback):
    """Ends the process at its n-th event, or sends it a signal in its n-th batch, counted from the start of the run."""

    event, batch, number, seen = None, None, signal.SIGTERM, 0

    @classmethod
    def begin(cls, event=None, batch=None):
        cls.event, cls.batch, cls.seen = event, batch, 0

    @classmethod
    def happens(cls, trainer=None, *_):
        if trainer is None or not trainer.sanity_checking:
            cls.seen += 1
            if cls.seen == cls.event:
                raise StopError

    def on_train_batch_end(self, trainer, *_):
        self.happens(trainer)
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            os.kill(os.getpid(), self.number)

    def _other(self, trainer, *_):
        self.happens(trainer)

    on_train_epoch_end = on_validation_start = on_validation_batch_end = on_validation_end = _other


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save = checkpoints.WholeCheckpoints.save_checkpoint

    def saves(self, *args, **kwargs):
        save(self, *args, **kwargs)
        Events.happens()

    monkeypatch.setattr(checkpoints.WholeCheckpoints, "save_checkpoint", saves)
    Events.begin()


def left_of(run):
    """The weights of a run's checkpoints, what it takes for the best and how long it waits for better, and its rows."""
    folder = FOLDER / run / "checkpoints"
    saved = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")}
    states = saved["last.ckpt"]["callbacks"].values()
    best = next(state for state in states if state.get("best_model_score") is not None)
    scores = {Path(path).name: float(value) for path, value in best["best_k_models"].items()}
    assert scores.keys() == saved.keys() - {"last.ckpt"}
    waits = [state["wait_count"] for state in states if "wait_count" in state]
    chosen = (Path(best["best_model_path"]).name, float(best["best_model_score"]), scores, waits)
    return {name: each["state_dict"] for name, each in saved.items()}, chosen, rows_of(run)


def rows_of(run):
    """By step and names, whatever was logged, once."""
    rows = {}
    for row in csv.DictReader((FOLDER / run / "metrics.csv").read_text().splitlines()):
        values = {name: float(value) for name, value in row.items() if value}
        assert (int(row["step"]), *sorted(values)) not in rows
        rows[int(row["step"]), *sorted(values)] = values
    return rows


def assert_same(run, whole):
    (weights, chosen, rows), (expected, best, logged) = left_of(run), whole
    assert chosen == best
    assert rows.keys() == logged.keys()
    assert all(rows[kind] == pytest.approx(values, rel=1e-6) for kind, values in logged.items())
    assert weights.keys() == expected.keys()
    for name, state in expected.items():
        assert [key for key, value in state.items() if not torch.equal(weights[name][key], value)] == [], name


def test_killed_again_and_again():
    main([*WORDS, OFTEN, "--id=whole"])
    whole, draw, ended = left_of("whole"), random.Random(4), None
    while ended is None:
        Events.begin(event=draw.randint(12, 24))
        with suppress(StopError):
            ended = main([*WORDS, OFTEN, "--id=killed", "--ckpt_path=last"])
    assert_same("killed", whole)


def test_told_to_end_in_an_epoch_and_in_its_last_batch_and_in_that_of_the_run():
    words = [*WORDS, "--trainer.max_epochs=2"]
    main([*words, "--id=whole"])
    whole = left_of("whole")
    assert sorted(step for step, *names in whole[2] if "val/loss" in names) == [0 + 1, 2, 4, 5], (
        "before the step counts"
    )
    assert len([names for names in whole[2] if "train/loss_epoch" in names]) == 2
    for batch in (4, 6, 12):
        Events.begin(batch=batch)
        with pytest.raises(SystemExit) as stop:
            main([*words, "--id=told", "--ckpt_path=last"])
        assert stop.value.code == 128 + signal.SIGTERM
    Events.begin()
    cli = main([*words, "--id=told", "--ckpt_path=last"])
    assert cli.trainer.global_step == 6
    assert_same("told", whole)


def test_half_a_step_is_kept():
    """The best checkpoint of this run, the only one yet, is of a validation between two batches of a step."""
    words = [*WORDS, "--trainer.max_epochs=1"]
    main([*words, "--id=whole"])
    Events.begin(event=9)
    with pytest.raises(StopError):
        main([*words, "--id=killed"])
    assert [path.name for path in (FOLDER / "killed" / "checkpoints").iterdir()] == ["epoch=0-step=1.ckpt"]
    Events.begin()
    main([*words, "--id=killed", "--ckpt_path=last"])
    assert_same("killed", left_of("whole"))


def test_a_run_that_was_stopped_early_has_ended():
    words = [word.replace("patience: 3", "patience: 1") for word in WORDS]
    steps = main([*words, "--id=stopped"]).trainer.global_step
    assert steps < 9
    Events.begin()
    assert main([*words, "--id=stopped", "--ckpt_path=last"]).trainer.global_step == steps
    assert Events.seen == 0


def test_the_best_was_validated():
    """11 steps, of which the last is told to end: validated after 3, 6 and 9, and saved after each second one."""
    words = [*WORDS, "--trainer.accumulate_grad_batches=1", "--trainer.max_steps=11", "--data.train_samples=24"]
    words = [*words, "--checkpoint.every_n_train_steps=2", "--trainer.callbacks=[]"]
    main([*words, "--id=whole"])
    _, (best, score, scores, _), rows = left_of("whole")
    assert scores.keys() == {"epoch=0-step=3.ckpt", "epoch=0-step=6.ckpt", "epoch=1-step=9.ckpt"}
    assert sorted(scores.values()) == pytest.approx(
        sorted(row["val/loss"] for row in rows.values() if "val/loss" in row)
    )
    config = str(FOLDER / "whole" / "config.yaml")
    cli = main(["validate", "--config", config, f"--ckpt_path={FOLDER}/whole/checkpoints/{best}"])
    assert cli.trainer.callback_metrics["val/loss"].item() == pytest.approx(score)
    words += [f"--trainer.callbacks+={__name__}.Events", "--trainer.max_steps=9"]
    Events.begin(batch=9)
    with pytest.raises(SystemExit):
        main([*words, "--id=told"])
    Events.begin()
    main([*words, "--id=told", "--ckpt_path=last"])
    assert left_of("told")[1][2] == pytest.approx(scores), "the last validation, too"


def test_steps_that_are_not_validated_are_never_the_best():
    """8 of the 12 steps of two epochs."""
    words = [*WORDS, "--trainer.accumulate_grad_batches=1", "--trainer.max_steps=8", "--trainer.val_check_interval=1.0"]
    main([*words, "--trainer.callbacks=[]", "--id=cut"])
    assert left_of("cut")[1][2].keys() == {"epoch=0-step=6.ckpt"}


@pytest.mark.slow
@pytest.mark.parametrize("often", [[], [OFTEN]])
def test_killed_at_each_moment(often):
    main([*WORDS, *often, "--id=whole"])
    whole, moments = left_of("whole"), Events.seen
    for moment in range(1, moments + 1):
        Events.begin(event=moment)
        with pytest.raises(StopError):
            main([*WORDS, *often, f"--id={moment}", "--ckpt_path=last"])
        Events.begin()
        main([*WORDS, *often, f"--id={moment}", "--ckpt_path=last"])
        assert_same(str(moment), whole)


@pytest.mark.slow
def test_two_processes_killed_again_and_again(tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", "--trainer.accelerator=cpu"]
    words = [*WORDS, *two, "--data.num_workers=1", "--data.train_samples=48", "--checkpoint.every_n_train_steps=2"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", TWO_KILLED, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 0
    assert_same("killed", left_of("whole"))
