"""The table of predictions has a row a sample, in order, with the five likeliest classes."""

import csv

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
