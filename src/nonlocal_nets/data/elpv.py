"""ELPV: electroluminescence images of solar cells, 2,624 grey ones of 300 x 300, inside the package elpv-dataset.

Extracted from 44 solar modules, normalised in size and perspective, each with the module's type, mono- or
polycrystalline, and a probability that the cell is defective: 0, 1/3, 2/3 or 1. Buerhop-Lutz et al. (EU PVSEC 2018),
Deitsch et al. (Solar Energy 185, 2019). CC-BY-NC-SA 4.0.
"""

import importlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from torchvision.transforms import v2

from nonlocal_nets.data.base import split
from nonlocal_nets.data.images import ImageFilesDataModule

PACKAGE = RequirementCache("elpv-dataset")
CLASSES = {"defect": ("functional", "defective"), "type": ("mono", "poly")}


class Cell(NamedTuple):
    """A row of labels.csv."""

    path: str
    probability: float
    type: str


class ELPV(ImageFilesDataModule):
    """The solar cells, by defect or by type; grey images are repeated to three channels.

    `target: defect` has two classes: a cell is "defective" where its probability is above 0.5. So 1/3 counts as
    functional and 2/3 as defective, although both say that it is not certain. What Deitsch et al. do with these cells
    the package does not say, nor which cells they train and test on: mind that beside the published accuracies.

    The split is random, even in each (type, probability). The package does not say which module a cell is from, so
    cells of one module are in training and in test.

    Training mirrors and turns by multiples of 90 degrees: a defect stays one. A crop could lose it, and brightness is
    what shows it, so these stay as they are.

    Args:
        target: what the label is, "defect" or "type".
        root: a folder with `labels.csv` and the images it names; default the one inside the package elpv-dataset.
        image_size: height and width of an image in a batch, pixels; the files have 300.
        val_fraction: the share for validation.
        test_fraction: the share for the test.
        seed: of the split.
        kwargs: of `ImageFilesDataModule` and `ImageDataModule`.

    Raises:
        ValueError: a folder without labels.csv, a row of it that cannot be read, an image that is not there, a share
            out of range.
        ModuleNotFoundError: no `root`, and the package is not installed; says how to install it.
    """

    def __init__(
        self,
        target: Literal["defect", "type"] = "defect",
        root: str | None = None,
        image_size: int = 224,
        val_fraction: float = 0.1,
        test_fraction: float = 0.25,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if target not in CLASSES:
            raise ValueError(f"target must be 'defect' or 'type', got {target!r}")
        cells = read_cells(_package_folder() if root is None else Path(root))
        labels = [int(cell.probability > 0.5) if target == "defect" else int(cell.type == "poly") for cell in cells]
        groups = [f"{cell.type} {cell.probability:.2f}" for cell in cells]
        parts = split(groups, {"test": test_fraction, "val": val_fraction}, seed)
        turns = v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)])
        super().__init__(
            class_names=CLASSES[target],
            image_size=image_size,
            augment=[v2.Resize((image_size, image_size)), v2.RandomHorizontalFlip(), turns],
            crop_fraction=1.0,
            parts={part: [(cells[k].path, labels[k]) for k in chosen] for part, chosen in parts.items()},
            **kwargs,
        )


def _package_folder() -> Path:
    if not PACKAGE:
        raise ModuleNotFoundError("the solar cells are in a package: pip install elpv-dataset")
    return Path(str(importlib.import_module("elpv_dataset").__file__)).parent / "data"


def read_cells(root: Path) -> list[Cell]:
    """The rows of root/labels.csv, with paths that begin at root.

    Raises:
        ValueError: no such file, or a row that is not `path probability mono|poly`, or names no file.
    """
    table = root / "labels.csv"
    if not table.is_file():
        raise ValueError(f"no file {table}: expected rows of path, probability, mono or poly, and the images they name")
    cells = []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        try:
            path, probability, kind = line.split()
            cell = Cell(str(root / path), float(probability), kind)
        except ValueError:
            cell = None
        if cell is None or not 0 <= cell.probability <= 1 or cell.type not in CLASSES["type"]:
            raise ValueError(f"{table}, line {number}: expected path, probability, mono or poly; got {line!r}")
        if not Path(cell.path).is_file():
            raise ValueError(f"{table}, line {number}: no file {cell.path}")
        cells.append(cell)
    return cells


def fake(root: str | Path) -> dict[str, Any]:
    """Write 32 cells in the package's layout, 4 of each (type, probability): 300 x 300 grey png, and labels.csv.

    Returns:
        The arguments with which `ELPV` reads them.
    """
    random = np.random.default_rng(0)
    images = Path(root) / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(32):
        probability, kind = (k % 4) / 3, ("mono", "poly")[k // 4 % 2]
        pixels = np.repeat(random.integers(100, 200, size=(300, 1), dtype=np.uint8), 300, axis=1)
        pixels[:, 140 : 140 + round(20 * probability)] = 0  # a dark bar, the wider the surer
        pixels[:20, :20] = 255 if kind == "mono" else 100
        Image.fromarray(pixels).save(images / f"cell{k + 1:04}.png")
        rows.append(f"images/cell{k + 1:04}.png  {probability!r:<20}{kind}\n")
    (Path(root) / "labels.csv").write_text("".join(rows))
    return {"root": str(root)}
