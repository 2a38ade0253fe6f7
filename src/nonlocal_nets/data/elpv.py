"""ELPV: 2,624 grey electroluminescence images of solar cells, 300 x 300 pixels, from the package elpv-dataset.

The cells are from 44 solar modules; their images are normalised in size and perspective. Each has the type of its
module, mono- or polycrystalline, and a probability that the cell is defective: 0, 1/3, 2/3 or 1.
Buerhop-Lutz et al. (EU PVSEC 2018), Deitsch et al. (Solar Energy 185, 2019). CC-BY-NC-SA 4.0.
"""

import importlib
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from torchvision.transforms import v2

from nonlocal_nets.data.base import split
from nonlocal_nets.data.images import ImageFilesDataModule, Sample
from nonlocal_nets.data.trained import MissingDataError, training_data

PACKAGE = RequirementCache("elpv-dataset")
CLASSES = {"defect": ("functional", "defective"), "type": ("mono", "poly")}


class Cell(NamedTuple):
    """A row of labels.csv."""

    path: str
    probability: float
    type: str


class ELPV(ImageFilesDataModule):
    """Solar cells classified by defect or by type; the grey image is repeated in all three channels.

    With `target: defect`, a cell is "defective" if its probability is above 0.5. So 1/3 counts as functional and 2/3 as
    defective, although neither is certain. The package does not state how Deitsch et al. label these cells, nor
    which cells they train and test on, so their accuracies cannot be compared with ours directly.

    The split is random and stratified by type and probability. The package does not state which module a cell is
    from, so training and test may contain cells of the same module.

    Training mirrors images and rotates them by multiples of 90 degrees, which preserves defects. It neither crops,
    which could remove a defect, nor changes the brightness, which shows it.

    Args:
        target: what to classify, "defect" or "type".
        root: a folder with `labels.csv` and the images that it lists; default: the one inside the package elpv-dataset.
        image_size: height and width of the images in a batch, in pixels; the files have 300.
        val_fraction: the share for validation.
        test_fraction: the share for the test.
        seed: seed of the split.
        kwargs: arguments of `ImageFilesDataModule` and `ImageDataModule`.

    Raises:
        ValueError: no labels.csv, an unreadable row in it, a missing image, or an invalid argument.
        ModuleNotFoundError: no `root` is given and the package is not installed; names the command that installs it.
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
        fractions = {"test": test_fraction, "val": val_fraction}
        parts = training_data(partial(read_parts, root, target, fractions, seed), lambda _trained: {})
        turns = v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)])
        super().__init__(
            class_names=CLASSES[target],
            image_size=image_size,
            augment=[v2.Resize((image_size, image_size)), v2.RandomHorizontalFlip(), turns],
            crop_fraction=1.0,
            parts=parts,
            **kwargs,
        )


def read_parts(root: str | None, target: str, fractions: dict[str, float], seed: int) -> dict[str, list[Sample]]:
    """The samples of each part, with the labels of a target."""
    cells = read_cells(_package_folder() if root is None else Path(root))
    labels = [int(cell.probability > 0.5) if target == "defect" else int(cell.type == "poly") for cell in cells]
    parts = split([f"{cell.type} {cell.probability:.2f}" for cell in cells], fractions, seed)
    return {part: [(cells[k].path, labels[k]) for k in chosen] for part, chosen in parts.items()}


def _package_folder() -> Path:
    if not PACKAGE:
        raise ModuleNotFoundError("the images of solar cells are in a package: pip install elpv-dataset")
    return Path(str(importlib.import_module("elpv_dataset").__file__)).parent / "data"


def read_cells(root: Path) -> list[Cell]:
    """The rows of root/labels.csv; the paths include root.

    Raises:
        ValueError: no such file, a row that is not `path probability mono|poly`, or a missing image.
    """
    table = root / "labels.csv"
    if not table.is_file():
        raise MissingDataError(f"no file {table}: expected rows of path, probability, and mono or poly")
    cells = []
    for number, line in enumerate(table.read_text().splitlines(), 1):
        try:
            path, probability, kind = line.split()
            cell = Cell(str(root / path), float(probability), kind)
        except ValueError:
            cell = None
        if cell is None or not 0 <= cell.probability <= 1 or cell.type not in CLASSES["type"]:
            raise ValueError(f"{table}, line {number}: expected path, probability, mono or poly; got {line[:80]!r}")
        if not Path(cell.path).is_file():
            raise MissingDataError(f"{table}, line {number}: no file {cell.path}")
        cells.append(cell)
    return cells


def fake(root: str | Path) -> dict[str, Any]:
    """Write 32 cells in the package's layout, 4 for each type and probability: grey png of 300 x 300, and labels.csv.

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
        pixels[:, 140 : 140 + round(20 * probability)] = 0  # a dark bar, wider for a higher probability
        pixels[:20, :20] = 255 if kind == "mono" else 100
        Image.fromarray(pixels).save(images / f"cell{k + 1:04}.png")
        rows.append(f"images/cell{k + 1:04}.png  {probability!r:<20}{kind}\n")
    (Path(root) / "labels.csv").write_text("".join(rows))
    return {"root": str(root)}
