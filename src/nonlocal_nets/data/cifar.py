"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the files that torchvision reads: 60,000 images of 32 x 32."""

import pickle
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

from nonlocal_nets.data.base import split
from nonlocal_nets.data.images import ImageDataModule

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # CIFAR-10's
READERS = {10: datasets.CIFAR10, 100: datasets.CIFAR100}


class CIFARImages(Dataset[tuple[Tensor, int]]):
    """Sample k is the transformed image k and its label.

    Args:
        images: uint8, (N, 32, 32, 3).
        labels: N of them.
        transform: of the PIL image.
    """

    def __init__(self, images: NDArray[np.uint8], labels: list[int], transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class CIFAR(ImageDataModule):
    """CIFAR-10 or CIFAR-100 at 32 x 32. Validation is a share of the 50,000 training images, even in each class.

    Training pads by 4 pixels, crops at random and mirrors every other image.

    Args:
        root: the folder that holds `cifar-10-batches-py` or `cifar-100-python`, as the archives unpack.
        classes: 10 or 100 (the fine labels).
        val_fraction: the share of the training images for validation.
        seed: of that split.
        download: fetch and unpack the archive into `root` first if it is not there.
        verify: compare the files' md5 sums with those of the published ones. Without it the files may be your own in
            the same format, as `fake` writes them; they are pickles, which can run code: read only what you trust.
        kwargs: of `ImageDataModule`.

    Raises:
        ValueError: files that are missing or damaged, a share out of range.
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
        train, test = (_read(Path(root), classes, train, verify) for train in (True, False))
        crop = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        super().__init__(class_names=train.classes, image_size=32, augment=crop, crop_fraction=1.0, **kwargs)
        parts = split(train.targets, {"val": val_fraction}, seed)
        self.parts = {part: (train, indices) for part, indices in parts.items()} | {"test": (test, range(len(test)))}

    def images(self, part: str, transform: v2.Transform) -> Subset[tuple[Tensor, int]]:
        read, indices = self.parts[part]
        return Subset(CIFARImages(read.data, read.targets, transform), indices)


def _download(root: Path, classes: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".cifar.lock"):  # the processes of a distributed run come here at the same time
        try:
            READERS[classes](root, download=True)
        except RuntimeError as error:  # other md5 sums than those of the published files
            raise ValueError(f"{READERS[classes].url} did not arrive whole in {root}: {error}") from error


def _read(root: Path, classes: int, train: bool, verify: bool) -> Any:
    """torchvision's data set, with or without its md5 sums."""
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
        what = f"missing or damaged in {folder}: {', '.join(bad)}" if folder.is_dir() else f"no folder {folder}"
        expected = f"expected there what {reader.url} unpacks to; or set download: true"
        raise ValueError(f"{what}; {expected}") from error


def fake(root: str | Path) -> dict[str, Any]:
    """Write both sets in their published format: pickles of 20 training and 8 test images each.

    Returns:
        The arguments with which `CIFAR` reads them, with any `classes`: without the md5 sums.
    """
    random = np.random.default_rng(0)
    for classes, reader in READERS.items():
        folder = Path(root) / reader.base_folder
        folder.mkdir(parents=True, exist_ok=True)
        key = "labels" if classes == 10 else "fine_labels"
        files = {name: 20 // len(reader.train_list) for name, _ in reader.train_list} | {reader.test_list[0][0]: 8}
        for name, count in files.items():
            labels = random.integers(classes, size=count)
            pixels = random.integers(100, size=(count, 3072)) + 155 * labels[:, None] // classes  # dark to bright
            _dump(folder / name, {"data": pixels.astype(np.uint8), key: labels.tolist(), "batch_label": name})
        names = list(NAMES) if classes == 10 else [f"fine label {k}" for k in range(classes)]
        _dump(folder / reader.meta["filename"], {reader.meta["key"]: names})
    return {"root": str(root), "verify": False}


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))  # the published files are of Python 2
