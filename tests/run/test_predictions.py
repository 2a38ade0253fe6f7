"""The table of predictions has a row a sample, in order, with the five likeliest classes."""

import csv
import os
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from nonlocal_nets.run.predictions import Predictions
from nonlocal_nets.tasks import Blocks, ImageClassification


class Paths(pl.LightningDataModule):
    class_names = tuple(f"class {k}" for k in range(7))

    def __init__(self, probabilities):
        super().__init__()
        self.probabilities = probabilities

    def predict_dataloader(self):
        samples = [(row, f"image {k}.jpg") for k, row in enumerate(self.probabilities)]
        return DataLoader(samples, batch_size=2)


class Echo(ImageClassification):
    """What it predicts is what it is given: probabilities."""

    def predict_step(self, batch, batch_idx):
        return batch[0]


def predict(model, folder, probabilities):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[Predictions()], enable_model_summary=False, default_root_dir=folder, **quiet
    )
    trainer.predict(model, datamodule=Paths(probabilities), return_predictions=False)


def test_table(tmp_path):
    torch.manual_seed(0)
    probabilities = torch.rand(5, 7).softmax(1)
    (tmp_path / "predictions.csv").write_text("of an earlier command")
    predict(Echo(7, "local_convnet", blocks=Blocks(at="none")), tmp_path, probabilities)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"image {k}.jpg" for k in range(5)]
    for row, given in zip(rows, probabilities.tolist(), strict=True):
        ranked = sorted(range(7), key=lambda k: -given[k])[:5]
        assert row["class"] == row["class_1"] == f"class {ranked[0]}"
        assert [row[f"class_{k}"] for k in range(1, 6)] == [f"class {k}" for k in ranked]
        assert [row[f"probability_{k}"] for k in range(1, 6)] == [f"{given[k]:.6f}" for k in ranked]


class Silent(pl.LightningModule):
    def predict_step(self, batch, batch_idx):
        return batch[0]


def test_a_module_without_rows_gets_no_table(tmp_path, caplog):
    predict(Silent(), tmp_path, torch.rand(3, 7))
    assert not list(tmp_path.iterdir())
    assert "no predictions.csv: Silent does not define rows(batch, prediction)" in caplog.text


def write(folder, rank, names):
    """One batch of two of one of two processes."""
    trainer = SimpleNamespace(global_rank=rank, world_size=2, is_global_zero=rank == 0, default_root_dir=str(folder))
    task = SimpleNamespace(
        rows=lambda batch, prediction: [{"path": p, "class": k} for p, k in zip(batch, prediction, strict=True)]
    )
    callback = Predictions()
    callback.write_on_batch_end(trainer, task, [f"class {rank}"] * 2, None, names, 0, 0)
    callback.on_predict_end(trainer, task)


def test_each_process_has_a_file_that_each_command_begins_anew(tmp_path):
    (tmp_path / "predictions-1.csv").write_text("rows of an earlier command\n")
    write(tmp_path, 0, ["a", "c"])
    write(tmp_path, 1, ["b", "d"])
    rows = {path.name: list(csv.DictReader(path.read_text().splitlines())) for path in tmp_path.iterdir()}
    assert {name: [(row["path"], row["class"]) for row in table] for name, table in rows.items()} == {
        "predictions-0.csv": [("a", "class 0"), ("c", "class 0")],
        "predictions-1.csv": [("b", "class 1"), ("d", "class 1")],
    }


def test_tables_of_another_number_of_processes_do_not_stay_beside(tmp_path):
    for name in ("predictions.csv", "predictions-1.csv", "predictions-2.csv", "predictions-of-mine.csv"):
        (tmp_path / name).write_text("of an earlier command")
    write(tmp_path, 1, ["b", "d"])
    write(tmp_path, 0, ["a", "c"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictions-0.csv",
        "predictions-1.csv",
        "predictions-of-mine.csv",
    }
    predict(Echo(7, "local_convnet", blocks=Blocks(at="none")), tmp_path, torch.rand(3, 7).softmax(1))
    assert {path.name for path in tmp_path.iterdir()} == {"predictions.csv", "predictions-of-mine.csv"}


class Selective(Echo):
    """No row for some samples."""

    def rows(self, batch, prediction):
        return (row for row in super().rows(batch, prediction) if row["path"] in ("image 3.jpg", "image 4.jpg"))


def test_a_batch_may_have_no_row(tmp_path):
    predict(Selective(7, "local_convnet", blocks=Blocks(at="none")), tmp_path, torch.rand(5, 7).softmax(1))
    with (tmp_path / "predictions.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["image 3.jpg", "image 4.jpg"]


class Fails(Echo):
    """In its second batch."""

    def predict_step(self, batch, batch_idx):
        if batch_idx:
            raise RuntimeError("in the middle")
        return super().predict_step(batch, batch_idx)


def test_what_fails_halfway_leaves_the_table_of_before(tmp_path):
    (tmp_path / "predictions.csv").write_text("of an earlier command")
    with pytest.raises(RuntimeError, match="in the middle"):
        predict(Fails(7, "local_convnet", blocks=Blocks(at="none")), tmp_path, torch.rand(5, 7).softmax(1))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"predictions.csv": "of an earlier command"}


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9, ol\xe9.jpg")
    write(tmp_path, 0, [name, "b"])
    assert b'"caf\xe9, ol\xe9.jpg",class 0\n' in (tmp_path / "predictions-0.csv").read_bytes().replace(b"\r", b"")
