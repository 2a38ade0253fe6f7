"""ImageNet's layout, and one folder with a random split, on real files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image

from nonlocal_nets.data.image_folder import ImageFolder, fake

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def on_disk(folder):
    """Paths and class names of the files in class folders."""
    return sorted((str(path), path.parent.name) for path in Path(folder).glob("*/*.*"))


def named(data, part):
    return sorted((path, data.class_names[label]) for path, label in data.parts[part])


def test_imagenet_layout_without_a_test_folder_uses_val_for_the_test(tmp_path):
    data = ImageFolder(**fake(tmp_path), image_size=16)
    assert data.class_names == ("ant", "bee", "cat")
    assert (data.num_classes, data.input_size) == (3, (3, 16, 16))
    assert named(data, "train") == on_disk(tmp_path / "train")
    assert named(data, "val") == named(data, "test") == on_disk(tmp_path / "val")
    assert [len(data.parts[part]) for part in ("train", "val")] == [15, 6]


def test_a_test_folder_is_used_if_it_has_classes(tmp_path):
    fake(tmp_path)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "unlabelled.png")
    assert named(ImageFolder(str(tmp_path)), "test") == on_disk(tmp_path / "val")
    for name in ("ant", "bee", "cat"):
        (tmp_path / "test" / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / "test" / name / "x.png")
    assert named(ImageFolder(str(tmp_path)), "test") == on_disk(tmp_path / "test")


def test_one_folder_is_split_in_the_same_proportions_for_each_class(tmp_path):
    fake(tmp_path)
    root = tmp_path / "train"
    args = {"root": str(root), "val_fraction": 0.2, "test_fraction": 0.4}
    splits = [ImageFolder(**args, seed=seed) for seed in range(3)]
    for data in splits:
        assert sorted(named(data, "train") + named(data, "val") + named(data, "test")) == on_disk(root)
        for part, count in (("train", 2), ("val", 1), ("test", 2)):
            assert Counter(name for _, name in named(data, part)) == {"ant": count, "bee": count, "cat": count}
    assert ImageFolder(**args).parts == splits[0].parts != splits[1].parts


def test_a_class_may_be_called_train(tmp_path):
    for name in ("plane", "train"):
        (tmp_path / name).mkdir()
        for k in range(10):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{k}.png")
    data = ImageFolder(str(tmp_path))
    assert data.class_names == ("plane", "train")
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == [16, 2, 2], "by default 0.1 for val and test"


@pytest.mark.parametrize(("args", "short"), [({}, 32), ({"crop_fraction": 0.7}, 40), ({"crop_fraction": 1.0}, 28)])
def test_evaluation_resizes_and_takes_the_central_crop(tmp_path, args, short):
    data = ImageFolder(**fake(tmp_path), **args, image_size=28, **PLAIN)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        ((images, _),) = loader
        for image, (path, _) in zip(images, data.parts["val"], strict=True):
            original = Image.open(path)
            width = int(short * original.width / original.height)
            resized = np.asarray(original.resize((width, short), Image.Resampling.BILINEAR)) / 255
            top, left = round((short - 28) / 2), round((width - 28) / 2)
            np.testing.assert_allclose(image.permute(1, 2, 0), resized[top : top + 28, left : left + 28], atol=1e-6)


def test_training_crops_and_flips(tmp_path):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 40)  # rises to the right
    for part in ("train", "val"):
        (tmp_path / part / "a").mkdir(parents=True)
        for k in range(20):
            Image.fromarray(pixels).save(tmp_path / part / "a" / f"{k}.png")
    torch.manual_seed(0)
    risen = {}
    for flip in (True, False):
        data = ImageFolder(str(tmp_path), image_size=16, scale=(0.5, 0.5), flip=flip, **PLAIN)
        images = torch.cat([images for images, _ in data.train_dataloader()])
        rise = images[:, 0, 8, -1] - images[:, 0, 8, 0]
        assert rise.abs().min() > 0.5, "half of the area is at least 0.61 of the width, for any aspect ratio"
        assert rise.abs().max() < 0.95
        risen[flip] = int((rise > 0).sum())
    assert 4 <= risen[True] <= 16
    assert risen[False] == 20


def test_invalid_layouts(tmp_path):
    with pytest.raises(
        ValueError, match=r"no folder .*nowhere: expected .*nowhere/train/<class>/\* and .*/val/<class>"
    ):
        ImageFolder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"Couldn't find any class folder in .*; expected .*/<class>/\*"):
        ImageFolder(str(tmp_path))
    fake(tmp_path)
    for part, other in (("train", "val"), ("val", "train")):
        (tmp_path / part).rename(tmp_path.parent / f"{tmp_path.name}-away")
        with pytest.raises(ValueError, match=f"no class folders in {tmp_path / part}: expected .*{other}/<class>"):
            ImageFolder(str(tmp_path))
        (tmp_path.parent / f"{tmp_path.name}-away").rename(tmp_path / part)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_empty_class_folder_is_named(tmp_path, part):
    fake(tmp_path)
    (tmp_path / part / "dog").mkdir(parents=True)
    (tmp_path / part / "dog" / "notes.txt").write_text("not an image")
    with pytest.raises(ValueError, match=f"{tmp_path / part}: Found no valid file for the classes dog"):
        ImageFolder(str(tmp_path))


def test_train_and_val_with_different_classes(tmp_path):
    fake(tmp_path)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "wasp")
    message = "train and .*val have different classes; only in train: bee; only in val: wasp"
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5)])
def test_scale_is_checked(tmp_path, scale):
    with pytest.raises(ValueError, match=r"scale must be two shares, 0 < smallest <= largest <= 1, got \("):
        ImageFolder(**fake(tmp_path), scale=scale)


def test_the_command_line_accepts_all_arguments_and_no_others(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=pl.LightningDataModule)
    args = ["--data=nonlocal_nets.data.image_folder.ImageFolder", f"--data.root={fake(tmp_path)['root']}"]
    given = parser.parse_args([*args, "--data.batch_size=3", "--data.corrupt=replace", "--data.path=null"])
    data = parser.instantiate_classes(given).data
    assert (data.batch_size, data.corrupt) == (3, "replace")
    for wrong in ("--data.batchsize=3", "--data.parts=null", "--data.augment=[]", "--data.class_names=[]"):
        with pytest.raises(ArgumentError):
            parser.parse_args([*args, wrong])
