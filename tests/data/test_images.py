"""What all image data modules share, on real files: pixels compared with Pillow, splits, corrupt files, predict."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from nonlocal_nets.data.base import split
from nonlocal_nets.data.images import CorruptImageError, ImageFiles, ImageFilesDataModule, check_headers

COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220))
WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


class Squares(ImageFilesDataModule):
    """The same files in all parts, by default without augmentation."""

    def __init__(self, files, image_size=8, crop_fraction=1.0, augment=(), **args):
        samples = [(str(path), k % 3) for k, path in enumerate(files)]
        parts = {"train": samples, "val": samples, "test": samples}
        args |= {"image_size": image_size, "crop_fraction": crop_fraction, "augment": augment}
        super().__init__(class_names="rgb", parts=parts, **args)


@pytest.fixture
def files(tmp_path):
    """Twelve images of 8 x 8 pixels in a single colour; file k has colour k % 3."""
    paths = [tmp_path / f"{k:02}.png" for k in range(12)]
    for k, path in enumerate(paths):
        Image.new("RGB", (8, 8), COLOURS[k % 3]).save(path)
    return paths


def spoil(path, how):
    noise = np.random.default_rng(0).integers(255, size=(64, 64, 3), dtype=np.uint8)
    if how in ("jpeg", "png"):
        Image.fromarray(noise).save(path, how)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_text({"text": "no image at all\n", "empty": ""}[how])


def read(loader):
    return [label for _, labels in loader for label in labels.tolist()]


def test_evaluation_is_resize_centre_crop_and_normalisation(tmp_path):
    pixels = np.random.default_rng(0).integers(255, size=(30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    data = Squares([tmp_path / "a.png"], image_size=16, crop_fraction=0.8, mean=mean, std=std)
    resized = np.asarray(Image.fromarray(pixels).resize((33, 20), Image.Resampling.BILINEAR))  # 20 = 16 / 0.8
    expected = (resized[2:18, 8:24] / 255 - mean) / std
    for loader in (data.val_dataloader(), data.test_dataloader()):
        ((images, labels),) = loader
        assert (images.dtype, labels.dtype, type(images)) == (torch.float32, torch.int64, torch.Tensor)
        assert images.shape == (1, 3, 16, 16)
        np.testing.assert_allclose(images[0].permute(1, 2, 0), expected, atol=1e-6)


def test_only_training_is_augmented(files):
    data = Squares(files[:1], augment=[v2.RandomInvert(1.0)], path=str(files[0]), mean=(0, 0, 0), std=(1, 1, 1))
    red, green, blue = COLOURS[0]
    for part in ("train", "val", "test", "predict"):
        ((images, _),) = getattr(data, f"{part}_dataloader")()
        expected = [255 - red, 255 - green, 255 - blue] if part == "train" else [red, green, blue]
        assert (255 * images[0, :, 3, 3]).round().tolist() == expected, part


def test_the_default_normalisation_is_that_of_imagenet(files):
    image = next(iter(Squares(files).val_dataloader()))[0][0]
    expected = (np.array(COLOURS[0]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(image[:, 4, 4], expected, rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_mode_of_an_image_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    image = next(iter(Squares([path], mean=(0, 0, 0), std=(1, 1, 1)).val_dataloader()))[0][0]
    np.testing.assert_allclose(image, 1, atol=0.01)


@WORKERS
def test_labels_belong_to_their_images_and_the_seed_determines_the_order(files, num_workers, monkeypatch):
    data = Squares(files, batch_size=5, num_workers=num_workers)
    orders = []
    for seed in ("0", "0", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        batches = list(data.train_dataloader())
        assert [len(labels) for _, labels in batches] == [5, 5], "the incomplete last batch is dropped"
        for images, labels in batches:
            assert torch.equal(images.mean((2, 3)).argmax(1), labels)
        orders.append([label for _, labels in batches for label in labels.tolist()])
    assert orders[0] == orders[1] != orders[2]
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert read(loader) == [0, 1, 2] * 4, "evaluation keeps the order and drops nothing"


def test_two_processes_share_the_samples_of_an_epoch(files):
    data, indices = Squares(files, batch_size=3), []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        indices.append([index for _, index in data.train_dataloader().sampler])
    assert len(indices[0]) == len(indices[1])
    assert sorted(indices[0] + indices[1]) == list(range(12))


def test_fewer_samples_than_a_batch_are_one_batch(files):
    assert [sorted(labels.tolist()) for _, labels in Squares(files, batch_size=64).train_dataloader()] == [
        [0] * 4 + [1] * 4 + [2] * 4
    ]


def test_classes_and_input_size_are_known_after_construction(files):
    data = Squares(files)
    assert (data.num_classes, data.class_names, data.input_size) == (3, ("r", "g", "b"), (3, 8, 8))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"crop_fraction": 1.5}, "crop_fraction must be above 0 and at most 1, got 1.5"),
        ({"std": (1.0, 0.0, 1.0)}, "mean and std must be three numbers, std above 0"),
        ({"mean": (0.5,)}, "mean and std must be three numbers"),
        ({"corrupt": "skip"}, "corrupt must be 'stop' or 'replace', got 'skip'"),
        ({"max_corrupt": 1.0}, r"max_corrupt must be a share in \[0, 1\), got 1.0"),
        ({"path": "no/such"}, "no file or folder no/such: expected an image, or a folder with images"),
    ],
)
def test_invalid_arguments(files, args, message):
    with pytest.raises(ValueError, match=message):
        Squares(files, **args)


def test_an_unknown_argument(files):
    with pytest.raises(TypeError, match="batchsize"):
        Squares(files, batchsize=3)


# The split


@pytest.mark.parametrize("seed", range(5))
def test_split_is_disjoint_complete_stratified_and_seeded(seed):
    groups = np.random.default_rng(seed).choice(["a", "b", "c", "d"], size=200, p=[0.6, 0.3, 0.07, 0.03]).tolist()
    fractions = {"test": 0.25, "val": 0.1}
    parts = split(groups, fractions, seed)
    assert sorted(itertools.chain(*parts.values())) == list(range(200))
    assert all(indices == sorted(indices) for indices in parts.values())
    sizes = Counter(groups)
    for part, fraction in (fractions | {"train": 0.65}).items():
        assert abs(len(parts[part]) - fraction * 200) <= 2
        counts = Counter(groups[k] for k in parts[part])
        assert all(abs(counts[group] - fraction * size) <= 2 for group, size in sizes.items())
    assert parts == split(groups, fractions, seed)
    assert parts != split(groups, fractions, seed + 1)


def test_split_takes_every_pair_of_a_group_equally_often():
    counts = Counter(tuple(split(["a"] * 6, {"val": 1 / 3}, seed)["val"]) for seed in range(1500))
    assert set(counts) == set(itertools.combinations(range(6), 2))
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140, "100 expected, standard deviation below 10"


def test_split_of_classes_with_one_sample_each():
    parts = split(list(range(20)), {"test": 0.3, "val": 0.2}, 0)
    assert [len(parts[part]) for part in ("train", "val", "test")] == [10, 4, 6]


@pytest.mark.parametrize("fractions", [{"val": 0.0}, {"val": 1.0}, {"test": 0.6, "val": 0.4}, {"val": -0.1}])
def test_split_with_invalid_fractions(fractions):
    with pytest.raises(ValueError, match=r"above 0, and below 1 together, got .*val_fraction="):
        split([0] * 10, fractions, 0)


def test_split_with_an_empty_part():
    with pytest.raises(ValueError, match=r"a split of 2 samples leaves none for (val|train)"):
        split([0, 0], {"test": 0.5, "val": 0.1}, 0)


# Corrupt files


@WORKERS
@pytest.mark.parametrize("how", ["jpeg", "png", "text", "empty"])
def test_a_corrupt_file_stops_with_its_path(files, how, num_workers, failure):
    data = Squares(files, batch_size=2, num_workers=num_workers)
    spoil(files[5], how)  # after the check of the headers
    seen, message = failure(data.val_dataloader())
    assert seen == 2, "the batches before it are read"
    assert f"corrupt image {files[5]}: " in message.strip().splitlines()[-1], "the last line of a worker's traceback"


@pytest.mark.parametrize("how", ["text", "empty"])
def test_a_file_that_is_not_an_image_is_found_on_construction(files, how):
    spoil(files[5], how)
    with pytest.raises(CorruptImageError, match=f"corrupt image {files[5]}: "):
        Squares(files, batch_size=2)
    Squares(files, batch_size=2, corrupt="replace")


def test_of_many_files_an_evenly_spread_share_is_checked(monkeypatch):
    seen = []
    monkeypatch.setattr("nonlocal_nets.data.images.CHECKED", 3)
    monkeypatch.setattr(
        "nonlocal_nets.data.images.Image.open", lambda path: seen.append(path) or SimpleNamespace(close=int)
    )
    check_headers([str(k) for k in range(8)])
    assert seen == ["0", "3", "6"]
    check_headers([])


@WORKERS
def test_corrupt_files_are_replaced_and_named_once(files, num_workers, warnings_of_all_processes):
    spoil(files[2], "text")
    for k in (6, 7):
        spoil(files[k], "jpeg")
    data = Squares(files, batch_size=2, num_workers=num_workers, corrupt="replace", max_corrupt=0.25)
    loader = data.val_dataloader()
    for _ in range(3):
        images = torch.cat([images for images, _ in loader])
        assert images.mean((2, 3)).argmax(1).tolist() == [0, 1, 0, 0, 1, 2, 2, 2, 2, 0, 1, 2], "the next good one"
        assert read(loader) == [0, 1, 0, 0, 1, 2, 2, 2, 2, 0, 1, 2], "with its own label"
    lines = warnings_of_all_processes()
    assert len(lines) == 3
    for path in (files[2], files[6], files[7]):
        (line,) = (line for line in lines if f"corrupt image {path}: " in line)
        assert "replaced by another" in line
    assert any("(3 of 12 images so far)" in line for line in lines)


@WORKERS
def test_more_corrupt_files_than_the_share_stop(files, num_workers, warnings_of_all_processes, failure):
    for k in (0, 3, 6, 10):
        spoil(files[k], "text")
    data = Squares(files, batch_size=1, num_workers=num_workers, corrupt="replace", max_corrupt=0.25)
    seen, message = failure(data.val_dataloader())
    assert seen == 10, "the workers share the count"
    last_line = message.strip().splitlines()[-1]
    assert f"corrupt image {files[10]}: " in last_line
    assert f"; 4 of 12 images so far, more than max_corrupt=0.25: {files[0]}" in last_line
    assert last_line.endswith("more)"), "the list is cut"


def test_epochs_and_loaders_of_a_dataset_share_the_count(files, failure):
    dataset = ImageFiles([(str(path), 0) for path in files], Squares(files).eval_transform, "replace", 1 / 12)
    spoil(files[4], "text")
    for _ in range(3):
        list(torch.utils.data.DataLoader(dataset, num_workers=2))
    assert int(dataset.known_corrupt.sum()) == 1
    spoil(files[8], "text")
    assert "2 of 12" in failure(torch.utils.data.DataLoader(dataset, num_workers=2))[1]


def test_the_default_share_is_exceeded_by_one_of_twelve_files_and_corrupt_files_alone_end(files):
    spoil(files[4], "text")
    with pytest.raises(CorruptImageError, match=r"1 of 12 images so far, more than max_corrupt=0.01"):
        read(Squares(files, corrupt="replace").val_dataloader())
    for path in files:
        spoil(path, "empty")
    with pytest.raises(CorruptImageError, match=r"12 of 12 images so far, more than max_corrupt=0.99"):
        read(Squares(files, corrupt="replace", max_corrupt=0.99).val_dataloader())


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_an_image_with_more_than_8_bits_is_an_error_instead_of_clipped(tmp_path, kind):
    Image.fromarray(np.full((8, 8), 300, kind)).save(tmp_path / "a.tif")
    with pytest.raises(CorruptImageError, match=r"a.tif: mode (I|F).*, more than 8 bits per channel"):
        read(Squares([tmp_path / "a.tif"]).val_dataloader())


def test_a_file_that_vanished_is_named(files):
    files[0].unlink()
    with pytest.raises(CorruptImageError, match=f"corrupt image {files[0]}: .*No such file"):
        read(Squares(files).val_dataloader())


# Predict


@WORKERS
def test_predict_gives_images_and_paths_of_a_folder_sorted(files, tmp_path, num_workers):
    (tmp_path / "z" / "deep").mkdir(parents=True)
    Image.new("RGB", (9, 20), COLOURS[2]).save(tmp_path / "z" / "deep" / "b.JPG")
    (tmp_path / "notes.txt").write_text("not an image")
    data = Squares(files, batch_size=5, path=str(tmp_path), num_workers=num_workers)
    batches = list(data.predict_dataloader())
    assert [type(paths) for _, paths in batches] == [list] * 3
    expected = [*map(str, files), str(tmp_path / "z" / "deep" / "b.JPG")]
    assert [path for _, paths in batches for path in paths] == expected
    images = torch.cat([images for images, _ in batches])
    assert images.shape == (13, 3, 8, 8)
    assert images.mean((2, 3)).argmax(1).tolist() == [0, 1, 2] * 4 + [2]
    assert torch.equal(images[:12], torch.cat([images for images, _ in data.val_dataloader()]))


def test_predict_of_one_file(files):
    ((images, paths),) = Squares(files, path=str(files[1]), mean=(0, 0, 0), std=(1, 1, 1)).predict_dataloader()
    assert paths == [str(files[1])]
    assert (255 * images).round().amax((2, 3)).tolist() == [list(COLOURS[1])]


def test_predict_without_images_and_on_a_corrupt_one(files, tmp_path):
    with pytest.raises(ValueError, match=r"predict needs images: --data.path=<file or folder>"):
        Squares(files).predict_dataloader()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image in .*empty: expected files that end in \.jpg"):
        Squares(files, path=str(tmp_path / "empty"))
    data = Squares(files, path=str(files[0].parent), corrupt="replace", max_corrupt=0.5)
    spoil(files[3], "text")
    with pytest.raises(CorruptImageError, match=str(files[3])):
        list(data.predict_dataloader())
