"""From a folder of images to a table of predictions, by the commands that a user types."""

import csv
import shutil

import pytest
import torch

from nonlocal_nets.data import image_folder
from nonlocal_nets.run.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a copy of a run


@pytest.fixture(scope="module")
def run_of_the_module(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("run")
        patch.chdir(folder)
        return folder, fit(folder)


@pytest.fixture
def fitted(run_of_the_module, tmp_path, monkeypatch):
    """A copy of the run, and its images."""
    monkeypatch.chdir(tmp_path)
    folder, cli = run_of_the_module
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return cli


def fit(tmp_path):
    args = [f"--data.{name}={value}" for name, value in image_folder.fake(tmp_path / "images").items()]
    args += [
        "--data.image_size=16",
        "--data.batch_size=2",
        "--model.backbone=local_convnet",
        "--model.blocks.at=layer3",
    ]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    names = ["--project=folder", "--id=try"]
    return main(["fit", "--data=ImageFolder", "--model=ImageClassification", *args, *quiet, *few, *names])


def test_predict_a_folder(fitted, tmp_path):
    images = sorted((tmp_path / "images").rglob("*/val/**/*.*")) or sorted((tmp_path / "images").rglob("val/*/*"))
    config = str(fitted.run_folder / "config.yaml")
    cli = main(["predict", "--config", config, "--ckpt_path=last", f"--data.path={images[0].parent.parent}"])
    with (fitted.run_folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(image) for image in images]
    assert {row["class"] for row in rows} <= set(cli.datamodule.class_names)
    model = cli.model.eval()
    batch, paths = next(iter(cli.datamodule.predict_dataloader()))
    with torch.no_grad():
        expected = model(batch).softmax(1).amax(1)
    assert [float(row["probability_1"]) for row in rows[: len(paths)]] == pytest.approx(expected.tolist(), abs=1e-5)


def test_predict_one_file(fitted, tmp_path):
    image = tmp_path / "images" / "val" / "bee" / "0.jpg"
    config = str(fitted.run_folder / "config.yaml")
    main(["predict", "--config", config, "--ckpt_path=best", f"--data.path={image}"])
    with (fitted.run_folder / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == str(image)
    probabilities = [float(row[f"probability_{k}"]) for k in (1, 2, 3)]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert {row[f"class_{k}"] for k in (1, 2, 3)} == {"ant", "bee", "cat"}


def test_predict_without_images(fitted, tmp_path, capsys):
    config = str(fitted.run_folder / "config.yaml")
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--config", config, "--ckpt_path=last", f"--data.path={tmp_path / 'none'}"])
    assert stop.value.code == 2
    assert str(tmp_path / "none") in capsys.readouterr().err.splitlines()[-1]
