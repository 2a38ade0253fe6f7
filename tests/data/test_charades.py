"""Charades: actions at the edges of time and of the list of classes."""

import pytest

from nonlocal_nets.data import Charades
from nonlocal_nets.data.charades import fake


@pytest.fixture
def home(tmp_path):
    return tmp_path, fake(tmp_path)


def write(root, part, actions):
    (root / f"Charades_v1_{part}.csv").write_text(f'id,actions\n{part.upper()[:2]}0,"{actions}"\n')


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
