"""CIFAR's files as published, pickles with rows of 3,072 bytes, compared with an independent reader."""

import pickle
from collections import Counter

import numpy as np
import pytest

from nonlocal_nets.data import cifar
from nonlocal_nets.data.cifar import CIFAR, fake

FILES = {
    10: ("cifar-10-batches-py", [f"data_batch_{k}" for k in range(1, 6)], "test_batch", "labels"),
    100: ("cifar-100-python", ["train"], "test", "fine_labels"),
}
CLASSES = pytest.mark.parametrize("classes", [10, 100])
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1), "batch_size": 64}


def rows(root, classes, train):
    """Images (N, 3, 32, 32) in [0, 1] and labels, from the pickles."""
    folder, trains, test, key = FILES[classes]
    entries = [pickle.loads((root / folder / name).read_bytes()) for name in (trains if train else [test])]
    images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32) / 255
    return images, [label for entry in entries for label in entry[key]]


@CLASSES
def test_the_test_images_are_those_of_the_file(tmp_path, classes):
    data = CIFAR(**fake(tmp_path), classes=classes, **PLAIN)
    assert data.num_classes == len(data.class_names) == classes
    assert data.input_size == (3, 32, 32)
    ((images, labels),) = data.test_dataloader()
    expected, targets = rows(tmp_path, classes, train=False)
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert labels.tolist() == targets


def test_class_names_come_from_the_file(tmp_path):
    args = fake(tmp_path)
    names = {"label_names": list("qwertyuiop")}
    (tmp_path / FILES[10][0] / "batches.meta").write_bytes(pickle.dumps(names))
    assert CIFAR(**args).class_names == tuple("qwertyuiop")
    assert CIFAR(**args, classes=100).class_names == tuple(f"fine label {k}" for k in range(100))


@CLASSES
def test_train_and_val_share_the_training_files(tmp_path, classes):
    args = {**fake(tmp_path), "classes": classes, "val_fraction": 0.25}
    data = CIFAR(**args)
    chosen = {part: list(data.parts[part][1]) for part in ("train", "val")}
    assert sorted(chosen["train"] + chosen["val"]) == list(range(20))
    assert len(chosen["val"]) == 5
    again, other = CIFAR(**args), CIFAR(**args, seed=1)
    assert chosen["val"] == again.parts["val"][1] != other.parts["val"][1]
    ((images, labels),) = CIFAR(**args, **PLAIN).val_dataloader()
    expected, targets = rows(tmp_path, classes, train=True)
    np.testing.assert_allclose(images, expected[chosen["val"]], atol=1e-6)
    assert labels.tolist() == [targets[k] for k in chosen["val"]]


def test_validation_is_stratified(tmp_path):
    args = fake(tmp_path)
    labels = np.repeat(np.arange(10), 8)
    entry = {"data": np.zeros((80, 3072), np.uint8), "labels": labels.tolist()}
    (tmp_path / FILES[10][0] / "data_batch_1").write_bytes(pickle.dumps(entry))
    for k in range(2, 6):
        empty = {"data": np.zeros((0, 3072), np.uint8), "labels": []}
        (tmp_path / FILES[10][0] / f"data_batch_{k}").write_bytes(pickle.dumps(empty))
    data = CIFAR(**args, val_fraction=0.25)
    assert Counter(labels[data.parts["val"][1]].tolist()) == dict.fromkeys(range(10), 2)


def test_training_pads_crops_and_flips(tmp_path):
    """Each training image is compared with all crops of its padded original, found by its index, and their mirrors."""
    data = CIFAR(**fake(tmp_path), **PLAIN, val_fraction=0.5)
    original, targets = rows(tmp_path, 10, train=True)
    padded = np.pad(original, ((0, 0), (0, 0), (4, 4), (4, 4)))
    found = []
    loader = data.train_dataloader()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        indices = [data.parts["train"][1][k] for _, k in loader.sampler]
        ((images, labels),) = loader
        assert labels.tolist() == [targets[k] for k in indices]
        for k, image in zip(indices, images.numpy(), strict=True):
            for side in (1, -1):
                windows = np.lib.stride_tricks.sliding_window_view(padded[k, :, :, ::side], (3, 32, 32))[0]
                found += [(side, *hit.tolist()) for hit in np.argwhere(np.abs(windows - image).max((2, 3, 4)) < 1e-6)]
    sides, tops, lefts = zip(*found, strict=True)
    assert len(found) == 40, "each image is such a crop"
    assert len(set(found)) > 30
    assert 10 < sides.count(-1) < 30
    assert (min(tops), max(tops)) == (min(lefts), max(lefts)) == (0, 8), "up to 4 pixels to each side"


@CLASSES
def test_messages_for_missing_files(tmp_path, classes):
    folder = FILES[classes][0]
    url = f"https://.*cifar-{classes}-python.tar.gz"
    message = f"no folder {tmp_path / folder}; expected the files of {url}, or download: true"
    with pytest.raises(ValueError, match=message):
        CIFAR(str(tmp_path), classes)


def test_damaged_and_missing_files_are_named(tmp_path):
    args = fake(tmp_path)
    with pytest.raises(ValueError, match=r"missing or damaged in .*: data_batch_1, data_batch_2, .* \(\+3 more\); exp"):
        CIFAR(str(tmp_path))  # the md5 sums are not those of the published files
    (tmp_path / FILES[10][0] / "data_batch_3").unlink()
    with pytest.raises(ValueError, match=r"missing or damaged in .*: data_batch_3; expected .*, or download: true"):
        CIFAR(**args)
    (tmp_path / FILES[100][0] / "meta").unlink()
    with pytest.raises(ValueError, match=r"missing or damaged in .*: meta;"):
        CIFAR(**args, classes=100)


def test_number_of_classes_is_10_or_100(tmp_path):
    with pytest.raises(ValueError, match="classes must be 10 or 100, got 20"):
        CIFAR(**fake(tmp_path), classes=20)


def test_torchvision_downloads_once(tmp_path, monkeypatch):
    downloads = []

    class Published(cifar.datasets.CIFAR10):
        def download(self):
            downloads.append(self.root)
            fake(self.root)

    monkeypatch.setitem(cifar.READERS, 10, Published)
    with pytest.raises(ValueError, match=r"the download of .*cifar-10-python.tar.gz to .*new is damaged: "):  # md5 sums
        CIFAR(str(tmp_path / "new"), download=True)
    assert downloads == [tmp_path / "new"]
