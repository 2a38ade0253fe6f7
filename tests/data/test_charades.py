"""Charades: the actions of whole videos and of clips, at the edges of time and of the list of classes."""

import shutil

import pytest
import torch

from nonlocal_nets.data import Charades
from nonlocal_nets.data.charades import fake


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    return root, fake(root)


@pytest.fixture
def home(original, tmp_path):
    """A copy that a test may change: its folder, and the words that read it."""
    root, words = original
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path, words | {"root": str(tmp_path)}


def write(root, part, actions):
    (root / f"Charades_v1_{part}.csv").write_text(f'id,actions\n{part.upper()[:2]}0,"{actions}"\n')


@pytest.mark.parametrize("videos", ["Charades_v1_480", "Charades_v1_rgb"])
def test_labels_of_whole_videos(home, videos, colours_and_labels):
    """Video k is of colour k, with the actions k and k + 1 of three."""
    _, words = home
    data = Charades(**words, videos=videos, batch_size=4)
    assert data.class_names[1] == "Putting clothes somewhere"
    for loader in (data.val_dataloader(), data.test_dataloader()):
        seen, labels = colours_and_labels(loader)
        assert seen == [0, 1]
        assert labels.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_labels_of_a_clip_are_the_actions_that_it_overlaps(home):
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


def test_empty_actions_are_no_labels(home):
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
def test_refusals(home, file, text, message):
    root, words = home
    (root / file).unlink()
    if text:
        (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        Charades(**words)


def test_without_its_videos(home):
    with pytest.raises(ValueError, match=r"no folder .*Charades_v1: expected Charades' videos"):
        Charades(**home[1], videos="Charades_v1")


@pytest.mark.parametrize(
    ("actions", "labels"),
    [
        ("c001 0.00 0.00", [0, 1, 0]),  # takes no time
        ("c001 900.00 901.00", [0, 1, 0]),  # after the end
        ("c002 0.10 0.20; c000 0.00 9.00;c002 0.50 0.60;", [1, 0, 1]),  # twice, a space, a last semicolon
        ("", [0, 0, 0]),
    ],
)
def test_all_actions_of_the_video_count_in_validation_and_test(home, actions, labels):
    root, words = home
    write(root, "test", actions)
    data = Charades(**words)
    for part in ("val", "test"):
        assert data.dataset(part)[0][1].tolist() == labels


def test_a_training_clip_that_only_touches_an_action_does_not_show_it(home):
    """20 frames at 25 a second, read as one clip of all: 0 to 0.8 s."""
    root, words = home
    write(root, "train", "c000 0.80 2.00;c001 0.79 2.00;c002 0.00 0.00")
    _, labels = Charades(**words | {"frames": 20, "stride": 1}).dataset("train")[0]
    assert labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("videos", ["Charades_v1_480", "Charades_v1_rgb"])
def test_a_clip_lies_in_time_by_the_rate_of_its_video(home, videos):
    """Its end, frame 20, is at 0.8 s in a file of 25 frames a second, and at 0.833 s in a folder of 24."""
    root, words = home
    write(root, "train", "c000 0.81 2.00")
    _, labels = Charades(**words | {"frames": 20, "stride": 1, "videos": videos}).dataset("train")[0]
    assert labels.tolist() == [float(videos == "Charades_v1_rgb"), 0, 0]


@pytest.mark.parametrize("action", ["c-1 0 1", "c003 0 1", "c001 0", "c001 0 1 2", "cat 0 1"])
def test_an_action_that_cannot_be(home, action):
    root, words = home
    write(root, "train", f"c000 0.00 1.00;{action}")
    with pytest.raises(ValueError, match=rf"train.csv, line 2: expected actions such as .*;{action}'"):
        Charades(**words)
