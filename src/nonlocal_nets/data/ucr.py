"""The UCR and UEA archives of time series classification (Dau et al. 2018, Bagnall et al. 2018), in .ts files."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor

from nonlocal_nets.data.base import CorruptFileError, listed, split
from nonlocal_nets.data.sequences import SequenceDataModule, Sequences
from nonlocal_nets.data.trained import MissingDataError, known, training_data
from nonlocal_nets.data.ts_files import Array, TsFile, read_ts

PACKAGE = RequirementCache("aeon")
MISSING = ("error", "linear", "zero")
NORMALISE = ("train", "series", "none")


class Set(NamedTuple):
    """What is read of a data set: the series (C, L) and labels of each part, not scaled."""

    classes: list[str]
    channels: int
    length: int  # of the longest training series
    parts: dict[str, tuple[list[Array], list[int]]]
    moments: tuple[Array, Array]  # of the training series


class UCR(SequenceDataModule):
    """Time series of a data set of the archives, of any lengths; their dimensions become the channels.

    The split into train and test is the archive's; validation is a random share of train, in the same proportions for
    each class. The classes are the labels that occur in train, in the order of its header.

    Args:
        name: name of the data set. The package aeon includes ArrowHead, BasicMotions, GunPoint, ItalyPowerDemand,
            JapaneseVowels, OSULeaf, ACSF1, PickupGestureWiimoteZ and a few more. null: the only data set in `root`.
        root: a folder with `<name>_TRAIN.ts` and `<name>_TEST.ts`, or with a folder `<name>` that contains them;
            default: the one inside aeon.
        val_fraction: the share of train for validation. 0: all of train is used for both training and validation, as
            in papers that choose the checkpoint with the lowest training loss.
        seed: seed of the split into training and validation.
        normalise: (x - mean) / std for each channel, with mean and std of all training values ("train") or of the
            series itself ("series"); or "none".
        missing: what to do with NaN and ?: "error" refuses them, "linear" interpolates in the channel, with the nearest
            value at the ends, "zero" puts 0 there before the normalisation.
        max_length: maximum length of a series; a longer one is an error. null: no maximum.
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        num_workers: number of processes that load; 0 loads in the main process.
        path: for `predict`, a .ts file with or without labels. The name of a series is <file>:<number>, from 1.

    Raises:
        ValueError: an invalid argument, an unknown data set, or a missing file.
        CorruptFileError: whatever `read_ts` raises; in the test a number of dimensions or a label that train does not
            have; a missing value; a series that is too long. The message names the file and the line.
        ModuleNotFoundError: no `root` is given and aeon is not installed; names the command that installs it.
    """

    def __init__(
        self,
        name: str | None = None,
        root: str | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        normalise: Literal["train", "series", "none"] = "train",
        missing: Literal["error", "linear", "zero"] = "error",
        max_length: int | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        path: str | None = None,
    ) -> None:
        for option, given, accepted in (("normalise", normalise, NORMALISE), ("missing", missing, MISSING)):
            if given not in accepted:
                raise ValueError(f"{option} must be one of {', '.join(accepted)}, got {given!r}")
        if path is not None and not Path(path).is_file():
            raise ValueError(f"no file {path}: expected a .ts file to predict")
        read = partial(
            read_set, name, root, partial(complete, missing=missing, max_length=max_length), val_fraction, seed
        )
        whole = training_data(read, gone)
        # those of the data that a network was trained on, though these may have changed
        self.moments = saved_moments(known()) if "moments" in known() else whole.moments
        self.normalise = normalise
        self.parts = {part: self._scaled(*samples) for part, samples in whole.parts.items()}
        if path is not None:
            values = complete(read_ts(path, whole.channels), whole.channels, missing, max_length)
            self.parts["predict"] = self._scaled(values, [f"{path}:{k}" for k in range(1, len(values) + 1)])
        super().__init__(whole.classes, whole.channels, whole.length, batch_size, num_workers)
        self.normalisation = {"normalise": normalise}

    def _scaled(self, series: Sequence[Array], targets: Sequence[Any]) -> Sequences:
        return Sequences([scaled(x, self.normalise, self.moments) for x in series], targets)

    @property
    def meaning(self) -> dict[str, Any]:
        return super().meaning | {"moments": [values.tolist() for values in self.moments]}

    def dataset(self, part: str) -> Sequences:
        return self.parts[part]

    def predict_dataset(self) -> Sequences:
        if "predict" not in self.parts:
            raise ValueError("predict needs series: --data.path=<.ts file>")
        return self.parts["predict"]


def gone(trained: Mapping[str, Any]) -> Set:
    """What a trained network knows of a data set that is no longer there."""
    channels, length = trained["input_size"]
    return Set(trained["class_names"], channels, length, {}, saved_moments(trained))


def saved_moments(trained: Mapping[str, Any]) -> tuple[Array, Array]:
    mean, std = map(np.array, trained["moments"])
    return mean, std


def read_set(
    name: str | None, root: str | None, fill: Callable[[TsFile, int], list[Array]], val_fraction: float, seed: int
) -> Set:
    """A data set with its missing values filled in, and with validation split from train."""
    train, test = (read_ts(file) for file in find_set(name, root))
    channels = len(train.series[0].values)
    classes = [label for label in train.labels if any(label == series.label for series in train.series)]
    series, labels = fill(train, channels), numbered(train, classes)
    chosen: dict[str, Sequence[int]] = dict.fromkeys(("train", "val"), range(len(labels)))
    if val_fraction:
        chosen |= split(labels, {"val": val_fraction}, seed)
    parts = {part: ([series[k] for k in indices], [labels[k] for k in indices]) for part, indices in chosen.items()}
    whole = np.concatenate(parts["train"][0], axis=1)
    length = max(x.shape[1] for x in parts["train"][0])
    parts["test"] = fill(test, channels), numbered(test, classes)
    return Set(classes, channels, length, parts, moments(whole))


def find_set(name: str | None, root: str | None) -> tuple[Path, Path]:
    """The files of train and test: of the named data set, or the only one, in `root`; without `root`, in aeon."""
    if root is None:
        folder = package_folder()
        sets = sorted(path.name for path in folder.iterdir() if all(file.is_file() for file in _files(path, path.name)))
        if name not in sets:
            raise ValueError(f"name must be one of {listed(sets, 180)}, or root a folder with .ts files; got {name!r}")
    else:
        folder = Path(root)
        names = [path.name.removesuffix("_TRAIN.ts") for path in sorted(folder.glob("*_TRAIN.ts"))]
        if name is None and len(names) != 1:
            if names:
                raise ValueError(f"name must be one of the data sets in {root}: {listed(names)}")
            raise MissingDataError(f"no data set in {root}; expected <name>_TRAIN.ts and <name>_TEST.ts")
        name = name or names[0]
    for candidate in (folder / name, folder):
        train, test = _files(candidate, name)
        if train.is_file() and test.is_file():
            return train, test
    raise MissingDataError(f"no files {name}_TRAIN.ts and {name}_TEST.ts in {folder} or {folder / name}")


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}_TRAIN.ts", folder / f"{name}_TEST.ts"


def package_folder() -> Path:
    """The folder of aeon's data, without importing aeon, which takes seconds and needs its dependencies."""
    spec = importlib.util.find_spec("aeon") if PACKAGE else None
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the time series are in a package, whose files suffice: pip install --no-deps aeon")
    return Path(spec.origin).parent / "datasets" / "data"


def complete(file: TsFile, channels: int, missing: str, max_length: int | None) -> list[Array]:
    """The values (channels, L) of each series of a file, with missing values filled in."""
    found = []
    for series in file.series:
        if len(series.values) != channels:
            raise CorruptFileError(f"{file.at(series)}: {len(series.values)} dimensions, but train has {channels}")
        length = series.values.shape[1]
        if max_length is not None and length > max_length:
            raise CorruptFileError(f"{file.at(series)}: length {length}, more than max_length={max_length}")
        found.append(_imputed(series.values, missing, file.at(series)))
    return found


def _imputed(x: Array, missing: str, where: str) -> Array:
    gaps = np.isnan(x)
    if not gaps.any():
        return x
    if missing == "error":
        channel, position = np.argwhere(gaps)[0] + 1
        hint = "missing=linear and missing=zero fill it in"
        raise CorruptFileError(f"{where}, dimension {channel}: value {position} is missing; {hint}")
    if missing == "zero":
        return np.where(gaps, 0, x)
    if gaps.all(1).any():
        raise CorruptFileError(f"{where}: a dimension without any values cannot be interpolated")
    positions = np.arange(x.shape[1])
    rows = [np.interp(positions, positions[~gap], row[~gap]) for row, gap in zip(x, gaps, strict=True)]
    return np.stack(rows)


def numbered(file: TsFile, classes: Sequence[str]) -> list[int]:
    """The labels of a file's series as numbers."""
    for series in file.series:
        if series.label not in classes:
            problem = f"label {series.label!r} does not occur in train, which has {listed(classes)}"
            raise CorruptFileError(f"{file.at(series)}: {problem}")
    return [classes.index(str(series.label)) for series in file.series]


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation, (C, 1) each, of rows (C, L); the latter is 1 for a constant row."""
    mean, std = x.mean(1, keepdims=True), x.std(1, keepdims=True)
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1)  # rounding may make it slightly above 0


def scaled(x: Array, normalise: str, whole: tuple[Array, Array]) -> Tensor:
    """(x - mean) / std, float32; `whole` has mean and std of all training series."""
    if normalise != "none":
        mean, std = whole if normalise == "train" else moments(x)
        x = (x - mean) / std
    return torch.from_numpy(x).float()


def fake(root: str | Path) -> dict[str, Any]:
    """Write a data set with two dimensions and three classes: 15 training and 6 test series of length 20 to 40.

    Returns:
        The arguments with which `UCR` reads them.
    """
    random = np.random.default_rng(0)
    Path(root).mkdir(parents=True, exist_ok=True)
    labels = ("slow", "fast", "still")
    for part, count in (("TRAIN", 15), ("TEST", 6)):
        lines = ["# synthetic", "@problemName Fake", "@timeStamps false", "@missing false", "@univariate false"]
        lines += ["@dimensions 2", "@equalLength false", f"@classLabel true {' '.join(labels)}", "@data"]
        for k in range(count):
            time = np.arange(random.integers(20, 41))
            wave = np.sin((0.2, 0.8, 0)[k % 3] * time + random.random((2, 1))) + 0.1 * random.standard_normal(
                (2, len(time))
            )
            lines.append(":".join([*(",".join(f"{value:.4f}" for value in row) for row in wave), labels[k % 3]]))
        (Path(root) / f"Fake_{part}.ts").write_text("\n".join(lines) + "\n")
    return {"root": str(root), "name": "Fake"}
