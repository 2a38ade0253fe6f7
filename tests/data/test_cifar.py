"""CIFAR's files as published, pickles of rows of 3,072 bytes, against a reader of our own."""

import pickle
from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from nonlocal_nets.data import cifar
from nonlocal_nets.data.cifar import CIFAR, fake
from nonlocal_nets.tasks import Blocks, ImageClassification

FILES = {
    10: ("cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", "labels"),
    100: ("cifar-100-python", ["train"], "test", "fine_labels"),
}
SETS = pytest.mark.parametrize("classes", [10, 100])
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1), "batch_size": 64}


def rows(root, classes, train):
    """Images (N, 3, 32, 32) in [0, 1] and labels, from the pickles."""
    folder, trains, test, key = FILES[classes]
    entries = [pickle.loads((root / folder / name).read_bytes()) for name in (trains if train else [test])]
    images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32) / 255
    return images, [label for entry in entries for label in entry[key]]


@SETS
def test_test_images_are_those_of_the_file(tmp_path, classes):
    data = CIFAR(**fake(tmp_path), classes=classes, **PLAIN)
    assert data.num_classes == len(data.class_names) == classes
    assert data.input_size == (3, 32, 32)
    ((images, labels),) = data.test_dataloader()
    expected, targets = rows(tmp_path, classes, train=False)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert labels.tolist() == targets


def test_class_names_come_from_the_file(tmp_path):
    assert CIFAR(**fake(tmp_path)).class_names[::9] == ("airplane", "truck")


@SETS
def test_train_and_val_share_the_training_files(tmp_path, classes):
    words = {**fake(tmp_path), "classes": classes, "val_fraction": 0.25}
    data = CIFAR(**words)
    chosen = {part: list(data.parts[part][1]) for part in ("train", "val")}
    assert sorted(chosen["train"] + chosen["val"]) == list(range(20))
    assert len(chosen["val"]) == 5
    again, other = CIFAR(**words), CIFAR(**words, seed=1)
    assert chosen["val"] == again.parts["val"][1] != other.parts["val"][1]
    ((images, labels),) = CIFAR(**words, **PLAIN).val_dataloader()
    expected, targets = rows(tmp_path, classes, train=True)
    np.testing.assert_allclose(images, expected[chosen["val"]], atol=1e-6)
    assert labels.tolist() == [targets[k] for k in chosen["val"]]


def test_validation_is_even_in_each_class(tmp_path):
    words = fake(tmp_path)
    labels = np.repeat(np.arange(10), 8)
    entry = {"data": np.zeros((80, 3072), np.uint8), "labels": labels.tolist()}
    (tmp_path / FILES[10][0] / "data_batch_1").write_bytes(pickle.dumps(entry))
    for k in range(2, 6):
        empty = {"data": np.zeros((0, 3072), np.uint8), "labels": []}
        (tmp_path / FILES[10][0] / f"data_batch_{k}").write_bytes(pickle.dumps(empty))
    data = CIFAR(**words, val_fraction=0.25)
    assert Counter(labels[data.parts["val"][1]].tolist()) == dict.fromkeys(range(10), 2)


def test_training_pads_crops_and_flips(tmp_path):
    data = CIFAR(**fake(tmp_path), **PLAIN)
    original, _ = rows(tmp_path, 10, train=True)
    padded = np.pad(original, ((0, 0), (0, 0), (4, 4), (4, 4)))
    torch.manual_seed(0)
    images = torch.cat([images for images, _ in data.train_dataloader()]).numpy()
    found = set()
    for image in images:
        for side in (1, -1):
            windows = np.lib.stride_tricks.sliding_window_view(padded[..., ::side], (3, 32, 32), axis=(1, 2, 3))
            hit = np.argwhere(np.abs(windows[:, 0] - image).max((-3, -2, -1)) < 1e-6)
            found |= {(side, *place[1:].tolist()) for place in hit[:1]}
    assert len(images) == 18
    assert {side for side, *_ in found} == {1, -1}
    assert len(found) > 10, "many places of the crop"


@SETS
def test_missing_files_say_what_to_put_where(tmp_path, classes):
    folder = FILES[classes][0]
    message = f"no folder {tmp_path / folder}; expected there what https://.*cifar-{classes}-python.tar.gz unpacks to"
    with pytest.raises(ValueError, match=message):
        CIFAR(str(tmp_path), classes)


def test_damaged_and_missing_files_are_named(tmp_path):
    words = fake(tmp_path)
    with pytest.raises(ValueError, match=r"missing or damaged in .*: data_batch_1, data_batch_2, .*batches.meta; exp"):
        CIFAR(str(tmp_path))  # the md5 sums are not those of the published files
    (tmp_path / FILES[10][0] / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"missing or damaged in .*: data_batch_3; expected .* or set download: true"):
        CIFAR(**words)
    (tmp_path / FILES[100][0] / "meta").unlink()
    with pytest.raises(ValueError, match=r"missing or damaged in .*: meta;"):
        CIFAR(**words, classes=100)


def test_number_of_classes_is_checked(tmp_path):
    with pytest.raises(ValueError, match="classes must be 10 or 100, got 20"):
        CIFAR(**fake(tmp_path), classes=20)


def test_download_is_asked_of_torchvision_once(tmp_path, monkeypatch):
    asked = []

    class Published(cifar.datasets.CIFAR10):
        def download(self):
            asked.append(self.root)
            fake(self.root)

    monkeypatch.setitem(cifar.READERS, 10, Published)
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz did not arrive whole in .*new"):  # other md5 sums
        CIFAR(str(tmp_path / "new"), download=True)
    assert asked == [tmp_path / "new"]


@SETS
def test_trains_and_tests(tmp_path, classes):
    torch.manual_seed(0)
    data = CIFAR(**fake(tmp_path), classes=classes, batch_size=4)
    model = ImageClassification(data.num_classes, "local_convnet", data.input_size, blocks=Blocks(at="layer3"))
    trainer = pl.Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, data)
    (figures,) = trainer.test(model, data, verbose=False)
    assert np.isfinite(figures["test/loss"])
