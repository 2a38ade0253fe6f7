"""Videos in class folders; UCF101 (Soomro et al. 2012) and HMDB51 (Kuehne et al. 2011) with their official splits."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from nonlocal_nets.data.base import listed, only_in, split
from nonlocal_nets.data.decoding import VIDEO_EXTENSIONS, plain_frames, write_video
from nonlocal_nets.data.trained import MissingDataError, classes_alone, training_data
from nonlocal_nets.data.videos import SMALL, Sample, VideoDataModule


class VideoFolder(VideoDataModule):
    """Videos with one folder per class; the classes are the sorted names of the folders.

    There are two layouts, the first if `root/train` or `root/val` contains folders:

    - `root/train/<class>/*`, `root/val/<class>/*` and, optionally, `root/test/<class>/*`. Without a test folder the
      test uses val.
    - `root/<class>/*`. Without `splits`, they are split at random, in the same proportions for each class. With it, the
      test is an official one, and validation is a random share of the training videos. From UCF101, validation takes
      whole groups, since the videos of a group are cut from one recording.

    Args:
        root: the folder with the videos.
        splits: the folder with the official lists: UCF101's trainlist01.txt and testlist01.txt, or HMDB51's lists such
            as wave_test_split1.txt; null: a random split.
        fold: which of the three official splits to use: 1, 2 or 3.
        val_fraction: the share for validation, with `splits` of the training videos; only for the second layout.
        test_fraction: the share for the test without `splits`; only for the second layout.
        seed: seed of the random split; only for the second layout.
        kwargs: arguments of `VideoDataModule`.

    Raises:
        ValueError: a folder without videos or lists, listed videos that are missing, `splits` with the first layout,
            different classes in train and val, or an invalid argument.
    """

    def __init__(
        self,
        root: str,
        splits: str | None = None,
        fold: int = 1,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        official_split = None if splits is None else (Path(splits), fold)
        fractions = {"test": test_fraction, "val": val_fraction}
        read = partial(read_any, Path(root), official_split, fractions, seed)
        classes, parts = training_data(read, classes_alone)
        super().__init__(class_names=classes, parts=parts, **kwargs)


def read_any(
    root: Path, official_split: tuple[Path, int] | None, fractions: dict[str, float], seed: int
) -> tuple[list[str], dict[str, list[Sample]]]:
    """Classes, and samples of each part, of any layout."""
    if _has_folders(root / "train") or _has_folders(root / "val"):
        if official_split is not None:
            given = official_split[0]
            raise ValueError(f"{root} is already split into train and val: splits must be null, got {given}")
        return read_parts(root)
    classes, samples = read_folder(root)
    if official_split is None:
        indices = split([k for _, k in samples], fractions, seed)
        return classes, {part: [samples[k] for k in chosen] for part, chosen in indices.items()}
    named = {f"{Path(path).parent.name}/{Path(path).name}": (path, k) for path, k in samples}
    train, test = ([named[name] for name in names] for names in official(*official_split, set(named)))
    return classes, {"test": test, **_validation(train, fractions["val"], seed)}


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())


def read_parts(root: Path) -> tuple[list[str], dict[str, list[Sample]]]:
    """Classes, and samples of each part, of root/train, root/val and, if it has class folders, root/test."""
    names = ["train", "val", *(["test"] if _has_folders(root / "test") else [])]
    read = {part: read_folder(root / part) for part in names}
    classes = read["train"][0]
    for part, (others, _) in read.items():
        if others != classes:
            sides = only_in({"train": set(classes), part: set(others)})
            raise ValueError(f"{root / 'train'} and {root / part} have different classes; {sides}")
    return classes, {"test": read["val"][1], **{part: samples for part, (_, samples) in read.items()}}


def read_folder(root: Path) -> tuple[list[str], list[Sample]]:
    """Classes and samples of root/<class>/*."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_EXTENSIONS) for folder in folders]
    if not folders or not all(found):
        empty = next((folder for folder, videos in zip(folders, found, strict=True) if not videos), root)
        endings = ", ".join(VIDEO_EXTENSIONS)
        raise MissingDataError(f"no video in {empty}: expected {root}/<class>/*, files that end in {endings}")
    samples = [(str(path), k) for k, videos in enumerate(found) for path in videos]
    return [folder.name for folder in folders], samples


def official(lists: Path, fold: int, existing: set[str]) -> tuple[list[str], list[str]]:
    """Training and test videos, as <class>/<file>, from UCF101's or HMDB51's lists; ValueError if one is missing."""
    ucf = [lists / f"{part}list{fold:02}.txt" for part in ("train", "test")]
    hmdb = sorted(lists.glob(f"*_test_split{fold}.txt"))
    if all(path.is_file() for path in ucf):
        train, test = ([line.split()[0] for line in path.read_text().splitlines() if line.strip()] for path in ucf)
    elif hmdb:
        rows = [(path.name.rpartition("_test_split")[0], *_row(path, line)) for path in hmdb for line in _lines(path)]
        train, test = ([f"{name}/{file}" for name, file, use in rows if use == wanted] for wanted in ("1", "2"))
    else:
        raise MissingDataError(
            f"no lists for split {fold} in {lists}: expected UCF101's trainlist{fold:02}.txt and testlist{fold:02}.txt "
            f"or HMDB51's <class>_test_split{fold}.txt"
        )
    missing = [name for name in (*train, *test) if name not in existing]
    if missing:
        raise MissingDataError(
            f"{len(missing)} of {len(train) + len(test)} listed videos are missing: {listed(missing)}"
        )
    return train, test


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip()]


def _row(path: Path, line: str) -> tuple[str, str]:
    """File and use of a line of HMDB51: 1 for training, 2 for the test, 0 for neither."""
    file, _, use = line.strip().rpartition(" ")
    if use not in ("0", "1", "2"):
        raise ValueError(f"{path}: expected lines '<file> 0|1|2', got {line[:80]!r}")
    return file.strip(), use


def _validation(train: list[Sample], fraction: float, seed: int) -> dict[str, list[Sample]]:
    """Split the training videos into train and val without splitting a group."""
    # UCF101: v_<class>_g<group>_c<clip>.avi; HMDB51's names do not end so, which makes each video a group of its own
    groups = [re.sub(r"(_g\d+)_c\d+\.\w+$", r"\1", path) for path, _ in train]
    labels = {group: label for group, (_, label) in zip(groups, train, strict=True)}
    names = sorted(labels)
    chosen = split([labels[name] for name in names], {"val": fraction}, seed)
    val = {names[k] for k in chosen["val"]}
    parts: dict[str, list[Sample]] = {"train": [], "val": []}
    for group, sample in zip(groups, train, strict=True):
        parts["val" if group in val else "train"].append(sample)
    return parts


def fake(root: str | Path) -> dict[str, Any]:
    """Write UCF101's layout: 3 classes with 4 groups of 2 videos each, 20 frames of 32 x 48, and the lists of split 1.

    Returns:
        The arguments with which `VideoFolder` reads them.
    """
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(("Archery", "Biking", "Diving")):
        folder = Path(root) / "UCF-101" / name
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(8):
            file = f"v_{name}_g{k // 2 + 1:02}_c{k % 2 + 1:02}.avi"
            write_video(folder / file, plain_frames(20, label, k), codec="mpeg4")
            lists["test" if k < 2 else "train"].append(f"{name}/{file}" + (f" {label + 1}" if k >= 2 else ""))
    folder = Path(root) / "ucfTrainTestlist"
    folder.mkdir(exist_ok=True)
    for part, lines in lists.items():
        (folder / f"{part}list01.txt").write_text("".join(f"{line}\n" for line in lines))
    return {"root": str(Path(root) / "UCF-101"), "splits": str(folder), "val_fraction": 0.34, **SMALL}
