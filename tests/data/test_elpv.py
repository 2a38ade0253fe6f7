"""The solar cells of the package, compared with its own reader, and the same format in a folder."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_utilities.core.imports import RequirementCache
from PIL import Image

from nonlocal_nets.data import elpv
from nonlocal_nets.data.elpv import ELPV, fake, read_cells

PARTS = ("train", "val", "test")


@pytest.fixture(scope="module")
def package():
    """Folder, probabilities and types, read as by the package's own reader, which also reads its 2,624 images."""
    folder = Path(pytest.importorskip("elpv_dataset").__file__).parent / "data"
    rows = np.genfromtxt(folder / "labels.csv", dtype=["|U19", "<f8", "|U4"], names=["path", "probability", "type"])
    assert [number(path) for path in rows["path"]] == list(range(2624))
    return folder, rows["probability"], rows["type"]


def number(path):
    return int(Path(path).stem.removeprefix("cell")) - 1


@pytest.mark.parametrize("target", ["defect", "type"])
def test_the_package_has_2624_cells_with_their_labels(package, target):
    _, probabilities, types = package
    data = ELPV(target)
    assert data.class_names == {"defect": ("functional", "defective"), "type": ("mono", "poly")}[target]
    samples = [sample for part in PARTS for sample in data.parts[part]]
    assert sorted(number(path) for path, _ in samples) == list(range(2624))
    for path, label in samples:
        k = number(path)
        assert label == ((probabilities[k] > 0.5) if target == "defect" else (types[k] == "poly"))


def test_the_split_is_stratified_by_type_and_probability(package):
    _, probabilities, types = package
    groups = [f"{kind} {probability:.1f}" for kind, probability in zip(types, probabilities, strict=True)]
    data = ELPV()
    sizes = Counter(groups)
    assert len(sizes) == 8
    for part, fraction in (("train", 0.65), ("val", 0.1), ("test", 0.25)):
        counts = Counter(groups[number(path)] for path, _ in data.parts[part])
        assert all(abs(counts[group] - fraction * size) <= 2 for group, size in sizes.items())
    assert data.parts == ELPV().parts != ELPV(seed=1).parts
    labels_only = {part: [path for path, _ in ELPV("type").parts[part]] for part in PARTS}
    assert labels_only == {part: [path for path, _ in data.parts[part]] for part in PARTS}, "the same split for both"


def test_images_are_those_of_the_package_repeated_in_three_channels(package):
    folder, _, _ = package
    data = ELPV(image_size=300, batch_size=3, mean=(0, 0, 0), std=(1, 1, 1))
    batch, _ = next(iter(data.val_dataloader()))
    assert batch.shape == (3, 3, 300, 300)
    for image, (path, _) in zip(batch, data.parts["val"], strict=False):
        with Image.open(folder / "images" / Path(path).name) as cell:
            grey = np.asarray(cell)
        assert (grey.shape, grey.dtype) == ((300, 300), np.uint8)
        for channel in image:
            np.testing.assert_allclose(channel, grey / 255, atol=1e-6)


def test_training_only_mirrors_and_rotates(tmp_path):
    args = fake(tmp_path)
    pixels = np.random.default_rng(0).integers(255, size=(16, 16), dtype=np.uint8)
    for path in (tmp_path / "images").iterdir():
        Image.fromarray(pixels).save(path)
    data = ELPV(**args, image_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    eight = [np.rot90(side, turns) / 255 for side in (pixels, pixels[:, ::-1]) for turns in range(4)]
    seen, loader = Counter(), data.train_dataloader()
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)
        for image in torch.cat([images for images, _ in loader]).numpy():
            assert np.array_equal(image[0], image[2])
            (which,) = (k for k, turned in enumerate(eight) if np.abs(image[0] - turned).max() < 1e-6)
            seen[which] += 1
    assert set(seen) == set(range(8)), "all symmetries of the square"
    assert max(seen.values()) < 2 * sum(seen.values()) / 8, "each about as often"


def test_the_reader_of_the_package_reads_fake(tmp_path, package):
    _, real_probabilities, real_types = package
    reader = pytest.importorskip("elpv_dataset.utils")
    fake(tmp_path)
    images, probabilities, types = reader.load_dataset(str(tmp_path / "labels.csv"))
    assert (images.shape, images.dtype) == ((32, 300, 300), np.uint8)
    kinds, real = set(zip(types, probabilities, strict=True)), set(zip(real_types, real_probabilities, strict=True))
    assert kinds == real
    cells = read_cells(tmp_path)
    assert [(cell.type, cell.probability) for cell in cells] == list(zip(types, probabilities, strict=True))


def test_invalid_folders(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*nowhere/labels.csv: expected rows of path, probability, and mono"):
        ELPV(root=str(tmp_path / "nowhere"))
    fake(tmp_path)
    with pytest.raises(ValueError, match="target must be 'defect' or 'type', got 'crack'"):
        ELPV("crack", root=str(tmp_path))
    table, rows = tmp_path / "labels.csv", (tmp_path / "labels.csv").read_text().splitlines()
    for row in ("images/cell0002.png 1.0", "images/cell0002.png x mono", "images/cell0002.png 2 mono", "a 1.0 thin"):
        table.write_text("\n".join([rows[0], row, *rows[2:]]))
        with pytest.raises(ValueError, match=rf"labels.csv, line 2: expected path, .*; got '{row}'"):
            ELPV(root=str(tmp_path))
    table.write_text("\n".join([*rows[:3], "images/cell9999.png 0.0 poly"]))
    with pytest.raises(ValueError, match=r"labels.csv, line 4: no file .*cell9999.png"):
        ELPV(root=str(tmp_path))
    table.write_text("")
    with pytest.raises(ValueError, match="a split of 0 samples"):
        ELPV(root=str(tmp_path))


def test_without_the_package_the_message_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(elpv, "PACKAGE", RequirementCache("no-such-package-of-solar-cells"))
    with pytest.raises(ModuleNotFoundError, match="pip install elpv-dataset"):
        ELPV()
