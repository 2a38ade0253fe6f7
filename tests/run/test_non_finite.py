"""A loss or gradient that is not finite ends the run, or its step is skipped; a network with NaN is never the best."""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch

from nonlocal_nets.data import ImageFolder
from nonlocal_nets.run import non_finite
from nonlocal_nets.run.cli import main
from nonlocal_nets.run.non_finite import has_finite_gradient
from nonlocal_nets.tasks import ImageClassification
from tests.run.conftest import SMALL

ROOT = Path(__file__).parents[2]
RUN = Path("runs/images/a")
WORDS = ["fit", *SMALL, f"--model={__name__}.Spoilt", "--project=images", "--id=a", "--data.batch_size=2"]
pytestmark = [
    pytest.mark.usefixtures("small_images"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # it should, on a resume
]


class Spoilt(ImageClassification):
    """Its loss is not finite in some batches of the run, counted from 1, or its gradient is not."""

    losses, gradients, seen, value, rank = (), (), 0, torch.nan, None

    @classmethod
    def begin(cls, losses=(), gradients=(), value=torch.nan):
        cls.losses, cls.gradients, cls.value, cls.seen = losses, gradients, value, 0

    def training_loss(self, batch):
        Spoilt.seen += 1
        loss = super().training_loss(batch)
        if Spoilt.seen in self.losses:
            next(self.buffers()).data.fill_(self.value)  # as in the running mean of an input that is not finite
            return loss + self.value
        if Spoilt.seen in self.gradients:
            loss.register_hook(lambda gradient: gradient * self.value)
        return loss


class OfOneProcess(Spoilt):
    def training_loss(self, batch):
        loss = super().training_loss(batch)
        return loss + torch.nan if self.global_step == 2 and self.global_rank == 1 else loss


class Watch(pl.Callback):
    """The weights, running means and the state of the optimiser before and after each step."""

    states: ClassVar = []

    def on_train_batch_start(self, trainer, module, *_):
        Watch.states.append([self.state(trainer, module)])

    def on_train_batch_end(self, trainer, module, *_):
        Watch.states[-1].append(self.state(trainer, module))

    def state(self, trainer, module):
        moments = {
            f"{k} {name}": value
            for k, state in trainer.optimizers[0].state_dict()["state"].items()
            for name, value in state.items()
        }
        return {name: value.clone() for name, value in (module.state_dict() | moments).items() if value is not None}


@pytest.fixture(autouse=True)
def begin():
    Spoilt.begin()
    Watch.states = []


def saved(name="last.ckpt"):
    return torch.load(RUN / "checkpoints" / name, weights_only=True)


def is_same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("spoil", "value", "later"),
    [("losses", torch.nan, False), ("losses", torch.inf, True), ("gradients", torch.nan, True)],
)
def test_the_run_ends_and_names_the_step_and_its_samples(spoil, value, later, refused, monkeypatch):
    """7 steps of 2 samples an epoch; on an accelerator they are checked at the latest before a checkpoint."""
    monkeypatch.setattr(non_finite, "on_an_accelerator", lambda module: later)
    Spoilt.begin(**{spoil: (9,)}, value=value)
    line = refused(main, [*WORDS, "--trainer.log_every_n_steps=7"])
    kind = {"losses": "loss", "gradients": "gradient"}[spoil]
    assert line.startswith(f"the {kind} of step 9 (epoch 1) is not finite; data/")
    assert "; --non_finite.max_skipped=0.01 skips such steps" in line
    assert Spoilt.seen == (14 if later else 9)
    checkpoint = saved()
    assert checkpoint["global_step"] == 7
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    named = re.findall(r"data/\S+?(?=,| \(|;)", line)
    assert named
    cli = main(["fit", "--config", str(RUN / "config.yaml"), "--ckpt_path=last", "--trainer.max_epochs=1"])
    loader = cli.datamodule.train_dataloader()
    loader.sampler.set_epoch(1)
    files = [loader.dataset.dataset.samples[index][0] for _, index in loader.sampler][2:4]
    assert set(named) <= set(files)


def test_steps_that_were_not_checked_are_before_a_checkpoint_in_the_middle_of_an_epoch(refused, monkeypatch):
    monkeypatch.setattr(non_finite, "on_an_accelerator", lambda module: True)
    Spoilt.begin(losses=(3,))
    words = ["--trainer.log_every_n_steps=7", "--checkpoint.every_n_train_steps=2"]
    assert refused(main, [*WORDS, *words]).startswith("the loss of step 3 (epoch 0) is not finite")
    assert saved()["global_step"] == 2


def test_steps_of_several_batches(refused):
    Spoilt.begin(losses=(4,))
    line = refused(main, [*WORDS, "--trainer.accumulate_grad_batches=2"])
    assert line.startswith("the loss of step 2 (epoch 0) is not finite")


@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (math.nan, False), (math.inf, False)])
@pytest.mark.parametrize("sparse", [True, False])
def test_gradients_that_are_sparse_are_looked_at_too(value, finite, sparse):
    embedding = torch.nn.Embedding(5, 2, sparse=sparse)
    (embedding(torch.tensor([1, 3])) * torch.tensor([[1.0], [value]])).sum().backward()
    assert bool(has_finite_gradient(embedding)) == finite


@pytest.mark.filterwarnings("ignore:skipped. the (loss|gradient) of step")
def test_a_step_is_skipped_as_if_it_had_not_been():
    Spoilt.begin(losses=(3,), gradients=(9,))
    words = ["--non_finite.max_skipped=0.3", f"--trainer.callbacks+={__name__}.Watch", "--trainer.gradient_clip_val=1"]
    main([*WORDS, *words, "--model.optimizer.name=adamw"])
    changed = [not is_same(before, after) for before, after in Watch.states]
    assert changed == [step not in (3, 9) for step in range(1, 15)]
    rows = list(csv.DictReader((RUN / "metrics.csv").read_text().splitlines()))
    losses = {int(row["step"]): float(row["train/loss_step"]) for row in rows if row["train/loss_step"]}
    means = [float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"]]
    assert means[0] == pytest.approx(sum(losses[step] for step in (0, 1, 3, 4, 5, 6)) / 6, rel=1e-5)
    assert means[1] == pytest.approx(sum(losses[step] for step in (7, 9, 10, 11, 12, 13)) / 6, rel=1e-5)


@pytest.mark.filterwarnings("ignore:skipped. the loss of step")
@pytest.mark.parametrize(("losses", "share", "ends"), [((1, 2), 0.01, 2), ((2, 3, 4), 0.4, 4), ((2, 3, 9), 0.4, None)])
def test_no_more_are_skipped_than_the_share_of_an_epoch_but_at_least_one(losses, share, ends, refused):
    Spoilt.begin(losses=losses)
    words = [*WORDS, f"--non_finite.max_skipped={share}"]
    if ends is None:
        assert main(words).trainer.global_step == 14
    else:
        line = refused(main, words)
        assert line.startswith(f"the loss of step {ends} (epoch 0) is not finite")
        assert f"--non_finite.max_skipped is {share}" in line


@pytest.mark.parametrize("share", [-0.1, 1])
def test_a_share(share, refused):
    assert "non_finite.max_skipped must be a share in [0, 1), got" in refused(
        main, [*WORDS, f"--non_finite.max_skipped={share}"]
    )


def test_the_sample_that_is_not_finite_is_named_alone(refused):
    line = refused(main, [*WORDS[:1], *SMALL, "--project=images", "--id=a", f"--data={__name__}.OneBadImage"])
    assert re.match(r"the loss of step \d \(epoch 0\) is not finite; \S+/1.png; --non_finite", line), line


class OneBadImage(ImageFolder):
    def dataset(self, part):
        dataset = super().dataset(part)
        read, bad = dataset.read, [path for path, _ in dataset.samples if path.endswith("1.png")][:1]

        def read_one(path, target):
            image, target = read(path, target)
            return (image * torch.nan if path in bad else image), target

        dataset.read = read_one
        return dataset


class GoesBad(pl.Callback):
    """After the first epoch some weights are NaN: argmax then says the first class, which is right for half."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            with torch.no_grad():
                next(iter(module.network.parameters())).fill_(torch.nan)


@pytest.mark.filterwarnings("ignore:step 14 is not among the best")
@pytest.mark.parametrize("top", [1, 2, -1])
def test_a_network_with_nan_is_never_the_best(top, monkeypatch):
    monkeypatch.setattr(non_finite.NonFinite, "_first", lambda self, trainer: None)
    words = [
        f"--trainer.callbacks+={__name__}.GoesBad",
        "--model.optimizer.lr=0.00001",
        f"--checkpoint.save_top_k={top}",
    ]
    cli = main([*WORDS, *words])
    assert [path.name for path in (RUN / "checkpoints").glob("epoch*")] == ["epoch=0-step=7.ckpt"]
    assert cli.trainer.checkpoint_callback.best_model_path.endswith("epoch=0-step=7.ckpt")


@pytest.mark.filterwarnings("ignore:.*has weights that are NaN.*taking the one before")
def test_weights_that_are_nan_are_refused(refused):
    main([*WORDS, "--trainer.max_epochs=1"])
    (best,) = (RUN / "checkpoints").glob("epoch*")
    checkpoint = torch.load(best, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name].view(-1)[0] = torch.nan
    torch.save(checkpoint, "nan.ckpt")
    for args in (["test", *WORDS[1:], "--ckpt_path=nan.ckpt"], [*WORDS, "--id=b", "--model.weights=nan.ckpt"]):
        assert f"'nan.ckpt' has weights that are NaN: {name}" in refused(main, args)
    torch.save(checkpoint, RUN / "checkpoints" / "last.ckpt")
    assert main([*WORDS, "--ckpt_path=last"]).trainer.global_step == 14


@pytest.mark.slow
def test_of_two_processes_the_one_with_the_loss_names_its_samples():
    command = [sys.executable, str(ROOT / "train.py"), *WORDS, f"--model={__name__}.OfOneProcess"]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert lines
    assert len({re.sub(r".*: error: ", "", line) for line in lines}) == 1
    assert "the loss of step 3 (epoch 0) is not finite; data/" in lines[0]
