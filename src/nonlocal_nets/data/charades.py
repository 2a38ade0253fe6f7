"""Charades (Sigurdsson et al., ECCV 2016): 9,848 videos of everyday activities at home, with 157 action classes."""

import csv
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nonlocal_nets.data.base import listed
from nonlocal_nets.data.decoding import VIDEO_EXTENSIONS, plain_frames, write_video
from nonlocal_nets.data.trained import MissingDataError, classes_alone, training_data
from nonlocal_nets.data.videos import SMALL, Clips, VideoDataModule

RATE = 24.0  # frames per second of the published folders of frames


class Action(NamedTuple):
    """A class, and when the action begins and ends, in seconds."""

    label: int
    begin: float
    end: float


class Charades(VideoDataModule):
    """Charades, from its official lists of train and test, its list of classes, and videos or folders of frames.

    The labels (157,), float32, are 1 for each action that takes place: during the clip in training, at any time in the
    video in validation and test. Labels have been published for two lists, "train" and "test"; the paper calls the
    second validation, and both val and test use it here. The labels of the challenge, for which the paper reports
    another result, are not public.

    Args:
        root: the folder with `Charades_v1_train.csv`, `Charades_v1_test.csv` and `Charades_v1_classes.txt`.
        videos: the folder in root with the videos: `Charades_v1_480` or `Charades_v1` with `<id>.mp4`, or
            `Charades_v1_rgb` with a folder of frames, 24 per second, for each video.
        kwargs: arguments of `VideoDataModule`.

    Raises:
        ValueError: a missing list or folder, an unreadable line, or missing videos.
    """

    multi_label = True

    def __init__(self, root: str, videos: str = "Charades_v1_480", **kwargs: Any) -> None:
        read = partial(read_parts, Path(root), videos)
        classes, parts = training_data(read, classes_alone)
        super().__init__(class_names=classes, parts=parts, **kwargs)

    def clips(self, samples: Sequence[tuple[str, Any]], part: str) -> "ActionClips":
        return ActionClips(self.num_classes, samples, rate=RATE, **self.arguments(part))


class ActionClips(Clips[list[Action]]):
    """Clips whose labels are the actions that overlap them in time."""

    def __init__(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes

    def label(self, target: list[Action], begin: float, end: float) -> Tensor:
        labels = torch.zeros(self.num_classes)
        whole = end == math.inf  # then actions of no duration, or after the end of the video, count too
        labels[[action.label for action in target if whole or (action.begin < end and action.end > begin)]] = 1
        return labels


def read_parts(root: Path, videos: str) -> tuple[list[str], dict[str, list[tuple[str, list[Action]]]]]:
    """Classes, and samples of each part; val is test."""
    classes, folder = read_classes(root / "Charades_v1_classes.txt"), root / videos
    if not folder.is_dir():
        raise MissingDataError(f"no folder {folder}: expected videos, <id>.mp4, or one folder per video")
    found = {path.stem: path for path in folder.iterdir() if _is_video(path)}
    parts = {}
    for part in ("train", "test"):
        rows = read_list(root / f"Charades_v1_{part}.csv", len(classes))
        if missing := [name for name in rows if name not in found]:
            problem = f"{len(missing)} of {len(rows)} videos of {part} are not in {folder}"
            raise MissingDataError(f"{problem}: {listed(missing, 40)}")
        parts[part] = [(str(found[name]), actions) for name, actions in rows.items()]
    return classes, {**parts, "val": parts["test"]}


def _is_video(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in VIDEO_EXTENSIONS


def read_classes(path: Path) -> list[str]:
    """The names of the classes, from lines such as "c000 Holding some clothes"."""
    if not path.is_file():
        raise MissingDataError(f"no file {path}: expected lines such as 'c000 Holding some clothes'")
    names = []
    for number, line in enumerate(path.read_text().splitlines()):
        code, _, name = line.partition(" ")
        if code != f"c{number:03}" or not name:
            raise ValueError(f"{path}, line {number + 1}: expected 'c{number:03} <name>', got {line[:60]!r}")
        names.append(name)
    return names


def read_list(path: Path, classes: int) -> dict[str, list[Action]]:
    """The actions of each video, from the columns id and actions: "c092 11.90 21.20;c147 0.00 12.60", or empty."""
    if not path.is_file():
        raise MissingDataError(f"no file {path}: expected Charades' list, with the columns id and actions")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"id", "actions"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path}: expected the columns id and actions, got {listed(reader.fieldnames or [])}")
        rows = {}
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if row["actions"] is None:
                raise ValueError(f"{where}: no value in the column actions")
            rows[row["id"]] = [_action(text, classes, where) for text in row["actions"].split(";") if text]
    return rows


def _action(text: str, classes: int, where: str) -> Action:
    try:
        code, begin, end = text.split()
        action = Action(int(code.removeprefix("c")), float(begin), float(end))
    except ValueError:
        action = None
    if action is None or not 0 <= action.label < classes:
        expected = f"expected actions such as 'c092 11.90 21.20;...', of {classes} classes"
        raise ValueError(f"{where}: {expected}, got {text[:60]!r}")
    return action


def fake(root: str | Path) -> dict[str, Any]:
    """Write the published layout: 3 classes, 4 training and 2 test videos of 20 frames, as mp4 and folders of frames.

    Returns:
        The arguments with which `Charades` reads the videos.
    """
    root = Path(root)
    for folder in ("Charades_v1_480", "Charades_v1_rgb"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = ("Holding some clothes", "Putting clothes somewhere", "Taking some clothes from somewhere")
    (root / "Charades_v1_classes.txt").write_text("".join(f"c{k:03} {name}\n" for k, name in enumerate(names)))
    for part, count in (("train", 4), ("test", 2)):
        rows = []
        for k in range(count):
            name, frames = f"{part.upper()[:2]}{k}", plain_frames(20, k % 3, k)
            write_video(root / "Charades_v1_480" / f"{name}.mp4", frames)
            (root / "Charades_v1_rgb" / name).mkdir(exist_ok=True)
            for t, pixels in enumerate(frames):
                Image.fromarray(np.asarray(pixels)).save(root / "Charades_v1_rgb" / name / f"{name}-{t + 1:06}.jpg")
            rows.append(f'{name},HR43,"c{k % 3:03} 0.00 0.40;c{(k + 1) % 3:03} 0.30 0.80",0.80\n')
        (root / f"Charades_v1_{part}.csv").write_text("id,subject,actions,length\n" + "".join(rows))
    return {"root": str(root), **SMALL}
