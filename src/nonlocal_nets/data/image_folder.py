"""Images in class folders: ImageNet's layout with train and val, or one folder that is split at random."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from nonlocal_nets.data.base import one_line, only_in, split
from nonlocal_nets.data.images import ImageFilesDataModule, Sample
from nonlocal_nets.data.trained import MissingDataError, classes_alone, training_data


class ImageFolder(ImageFilesDataModule):
    """Images with one folder per class; the classes are the sorted names of the folders.

    There are two layouts, the first if `root/train` or `root/val` contains folders:

    - `root/train/<class>/*`, `root/val/<class>/*` and, optionally, `root/test/<class>/*`, as ImageNet. Without a test
      folder the test uses val.
    - `root/<class>/*`, split at random into train, val and test, in the same proportions for each class.

    Args:
        root: the folder with the images.
        image_size: height and width of the images in a batch, in pixels.
        scale: smallest and largest share of an image's area that a random crop in training covers.
        flip: whether training mirrors images left to right with probability 0.5.
        crop_fraction: evaluation resizes the shorter side to image_size / crop_fraction and takes the central crop.
        val_fraction: the share for validation; only for the second layout, since the first is split already.
        test_fraction: the share for the test; only for the second layout.
        seed: seed of the split; only for the second layout.
        kwargs: arguments of `ImageFilesDataModule` and `ImageDataModule`.

    Raises:
        ValueError: a missing root, an unknown layout, a class without images, different classes in train and val, or
            an invalid argument.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        crop_fraction: float = 0.875,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two shares, 0 < smallest <= largest <= 1, got {scale}")
        fractions = {"test": test_fraction, "val": val_fraction}
        read = partial(_read_any, Path(root), fractions, seed)
        classes, parts = training_data(read, classes_alone)
        augment: list[v2.Transform] = [v2.RandomResizedCrop(image_size, scale)]
        super().__init__(
            class_names=classes,
            image_size=image_size,
            augment=[*augment, v2.RandomHorizontalFlip()] if flip else augment,
            crop_fraction=crop_fraction,
            parts=parts,
            **kwargs,
        )


def _read_any(root: Path, fractions: dict[str, float], seed: int) -> tuple[list[str], dict[str, list[Sample]]]:
    """Classes, and samples of each part, of either layout."""
    if not root.is_dir():
        raise MissingDataError(f"no folder {root}: {_expected(root)}")
    if any(_has_folders(root / part) for part in ("train", "val")):
        return _read_parts(root)
    classes, samples = _read(root)
    indices = split([label for _, label in samples], fractions, seed)
    return classes, {part: [samples[k] for k in chosen] for part, chosen in indices.items()}


def _expected(root: Path) -> str:
    return f"expected {root}/train/<class>/* and {root}/val/<class>/*, or {root}/<class>/*"


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _read_parts(root: Path) -> tuple[list[str], dict[str, list[Sample]]]:
    """Classes, and samples of each part, of the layout with root/train and root/val."""
    for part in ("train", "val"):
        if not _has_folders(root / part):
            raise MissingDataError(f"no class folders in {root / part}: {_expected(root)}")
    # ImageNet's own test set has no labels, hence no class folders: then the test uses val
    folders = {"train": "train", "val": "val", "test": "test" if _has_folders(root / "test") else "val"}
    classes, train = _read(root / "train")
    parts = {"train": train}
    for part in ("val", "test"):
        others, parts[part] = _read(root / folders[part])
        if others != classes:
            sides = only_in({"train": set(classes), folders[part]: set(others)})
            raise ValueError(f"{root / 'train'} and {root / folders[part]} have different classes; {sides}")
    return classes, parts


def _read(folder: Path) -> tuple[list[str], list[Sample]]:
    """Classes and samples of folder/<class>/*."""
    try:
        found = datasets.ImageFolder(folder)
    except FileNotFoundError as error:  # no class folder, or one without an image
        raise MissingDataError(f"{folder}: {one_line(error).rstrip('. ')}; expected {folder}/<class>/*") from error
    return found.classes, found.samples


def fake(root: str | Path) -> dict[str, Any]:
    """Write ImageNet's layout: 3 classes with 5 training and 2 validation images each, jpg and png, about 40 x 56.

    `root/train` by itself has the layout with one folder.

    Returns:
        The arguments with which `ImageFolder` reads them.
    """
    random = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = Path(root) / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                pixels = random.integers(100, size=(40 + k, 56, 3), dtype=np.uint8)
                pixels[..., label] += 150  # the colour shows the class
                Image.fromarray(pixels).save(folder / f"{k}.{'png' if k % 2 else 'jpg'}")
    return {"root": str(root)}
