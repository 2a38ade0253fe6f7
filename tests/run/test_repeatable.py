"""What is drawn in a training step. (That a killed run goes on bit for bit: tests/run/test_resume.py.)"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from nonlocal_nets.data.order import TrainingOrder
from nonlocal_nets.run.repeatable import Repeatable


@pytest.fixture(autouse=True)
def states():
    """Leave the random states as they were."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(torch_state)


def draw(epoch, batch, rank=0):
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    Repeatable().on_train_batch_start(trainer, None, None, batch)
    return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002


def test_a_step_draws_by_seed_process_epoch_and_batch(monkeypatch):
    first = draw(2, 3)
    draws = [first, draw(2, 4), draw(3, 3), draw(2, 3, rank=1)]
    assert draw(2, 3) == first
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    draws.append(draw(2, 3))
    for numbers in zip(*draws, strict=True):
        assert len(set(numbers)) == len(draws)


@pytest.mark.parametrize(
    ("epoch", "batches", "skipped"),
    [(1, 2, 6), (0, 2, 0), (1, 4, 0)],
    ids=["the middle of this epoch", "another epoch", "the end of this one"],
)
def test_the_run_goes_on_after_the_last_batch(epoch, batches, skipped):
    sampler = TrainingOrder(range(12), 3)
    loader = DataLoader(range(12), batch_size=3, sampler=sampler)
    callback = Repeatable()
    callback.load_state_dict({"epoch": epoch, "batches": batches})
    trainer = SimpleNamespace(current_epoch=1, num_training_batches=4, train_dataloader=loader)
    callback.on_train_start(trainer, None)
    assert sampler.skip == skipped


def test_a_loader_that_cannot_skip_says_so():
    callback = Repeatable()
    loader = SimpleNamespace(sampler=SimpleNamespace(), batch_size=3)
    trainer = SimpleNamespace(current_epoch=1, num_training_batches=4, train_dataloader=loader)
    callback.on_train_start(trainer, None)
    callback.load_state_dict({"epoch": 1, "batches": 2})
    with pytest.warns(UserWarning, match="this loader cannot skip the 2 batches that were done: it begins again"):
        callback.on_train_start(trainer, None)


def test_a_checkpoint_tells_how_far_the_epoch_was():
    callback = Repeatable()
    callback.on_train_batch_start(SimpleNamespace(current_epoch=4, global_rank=0), None, None, 6)
    assert callback.state_dict() == {"epoch": 4, "batches": 7}


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Loops(pl.Callback):
    """Keeps what a checkpoint after each batch, or at the end of the epoch, holds of the loops."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 < trainer.num_training_batches:
            self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(trainer._checkpoint_connector.dump_checkpoint()["loops"]["fit_loop"])


def test_a_checkpoint_tells_of_the_loops_as_lightnings_own_of_an_uninterrupted_run(tmp_path):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    loops = []
    for others in ([], [Repeatable()]):
        kept = Loops()
        trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[*others, kept], **quiet)
        trainer.fit(Module(), DataLoader(torch.ones(6, 1), batch_size=2))
        loops.append(kept.seen)
    lightnings, ours = loops
    assert len(ours) == 6
    assert [state["epoch_loop.state_dict"].pop("left") for state in ours] == ["nothing", "nothing", None] * 2
    assert not any(state["state_dict"].pop("stopped_early") for state in ours)
    assert ours == lightnings
