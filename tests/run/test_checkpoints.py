"""Checkpoints that are whole or not there. (Killed runs: tests/run/test_survival.py.)"""

import os
import resource
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from nonlocal_nets.run.checkpoints import (
    BestCheckpoint,
    CheckpointWriteError,
    WholeCheckpoints,
    best_checkpoint,
    newest,
)


@pytest.fixture
def full_disk():
    """A limit on the size of a file: a write that fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_is_read_back(tmp_path):
    path = tmp_path / "new" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"state_dict": {"w": torch.arange(3)}, "epoch": 2}, path)
    assert torch.load(path, weights_only=True)["state_dict"]["w"].tolist() == [0, 1, 2]
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_the_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    """Else a power cut could leave an empty file of that name."""
    calls = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append(os.fstat(descriptor).st_size > 0))
    monkeypatch.setattr(Path, "replace", lambda *paths: calls.append("replaced") or replace(*paths))
    WholeCheckpoints().save_checkpoint({"state_dict": {}}, tmp_path / "last.ckpt")
    assert calls == [True, "replaced"]


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_is_an_error_and_leaves_the_one_before(tmp_path, before, full_disk):
    path = tmp_path / "last.ckpt"
    if before:
        WholeCheckpoints().save_checkpoint({"state_dict": {"w": torch.ones(2)}}, path)
    with pytest.raises(CheckpointWriteError) as error:
        WholeCheckpoints().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)
    assert str(error.value).startswith(f"cannot write the checkpoint {path}: File too large")
    assert ("the one before" in str(error.value)) == before
    assert os.listdir(tmp_path) == ["last.ckpt"] * before
    if before:
        assert torch.load(path, weights_only=True)["state_dict"]["w"].tolist() == [1, 1]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"

    def refuse(_name, _target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.replace", refuse)  # root may write anywhere
    with pytest.raises(CheckpointWriteError, match=r"cannot write the checkpoint .*last.ckpt: Permission denied"):
        WholeCheckpoints().save_checkpoint({"state_dict": {}}, path)
    assert os.listdir(tmp_path) == []


def test_the_newest_that_can_be_read(tmp_path):
    names = ["best.ckpt", "torn.ckpt", "last.ckpt"]
    for second, name in enumerate(names):
        torch.save({"state_dict": {"w": torch.ones(1)}}, tmp_path / name)
        os.utime(tmp_path / name, (second, second))
    assert newest(tmp_path) == (tmp_path / "last.ckpt", [])
    for name, second in (("last.ckpt", 2), ("torn.ckpt", 1)):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        os.utime(tmp_path / name, (second, second))
    (tmp_path / "new.ckpt.part").write_bytes(b"being written")
    path, torn = newest(tmp_path)
    assert path == tmp_path / "best.ckpt"
    assert [line.split("'")[1] for line in torn] == [str(tmp_path / "last.ckpt"), str(tmp_path / "torn.ckpt")]


def test_it_is_the_last_else_that_of_the_most_steps_whatever_the_times_of_the_files(tmp_path):
    for second, (name, step) in enumerate([("last.ckpt", 9), ("b.ckpt", 8), ("z.ckpt", 7), ("a.ckpt", 10)]):
        torch.save({"state_dict": {}, "global_step": step, "optimizer_states": []}, tmp_path / name)
        os.utime(tmp_path / name, (second, second))
    assert newest(tmp_path) == (tmp_path / "last.ckpt", [])
    (tmp_path / "last.ckpt").unlink()
    assert newest(tmp_path) == (tmp_path / "a.ckpt", [])
    torch.save({"state_dict": {}, "global_step": 10}, tmp_path / "a.ckpt")
    assert newest(tmp_path) == (tmp_path / "a.ckpt", []), "good enough for a test"
    assert newest(tmp_path, resume=True) == (tmp_path / "b.ckpt", [f"'{tmp_path}/a.ckpt' holds weights only"])


def test_where_all_are_torn_it_is_none_and_why(tmp_path):
    for second, name in enumerate(["best.ckpt", "last.ckpt"]):
        (tmp_path / name).write_bytes(b"torn")
        os.utime(tmp_path / name, (second, second))
    path, torn = newest(tmp_path)
    assert path is None
    assert [line.split("'")[1] for line in torn] == [str(tmp_path / "last.ckpt"), str(tmp_path / "best.ckpt")]


def states(best, score=0.5):
    """The callbacks of a last.ckpt: its own, which monitors nothing, and the one that looks for the best."""
    own = {"best_model_path": "anywhere/last.ckpt", "best_model_score": None}
    return {"last": own, "best": {"best_model_path": str(best), "best_model_score": score}, "other": {}}


def test_the_best_is_the_one_that_was_monitored_also_where_the_folder_has_moved(tmp_path):
    last, best = tmp_path / "last.ckpt", tmp_path / "elsewhere" / "epoch=3.ckpt"
    torch.save({"state_dict": {}, "callbacks": states(best)}, last)
    assert best_checkpoint(last) == tmp_path / "epoch=3.ckpt"
    best.parent.mkdir()
    best.touch()
    assert best_checkpoint(last) == best
    (tmp_path / "epoch=3.ckpt").touch()
    assert best_checkpoint(last) == tmp_path / "epoch=3.ckpt", "a copy of a run has its own"


def test_the_best_of_a_run_whose_folder_was_moved(tmp_path):
    old = str(tmp_path / "gone" / "epoch=0.ckpt")
    callback = BestCheckpoint(monitor="a", mode="max", dirpath=str(tmp_path))
    state = callback.state_dict() | {"dirpath": str(tmp_path / "gone"), "best_k_models": {old: torch.tensor(0.7)}}
    state |= {"best_model_path": old, "kth_best_model_path": old, "best_model_score": torch.tensor(0.7)}
    (tmp_path / "epoch=0.ckpt").touch()
    callback.load_state_dict(state)
    here = str(tmp_path / "epoch=0.ckpt")
    assert callback.best_k_models == {here: torch.tensor(0.7)}
    assert (callback.best_model_path, callback.kth_best_model_path) == (here, here)
    assert callback.best_model_score == torch.tensor(0.7)


def test_none_in_an_empty_folder_or_one_that_is_not_there(tmp_path):
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "nowhere") == (None, [])


class Scores(pl.LightningModule):
    """Its scores do not depend on what it learns: "val/high" is the best in epoch 1, "val/low" in epoch 2."""

    monitor = "val/high"

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def mode_of(self, name):
        return "min" if name == "val/low" else "max"

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/high", torch.tensor([0.2, 0.9, 0.1, 0.5])[self.current_epoch])
        self.log("val/low", torch.tensor([0.7, 0.8, 0.3, 0.6])[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("given", "epoch", "score"),
    [
        ({}, 1, 0.9),
        ({"monitor": "val/low"}, 2, 0.3),
        ({"mode": "min"}, 2, 0.1),
        ({"monitor": "val/low", "mode": "max"}, 1, 0.8),
    ],
    ids=["as the task says", "another metric", "another direction", "both"],
)
def test_the_best_is_what_the_task_calls_so_unless_the_user_does(tmp_path, given, epoch, score):
    best = BestCheckpoint(dirpath=tmp_path, filename="{epoch}", **given)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=4, num_sanity_val_steps=0, callbacks=[best], **quiet)
    trainer.fit(Scores(), DataLoader(torch.ones(2, 1)), DataLoader(torch.ones(1, 1)))
    assert best.best_model_path == str(tmp_path / f"epoch={epoch}.ckpt")
    assert float(best.best_model_score) == pytest.approx(score)
    assert os.listdir(tmp_path) == [f"epoch={epoch}.ckpt"]
