"""Kinetics-400, -600 and -700 (Kay et al. 2017, Carreira et al. 2018, 2019): clips from YouTube with one label each."""

import csv
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from nonlocal_nets.data.base import listed
from nonlocal_nets.data.decoding import VIDEO_EXTENSIONS, plain_frames, write_video
from nonlocal_nets.data.trained import MissingDataError, training_data
from nonlocal_nets.data.videos import SMALL, Sample, VideoDataModule

log = logging.getLogger(__name__)
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class Kinetics(VideoDataModule):
    """Kinetics, from its official lists `train.csv`, `val.csv` and `test.csv`, and a folder of videos for each part.

    The lists are in `root` or `root/annotations`. A video is `root/<part>/<label>/<id>_<start>_<end>.mp4`, with seconds
    in six digits, as most crawlers name it, or `root/<part>/<id>_<start>_<end>.mp4`, as in CVDF's copy. Every copy
    lacks videos that are no longer on YouTube: they are left out, and a warning states how many. The classes are the
    sorted labels of `train.csv`. Without a list for the test, or with one that has no labels, the test uses val, as in
    the paper. The videos of the test need not be there for training.

    Args:
        root: the folder with the lists and the videos.
        kwargs: arguments of `VideoDataModule`.

    Raises:
        ValueError: no list, an unreadable line, a label that train lacks, or a part without any video; for the test
            part only once its data set is requested.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        folder = Path(root)
        read = partial(read_parts, folder)
        classes, lists, parts = training_data(read, lambda trained: (trained["class_names"], {}, {}))
        super().__init__(class_names=classes, parts=parts, **kwargs)
        self.messages = {part: _no_videos(folder / part, rows) for part, rows in lists.items()}

    def _check(self, part: str) -> None:
        if not self.parts[part]:
            raise MissingDataError(self.messages[part])

    def dataset(self, part: str) -> Dataset[tuple[Tensor, Any]]:
        self._check(part)
        return super().dataset(part)


def read_parts(root: Path) -> tuple[list[str], dict[str, list[tuple[str, str]]], dict[str, list[Sample]]]:
    """Classes, the rows of each list, and the samples of each part: those of val for a test without a list."""
    train = read_list(root, "train")
    classes = sorted({label for label, _ in train})
    lists = {"train": train, "val": read_list(root, "val")}
    if (find_list(root, "test") or Path()).is_file() and (rows := read_list(root, "test")):
        lists["test"] = rows
    parts = {part: _samples(root / part, rows, classes) for part, rows in lists.items()}
    for part in ("train", "val"):
        if not parts[part]:
            raise MissingDataError(_no_videos(root / part, lists[part]))
    return classes, lists, {"test": parts["val"], **parts}


def find_list(root: Path, part: str) -> Path | None:
    """The path of the list of a part, None if there is none."""
    candidates = (root / f"{part}.csv", root / "annotations" / f"{part}.csv")
    return next((path for path in candidates if path.is_file()), None)


def read_list(root: Path, part: str) -> list[tuple[str, str]]:
    """Labels and file names, `<id>_<start>_<end>`; no rows for a test list without labels, as that of a challenge."""
    path = find_list(root, part)
    if path is None:
        raise MissingDataError(f"no file {part}.csv in {root} or {root / 'annotations'}: expected Kinetics' list")
    rows = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not set(COLUMNS[part == "test" :]) <= set(reader.fieldnames or ()):
            given = listed(reader.fieldnames or [])
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {given}")
        for row in reader:
            name, label = _file_name(row), row.get("label") or ""
            if not name or not (label or part == "test"):
                given = ", ".join(f"{column}={row.get(column)}" for column in COLUMNS)
                expected = "expected a label, an id, and times in seconds"
                raise ValueError(f"{path}, line {reader.line_num}: {expected}, got {given[:120]}")
            rows.append((label, name))
    return rows if all(label for label, _ in rows) else []


def _file_name(row: dict[str, str]) -> str | None:
    """The name of a row's file without its extension; None for an unreadable row."""
    try:
        start, end = (int(float(row[time])) for time in ("time_start", "time_end"))
    except (TypeError, ValueError, OverflowError):
        return None
    return f"{row['youtube_id']}_{start:06}_{end:06}"


def _find(folder: Path) -> dict[str, str]:
    """The paths of all videos in a folder by name without extension, in one scan, as there may be 500,000 files."""
    walk = os.walk(folder, followlinks=True)
    files = sorted((parent, *os.path.splitext(name)) for parent, _, names in walk for name in names)
    return {stem: os.path.join(parent, stem + end) for parent, stem, end in files if end.lower() in VIDEO_EXTENSIONS}


def _samples(folder: Path, rows: list[tuple[str, str]], classes: list[str]) -> list[Sample]:
    """Paths and labels of the videos that exist; a warning counts the missing ones."""
    found = _find(folder)
    number = {label: k for k, label in enumerate(classes)}
    if unknown := sorted({label for label, _ in rows} - number.keys()):
        raise ValueError(f"labels of {folder.name} that train does not have: {listed(unknown)}")
    missing = [name for _, name in rows if name not in found]
    if missing:
        log.warning("%s: %s of %s videos are missing: %s", folder, len(missing), len(rows), listed(missing, 80))
    return [(found[name], number[label]) for label, name in rows if name in found]


def _no_videos(folder: Path, rows: list[tuple[str, str]]) -> str:
    """The message for a part without any video."""
    example = rows[0][1] if rows else "<id>_<start>_<end>"
    message = f"none of the {len(rows)} videos of {folder.name}.csv is in {folder}: "
    message += f"expected <label>/{example}.mp4 or {example}.mp4 there"
    return f"{message}; without a test.csv the test uses val" if folder.name == "test" else message


def fake(root: str | Path) -> dict[str, Any]:
    """Write the layout with tiny videos: 2 classes with 3 training and 2 validation videos each, 20 frames of 32 x 48.

    Returns:
        The arguments with which `Kinetics` reads them.
    """
    for part, count in (("train", 3), ("val", 2)):
        rows = []
        for label, name in enumerate(("abseiling", "air drumming")):
            folder = Path(root) / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                write_video(folder / f"{name[:3]}{k}_{k:06}_{k + 10:06}.mp4", plain_frames(20, label, k))
                rows.append(f"{name},{name[:3]}{k},{k},{k + 10},{part}\n")
        (Path(root) / f"{part}.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "".join(rows))
    return {"root": str(root), **SMALL}
