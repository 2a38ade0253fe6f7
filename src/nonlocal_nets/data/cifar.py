"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), 60,000 images of 32 x 32 pixels, read by torchvision."""

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from nonlocal_nets.data.base import listed, one_line, split
from nonlocal_nets.data.images import ImageDataModule
from nonlocal_nets.data.trained import MissingDataError, classes_alone, training_data

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # CIFAR-10's
KINDS = (("coarse", 20), ("fine", 100))  # CIFAR-100's labels
READERS = {10: datasets.CIFAR10, 100: datasets.CIFAR100}


class CIFARImages(Dataset[tuple[Tensor, int]]):
    """Sample k is the transformed image k and its label.

    Args:
        images: uint8, (N, 32, 32, 3).
        labels: N labels.
        transform: applied to the PIL image.
    """

    def __init__(self, images: NDArray[np.uint8], labels: list[int], transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class CIFAR(ImageDataModule):
    """CIFAR-10 or CIFAR-100 at 32 x 32. Validation is a stratified share of the 50,000 training images.

    Training pads by 4 pixels, takes a random crop and mirrors it with probability 0.5.

    Args:
        root: the folder that contains `cifar-10-batches-py` or `cifar-100-python`, as unpacked from the archives.
        classes: 10, or 100 for the fine labels of CIFAR-100.
        val_fraction: the share of the training images for validation.
        seed: seed of the split into training and validation.
        download: download the archive into `root` and unpack it, unless its files are there.
        verify: check the md5 sums of the published files. Without it, any files in the same format are read, as `fake`
            writes them. They are pickles, which can run code: read only files that you trust.
        kwargs: arguments of `ImageDataModule`.

    Raises:
        ValueError: missing or damaged files, or an invalid argument.
    """

    def __init__(
        self,
        root: str = "data",
        classes: Literal[10, 100] = 10,
        val_fraction: float = 0.1,
        seed: int = 0,
        download: bool = False,
        verify: bool = True,
        **kwargs: Any,
    ) -> None:
        if classes not in READERS:
            raise ValueError(f"classes must be 10 or 100, got {classes}")
        if download:
            _download(Path(root), classes)
        read = partial(_read_parts, Path(root), classes, verify, val_fraction, seed)
        names, self.parts = training_data(read, classes_alone)
        crop = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        super().__init__(class_names=names, image_size=32, augment=crop, crop_fraction=1.0, **kwargs)

    def images(self, part: str, transform: v2.Transform) -> Subset[tuple[Tensor, int]]:
        read, indices = self.parts[part]
        return Subset(CIFARImages(read.data, read.targets, transform), indices)


def _download(root: Path, classes: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".cifar.lock"):  # all processes of a distributed run download at the same time
        try:
            READERS[classes](root, download=True)
        except RuntimeError as error:  # the md5 sums differ from those of the published files
            url = READERS[classes].url
            raise ValueError(f"the download of {url} to {root} is damaged: {one_line(error)}") from error


def _read_parts(
    root: Path, classes: int, verify: bool, val_fraction: float, seed: int
) -> tuple[list[str], dict[str, tuple[Any, Sequence[int]]]]:
    """Names of the classes, and torchvision's data set and the indices of each part."""
    train, test = (_read(root, classes, train, verify) for train in (True, False))
    indices = split(train.targets, {"val": val_fraction}, seed)
    parts: dict[str, tuple[Any, Sequence[int]]] = {part: (train, chosen) for part, chosen in indices.items()}
    return train.classes, parts | {"test": (test, range(len(test)))}


def _read(root: Path, classes: int, train: bool, verify: bool) -> Any:
    """torchvision's data set, with or without a check of the md5 sums."""
    reader = READERS[classes]
    files = [*reader.train_list, *reader.test_list, [reader.meta["filename"], reader.meta["md5"]]]
    if not verify:
        unknown = {part: [[name, None] for name, _ in getattr(reader, part)] for part in ("train_list", "test_list")}
        reader = type(reader.__name__, (reader,), {**unknown, "meta": reader.meta | {"md5": None}})
    folder = root / reader.base_folder
    try:
        return reader(root, train)
    except RuntimeError as error:
        bad = [name for name, md5 in files if not check_integrity(folder / name, md5 if verify else None)]
        problem = f"missing or damaged in {folder}: {listed(bad, 60)}" if folder.is_dir() else f"no folder {folder}"
        expected = f"expected the files of {reader.url}, or download: true"
        raise MissingDataError(f"{problem}; {expected}") from error


def fake(root: str | Path) -> dict[str, Any]:
    """Write both data sets in their published format: pickles with 20 training and 8 test images each.

    Returns:
        The arguments with which `CIFAR` reads them, for either number of `classes`: md5 sums are not checked.
    """
    random = np.random.default_rng(0)
    for classes, reader in READERS.items():
        folder = Path(root) / reader.base_folder
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: 20 // len(reader.train_list) for name, _ in reader.train_list} | {reader.test_list[0][0]: 8}
        for name, count in files.items():
            labels = random.integers(classes, size=count)
            pixels = random.integers(100, size=(count, 3072)) + 155 * labels[:, None] // classes  # dark to bright
            targets = {"labels": labels} if classes == 10 else {"coarse_labels": labels % 20, "fine_labels": labels}
            entry = {key: values.tolist() for key, values in targets.items()}
            _dump(folder / name, entry | {"data": pixels.astype(np.uint8), "batch_label": name})
        names = {"label_names": list(NAMES)} if classes == 10 else {}
        names |= {f"{kind}_label_names": [f"{kind} label {k}" for k in range(n)] for kind, n in KINDS if classes == 100}
        _dump(folder / reader.meta["filename"], names)
    return {"root": str(root), "verify": False}


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))  # the published files were written by Python 2
