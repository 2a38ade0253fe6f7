"""Kinetics: the labels of the videos in each layout, and lists that differ slightly from the official ones."""

import logging
import shutil
from pathlib import Path

import pytest

from nonlocal_nets.data import Kinetics
from nonlocal_nets.data.kinetics import fake

HEAD = "label,youtube_id,time_start,time_end,split\n"
NO_LABEL = "youtube_id,time_start,time_end,split\nabs0,0,10,test\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    return root, fake(root)


@pytest.fixture
def k400(original, tmp_path):
    """A copy for a test to change: its folder, and the arguments that read it."""
    root, args = original
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path, args | {"root": str(tmp_path)}


def counts(args):
    return {part: len(samples) for part, samples in Kinetics(**args).parts.items()}


@pytest.mark.parametrize("layout", ["label", "flat", "annotations"])
def test_labels_are_those_of_the_videos_in_each_layout(k400, layout, colours_and_labels):
    root, args = k400
    if layout == "flat":
        for path in list(root.glob("*/*/*.mp4")):
            path.rename(path.parents[1] / path.name)
    if layout == "annotations":
        (root / "annotations").mkdir()
        for path in root.glob("*.csv"):
            path.rename(root / "annotations" / path.name)
    data = Kinetics(**args, batch_size=2)
    assert data.class_names == ("abseiling", "air drumming")
    for part, count in (("val", 4), ("test", 4), ("train", 6)):
        colours, labels = colours_and_labels(getattr(data, f"{part}_dataloader")())
        assert (colours == labels[:, None]).all()
        assert sorted(labels.tolist()) == [0] * (count // 2) + [1] * (count // 2)
        assert {Path(path).parts[len(root.parts)] for path, _ in data.parts[part]} == {part.replace("test", "val")}


def test_the_classes_are_sorted_whatever_the_order_of_the_list(k400):
    root, args = k400
    header, *rows = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join([header, *reversed(rows)]))
    data = Kinetics(**args)
    assert data.class_names == ("abseiling", "air drumming")
    assert all(data.class_names[label] == Path(path).parent.name for path, label in data.parts["train"])


def test_missing_videos_are_counted_and_reported(k400, caplog):
    root, args = k400
    (root / "train" / "abseiling" / "abs1_000001_000011.mp4").unlink()
    with caplog.at_level(logging.WARNING):
        data = Kinetics(**args)
    assert len(data.parts["train"]) == 5
    assert f"{root / 'train'}: 1 of 6 videos are missing: abs1_000001_000011" in caplog.text
    shutil.rmtree(root / "val")
    message = r"none of the 4 videos of val.csv is in .*/val: expected <label>/abs0_000000_000010.mp4 or abs0_000000_0"
    with pytest.raises(ValueError, match=message):
        Kinetics(**args)


def test_the_test_uses_its_own_list_if_that_has_labels(k400):
    root, args = k400
    (root / "val" / "abseiling").rename(root / "test")
    (root / "test.csv").write_text("youtube_id,time_start,time_end,split\nabs0,0,10,test\n")
    (root / "val.csv").write_text("label,youtube_id,time_start,time_end,split\nair drumming,air1,1,11,val\n")
    ((path, label),) = Kinetics(**args).parts["test"]
    assert (Path(path).name, label) == ("air1_000001_000011.mp4", 1), "of val"
    (root / "test.csv").write_text("label,youtube_id,time_start,time_end,split\nabseiling,abs0,0,10,test\n")
    ((path, label),) = Kinetics(**args).parts["test"]
    assert (Path(path).name, label) == ("abs0_000000_000010.mp4", 0)


def test_a_test_list_without_videos_stops_only_the_test(k400, caplog):
    root, args = k400
    (root / "test.csv").write_text(HEAD + "abseiling,abs7,0,10,test\nair drumming,air7,0,10,test\n")
    with caplog.at_level(logging.WARNING):
        data = Kinetics(**args, batch_size=2)
    assert f"{root / 'test'}: 2 of 2 videos are missing: abs7_000000_000010, air7_000000_000010" in caplog.text
    assert [len(data.train_dataloader()), len(data.val_dataloader())] == [3, 2]
    with pytest.raises(
        ValueError,
        match=r"none of the 2 videos of test.csv is in .*/test: expected <label>/abs7_000000_000010.mp4 or "
        r"abs7_000000_000010.mp4 there; without a test.csv the test uses val",
    ):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.csv", None, r"no file train.csv in .* or .*annotations"),
        (
            "val.csv",
            "a,b\n1,2\n",
            r"val.csv: expected the columns label, youtube_id, time_start, time_end, got a, b$",
        ),
        (
            "val.csv",
            "label,youtube_id,time_start,time_end\nx,abs0,soon,10\n",
            r"val.csv, line 2: expected a label, an id",
        ),
        (
            "val.csv",
            "label,youtube_id,time_start,time_end\nflying,abs0,0,10\n",
            "labels of val that train does not have: flying",
        ),
    ],
)
def test_invalid_lists(k400, file, text, message):
    root, args = k400
    (root / file).unlink()
    if text:
        (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        Kinetics(**args)


@pytest.mark.parametrize("test", [NO_LABEL, HEAD + ",abs0,0,10,test\n"], ids=["no column", "empty column"])
def test_a_test_list_without_labels_is_replaced_by_val(k400, test):
    root, args = k400
    (root / "test.csv").write_text(test)
    data = Kinetics(**args)
    assert data.parts["test"] == data.parts["val"]
    assert data.num_classes == 2


@pytest.mark.parametrize("part", ["train", "val"])
def test_lists_of_train_and_val_need_labels(k400, part):
    root, args = k400
    (root / f"{part}.csv").write_text(NO_LABEL)
    with pytest.raises(ValueError, match=rf"{part}.csv: expected the columns label, .*, got youtube_id, time_start"):
        Kinetics(**args)


@pytest.mark.parametrize("row", [",abs0,0,10,train", "abseiling,abs0,inf,10,train", "abseiling,abs0", "a,b,c,d,e"])
def test_an_unreadable_row(k400, row):
    root, args = k400
    (root / "train.csv").write_text(f"{HEAD}air drumming,air0,0,10,train\n{row}\n")
    with pytest.raises(
        ValueError, match=r"train.csv, line 3: expected a label, an id, and times in seconds, got label="
    ):
        Kinetics(**args)


def test_a_byte_order_mark_decimals_another_column_and_quotes(k400):
    """As in lists written by spreadsheets, and with the column is_cc of Kinetics-600."""
    root, args = k400
    rows = '"abseiling",abs1,1.0,11.0,train,0\n"air drumming",air2,2,12,train,1\n'
    text = HEAD.replace("split", "split,is_cc") + rows
    (root / "train.csv").write_text(text, encoding="utf-8-sig")
    data = Kinetics(**args)
    assert data.class_names == ("abseiling", "air drumming")
    files = [(path.rpartition("/")[2], label) for path, label in data.parts["train"]]
    assert files == [("abs1_000001_000011.mp4", 0), ("air2_000002_000012.mp4", 1)]


def test_folders_with_underscores_linked_folders_and_other_extensions(k400, tmp_path_factory):
    root, args = k400
    (root / "train" / "air drumming").rename(root / "train" / "air_drumming")
    (root / "train" / "air_drumming" / "air0_000000_000010.mp4").rename(root / "train" / "air0_000000_000010.WEBM")
    other_disk = tmp_path_factory.mktemp("disk") / "abseiling"
    (root / "train" / "abseiling").rename(other_disk)
    (root / "train" / "abseiling").symlink_to(other_disk)
    assert counts(args) == {"train": 6, "val": 4, "test": 4}


def test_a_partial_download_is_missing(k400):
    root, args = k400
    path = root / "train" / "abseiling" / "abs0_000000_000010.mp4"
    path.rename(path.with_name(path.name + ".part"))
    assert counts(args)["train"] == 5
