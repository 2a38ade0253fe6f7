"""Kinetics, Charades and folders of videos in their real layouts: which video has which label, and what is refused."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nonlocal_nets.data import Charades, Kinetics, VideoFolder, charades, kinetics, video_folder


def colours(clips):
    """The strongest colour of each clip (B, 3, T, H, W), or of its first view: it tells the class."""
    clips = clips if clips.ndim == 5 else clips[:, 0]
    return clips.mean((2, 3, 4)).argmax(1).tolist()


def read(loader):
    seen = [(colours(x), y) for x, y in loader]
    return [c for cs, _ in seen for c in cs], torch.cat([y for _, y in seen])


@pytest.fixture
def k400(tmp_path):
    return tmp_path, kinetics.fake(tmp_path)


@pytest.mark.parametrize("layout", ["label", "flat", "annotations"])
def test_kinetics_labels_are_those_of_the_videos_in_each_layout(k400, layout):
    root, words = k400
    if layout == "flat":
        for path in list(root.glob("*/*/*.mp4")):
            path.rename(path.parents[1] / path.name)
    if layout == "annotations":
        (root / "annotations").mkdir()
        for path in root.glob("*.csv"):
            path.rename(root / "annotations" / path.name)
    data = Kinetics(**words, batch_size=2)
    assert data.class_names == ("abseiling", "air drumming")
    for part, count in (("val", 4), ("test", 4), ("train", 6)):
        seen, labels = read(getattr(data, f"{part}_dataloader")())
        assert seen == labels.tolist()
        assert len(seen) == count


def test_kinetics_missing_videos_are_counted_and_reported(k400, caplog):
    root, words = k400
    (root / "train" / "abseiling" / "abs1_000001_000011.mp4").unlink()
    with caplog.at_level(logging.WARNING):
        data = Kinetics(**words)
    assert len(data.parts["train"]) == 5
    assert f"{root / 'train'}: 1 of 6 videos are missing, such as abs1_000001_000011" in caplog.text
    shutil.rmtree(root / "val")
    with pytest.raises(ValueError, match=r"none of the 4 videos of val.csv is in .*val/<label>/abs0_000000_000010.mp4"):
        Kinetics(**words)


def test_kinetics_test_has_a_list_of_its_own_if_it_has_labels(k400):
    root, words = k400
    (root / "val" / "abseiling").rename(root / "test")
    (root / "test.csv").write_text("youtube_id,time_start,time_end,split\nabs0,0,10,test\n")
    (root / "val.csv").write_text("label,youtube_id,time_start,time_end,split\nair drumming,air1,1,11,val\n")
    assert len(Kinetics(**words).parts["test"]) == 1, "val"
    (root / "test.csv").write_text("label,youtube_id,time_start,time_end,split\nabseiling,abs0,0,10,test\n")
    ((path, label),) = Kinetics(**words).parts["test"]
    assert (Path(path).name, label) == ("abs0_000000_000010.mp4", 0)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.csv", None, r"no file train.csv in .* or .*annotations"),
        (
            "val.csv",
            "a,b\n1,2\n",
            r"val.csv: expected the columns label, youtube_id, time_start, time_end, got \['a', 'b'\]",
        ),
        ("val.csv", "label,youtube_id,time_start,time_end\nx,abs0,soon,10\n", r"val.csv, line 2: expected label"),
        (
            "val.csv",
            "label,youtube_id,time_start,time_end\nflying,abs0,0,10\n",
            "labels of val that train does not have: flying",
        ),
    ],
)
def test_kinetics_refusals(k400, file, text, message):
    root, words = k400
    (root / file).unlink()
    if text:
        (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        Kinetics(**words)


@pytest.fixture
def home(tmp_path):
    return tmp_path, charades.fake(tmp_path)


@pytest.mark.parametrize("videos", ["Charades_v1_480", "Charades_v1_rgb"])
def test_charades_labels_of_whole_videos(home, videos):
    """Video k is of colour k, with the actions k and k + 1 of three."""
    _, words = home
    data = Charades(**words, videos=videos, batch_size=4)
    assert data.class_names[1] == "Putting clothes somewhere"
    for loader in (data.val_dataloader(), data.test_dataloader()):
        seen, labels = read(loader)
        assert seen == [0, 1]
        assert labels.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_charades_labels_of_a_clip_are_the_actions_that_it_overlaps(home):
    root, words = home
    rows = 'TE0,HR43,"c000 0.00 0.10;c001 0.70 0.80;c002 0.25 0.30",0.80\n'
    for part in ("train", "test"):
        (root / f"Charades_v1_{part}.csv").write_text("id,subject,actions,length\n" + rows)
    words |= {"frames": 2, "stride": 1}
    dataset = Charades(**words).dataset("train")
    bar = {}
    torch.manual_seed(0)
    for _ in range(60):
        clip, labels = dataset[0]
        bar[tuple(labels.tolist())] = clip
    # at 25 frames a second clips of 2 frames begin at 0, 0.04, ..., 0.72: before, in, between and after the actions
    assert set(bar) == {(1, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0)}


def test_charades_empty_actions_are_no_labels(home):
    root, words = home
    (root / "Charades_v1_test.csv").write_text("id,subject,actions,length\nTE0,HR43,,0.8\n")
    ((_, labels),) = Charades(**words).test_dataloader()
    assert not labels.any()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Charades_v1_classes.txt", None, r"no file .*classes.txt: expected lines such as"),
        ("Charades_v1_classes.txt", "c001 x\n", r"line 1: expected 'c000 <name>', got 'c001 x'"),
        ("Charades_v1_train.csv", None, r"no file .*train.csv: expected Charades' list"),
        ("Charades_v1_train.csv", "a\n1\n", r"expected the columns id and actions, got \['a'\]"),
        (
            "Charades_v1_train.csv",
            "id,actions\nTR0,c000 now 2\n",
            r"train.csv, line 2: expected actions such as .* got 'c000 now 2'",
        ),
        ("Charades_v1_train.csv", "id,actions\nTR0,c003 1 2\n", r"line 2: expected actions such as"),
        ("Charades_v1_train.csv", "id,actions\nXX,\nTR0,\n", r"1 of 2 videos of train are not in .*480: XX"),
    ],
)
def test_charades_refusals(home, file, text, message):
    root, words = home
    (root / file).unlink()
    if text:
        (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        Charades(**words)


def test_charades_without_its_videos(home):
    with pytest.raises(ValueError, match=r"no folder .*Charades_v1: expected Charades' videos"):
        Charades(**home[1], videos="Charades_v1")


@pytest.fixture
def ucf(tmp_path):
    return tmp_path, video_folder.fake(tmp_path)


def test_ucf101_split_is_the_official_one_and_groups_stay_together(ucf):
    root, words = ucf
    data = VideoFolder(**words, batch_size=3)
    listed = (root / "ucfTrainTestlist" / "testlist01.txt").read_text().split()
    assert ["/".join(Path(path).parts[-2:]) for path, _ in data.parts["test"]] == listed
    groups = {part: {Path(path).stem.rpartition("_c")[0] for path, _ in data.parts[part]} for part in ("train", "val")}
    assert not groups["train"] & groups["val"]
    assert {part: len(data.parts[part]) for part in data.parts} == {"train": 12, "val": 6, "test": 6}
    seen, labels = read(data.test_dataloader())
    assert seen == labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_hmdb51_lists(ucf):
    root, words = ucf
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir()
    for name in ("Archery", "Biking", "Diving"):
        files = sorted(path.name for path in (root / "UCF-101" / name).iterdir())
        uses = [1, 1, 1, 1, 2, 2, 0, 0]
        text = "".join(f"{file} {use} \n" for file, use in zip(files, uses, strict=True))
        (lists / f"{name}_test_split2.txt").write_text(text)
    data = VideoFolder(**words | {"splits": str(lists), "fold": 2})
    names = {part: [Path(path).name for path, _ in data.parts[part]] for part in data.parts}
    assert len(names["train"]) + len(names["val"]) == 12
    assert [name for name in names["test"] if "Biking" in name] == ["v_Biking_g03_c01.avi", "v_Biking_g03_c02.avi"]
    assert not any("_g04_" in name for part in names.values() for name in part), "use 0"


def test_a_random_split_is_even_in_each_class(ucf):
    _, words = ucf
    data = VideoFolder(**words | {"splits": None, "test_fraction": 0.25, "val_fraction": 0.25})
    for part, count in (("train", 4), ("val", 2), ("test", 2)):
        assert np.bincount([label for _, label in data.parts[part]]).tolist() == pytest.approx([count] * 3, abs=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"root": "no/such"}, "no video in no/such: expected no/such/<class>"),
        ({"splits": "no/such"}, "no lists of split 1 in no/such: expected UCF101's trainlist01.txt"),
        ({"fold": 3}, "no lists of split 3"),
    ],
)
def test_folder_refusals(ucf, words, message):
    with pytest.raises(ValueError, match=message):
        VideoFolder(**ucf[1] | words)


def test_folder_without_videos_and_listed_videos_that_are_missing(ucf):
    root, words = ucf
    (root / "UCF-101" / "Diving" / "v_Diving_g03_c01.avi").unlink()
    with pytest.raises(ValueError, match=r"1 of 24 listed videos are missing: Diving/v_Diving_g03_c01.avi"):
        VideoFolder(**words)
    (root / "UCF-101" / "Empty").mkdir()
    with pytest.raises(ValueError, match=r"no video in .*Empty: expected"):
        VideoFolder(**words)
