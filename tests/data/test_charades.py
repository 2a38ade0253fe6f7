"""Charades: the labels of whole videos and of clips, including limiting cases of times and classes."""

import shutil

import pytest
import torch

from nonlocal_nets.data import Charades
from nonlocal_nets.data.charades import Action, ActionClips, fake


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    return root, fake(root)


@pytest.fixture
def home(original, tmp_path):
    """A copy for a test to change: its folder, and the arguments that read it."""
    root, args = original
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path, args | {"root": str(tmp_path)}


def write(root, part, actions):
    (root / f"Charades_v1_{part}.csv").write_text(f'id,actions\n{part.upper()[:2]}0,"{actions}"\n')


@pytest.mark.parametrize("videos", ["Charades_v1_480", "Charades_v1_rgb"])
def test_labels_of_whole_videos(home, videos, colours_and_labels):
    """Video k has the colour k, and the actions k and k + 1 of three."""
    _, args = home
    data = Charades(**args, videos=videos, batch_size=4)
    assert data.class_names[1] == "Putting clothes somewhere"
    for loader in (data.val_dataloader(), data.test_dataloader()):
        colours, labels = colours_and_labels(loader)
        assert colours.tolist() == [[0] * colours.shape[1], [1] * colours.shape[1]]
        assert labels.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_training_reads_the_list_of_train(home, colours_and_labels):
    """Clips of all 20 frames, so that they show both actions; video k has the colour k % 3."""
    _, args = home
    args |= {"frames": 20, "stride": 1, "batch_size": 4}
    colours, labels = colours_and_labels(Charades(**args).train_dataloader())
    assert sorted(colours.flatten().tolist()) == [0, 0, 1, 2]
    for colour, label in zip(colours.flatten().tolist(), labels.tolist(), strict=True):
        assert label == [float(k in (colour, (colour + 1) % 3)) for k in range(3)]


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (0.0, 0.4, [1, 0, 0]),
        (0.95, 1.0, [1, 0, 0]),
        (1.0, 1.5, [0, 0, 0]),
        (1.5, 2.1, [0, 1, 0]),
        (2.5, 2.6, [0, 1, 0]),
        (2.9, 3.5, [0, 1, 1]),
        (0.5, 9.0, [1, 1, 1]),
    ],
)
def test_the_label_of_a_clip_by_its_time(begin, end, expected):
    """Actions from 0 to 1, 2 to 3 and 3 to 4 seconds."""
    clips = ActionClips(3, [], 2, 1, None)
    actions = [Action(0, 0.0, 1.0), Action(1, 2.0, 3.0), Action(2, 3.0, 4.0)]
    assert clips.label(actions, begin, end).tolist() == expected


def test_labels_of_a_clip_are_the_actions_that_it_overlaps(home):
    root, args = home
    rows = 'TE0,HR43,"c000 0.00 0.10;c001 0.70 0.80;c002 0.25 0.30",0.80\n'
    for part in ("train", "test"):
        (root / f"Charades_v1_{part}.csv").write_text("id,subject,actions,length\n" + rows)
    args |= {"frames": 2, "stride": 1}
    dataset = Charades(**args).dataset("train")
    torch.manual_seed(0)
    # at 25 frames per second, clips of 2 frames begin at 0, 0.04, ..., 0.72 s: during and between the actions
    assert {tuple(dataset[0][1].tolist()) for _ in range(60)} == {(1, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0)}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Charades_v1_classes.txt", None, r"no file .*classes.txt: expected lines such as"),
        ("Charades_v1_classes.txt", "c001 x\n", r"line 1: expected 'c000 <name>', got 'c001 x'"),
        ("Charades_v1_train.csv", None, r"no file .*train.csv: expected Charades' list"),
        ("Charades_v1_train.csv", "a\n1\n", r"expected the columns id and actions, got a$"),
        (
            "Charades_v1_train.csv",
            "id,actions\nTR0,c000 now 2\n",
            r"train.csv, line 2: expected actions such as .* got 'c000 now 2'",
        ),
        ("Charades_v1_train.csv", "id,actions\nTR0\n", r"train.csv, line 2: no value in the column actions"),
        ("Charades_v1_train.csv", "id,actions\nTR0,c003 1 2\n", r"line 2: expected actions such as"),
        ("Charades_v1_train.csv", "id,actions\nXX,\nTR0,\n", r"1 of 2 videos of train are not in .*480: XX"),
    ],
)
def test_invalid_files(home, file, text, message):
    root, args = home
    (root / file).unlink()
    if text:
        (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        Charades(**args)


def test_a_missing_folder_of_videos(home):
    with pytest.raises(
        ValueError, match=r"no folder .*Charades_v1: expected videos, <id>.mp4, or one folder per video"
    ):
        Charades(**home[1], videos="Charades_v1")


@pytest.mark.parametrize(
    ("actions", "labels"),
    [
        ("c001 0.00 0.00", [0, 1, 0]),  # no duration
        ("c001 900.00 901.00", [0, 1, 0]),  # after the end of the video
        ("c002 0.10 0.20; c000 0.00 9.00;c002 0.50 0.60;", [1, 0, 1]),  # repeated, a space, a trailing semicolon
        ("", [0, 0, 0]),
    ],
)
def test_validation_and_test_have_all_actions_of_the_video(home, actions, labels):
    root, args = home
    write(root, "test", actions)
    data = Charades(**args)
    for part in ("val", "test"):
        assert data.dataset(part)[0][1].tolist() == labels


def test_a_training_clip_that_only_touches_an_action_does_not_have_its_label(home):
    """A clip of all 20 frames, 25 per second, from 0 to 0.8 s."""
    root, args = home
    write(root, "train", "c000 0.80 2.00;c001 0.79 2.00;c002 0.00 0.00")
    _, labels = Charades(**args | {"frames": 20, "stride": 1}).dataset("train")[0]
    assert labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("videos", ["Charades_v1_480", "Charades_v1_rgb"])
def test_the_time_of_a_clip_depends_on_the_rate_of_the_video(home, videos):
    """20 frames end at 0.8 s in a file with 25 frames per second, and at 0.833 s in a folder with 24."""
    root, args = home
    write(root, "train", "c000 0.81 2.00")
    _, labels = Charades(**args | {"frames": 20, "stride": 1, "videos": videos}).dataset("train")[0]
    assert labels.tolist() == [float(videos == "Charades_v1_rgb"), 0, 0]


@pytest.mark.parametrize("action", ["c-1 0 1", "c003 0 1", "c001 0", "c001 0 1 2", "cat 0 1"])
def test_an_invalid_action(home, action):
    root, args = home
    write(root, "train", f"c000 0.00 1.00;{action}")
    with pytest.raises(
        ValueError, match=rf"train.csv, line 2: expected actions such as .*, of 3 classes, got '{action}'"
    ):
        Charades(**args)
