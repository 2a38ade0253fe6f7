"""The confusion matrix counts every test sample once; its table is checked by hand."""

import csv

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from nonlocal_nets.callbacks import ConfusionMatrix
from nonlocal_nets.callbacks.confusion_matrix import draw


class Echo(pl.LightningModule):
    """Predicts what it is told: the input is the logits."""

    def test_step(self, batch, batch_idx):
        return {"logits": batch[0], "target": batch[1]}


def test_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = torch.tensor([0, 0, 0, 1, 1, 0, 1])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0, 0])
    loader = DataLoader(TensorDataset(torch.nn.functional.one_hot(predicted, 3).float(), target), batch_size=3)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[ConfusionMatrix()], enable_model_summary=False, **quiet)
    for _ in range(2):  # a second test starts from zero
        trainer.test(Echo(), loader, verbose=False)
    with open("classes.csv") as file:
        rows = list(csv.reader(file))
    assert rows == [["class", "samples", "accuracy"], ["0", "4", "0.7500"], ["1", "3", "0.6667"], ["2", "0", ""]]
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_many_classes(tmp_path):
    draw(torch.eye(60), [str(k) for k in range(60)], tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 1000
