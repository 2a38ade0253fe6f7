"""Speech Commands (Warden 2018, arXiv:1804.03209): one-second recordings of 35 words, CC BY 4.0."""

import math
import wave
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from nonlocal_nets.data.audio import check_wav, frames, log_mel, mel_filters, read_wav, shifted
from nonlocal_nets.data.base import Files, Target, check_corrupt, check_minimum, find_files, listed
from nonlocal_nets.data.sequences import SequenceDataModule
from nonlocal_nets.data.trained import MissingDataError, classes_alone, training_data

RATE = 16_000  # Hz
LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
CHECKED = 5000  # number of recordings whose headers are checked before training starts; takes about a second


class Recordings(Files[Target]):
    """Sample k is recording k, a waveform (1, samples) or a log-mel spectrogram (n_mels, frames), and its target.

    Args:
        samples, corrupt, max_corrupt: see `Files`.
        max_length: maximum length of a recording, in samples.
        filters: mel filters of the spectrogram; None: the waveform.
        shift: maximum random shift in time, in samples.
    """

    noun = "recordings"

    def __init__(
        self,
        samples: Sequence[tuple[str, Target]],
        max_length: int,
        filters: Tensor | None,
        shift: int = 0,
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
    ) -> None:
        super().__init__(samples, corrupt, max_corrupt)
        self.max_length, self.filters, self.shift = max_length, filters, shift

    def read(self, path: str, target: Target) -> tuple[Tensor, Target]:
        x = read_wav(path, RATE, self.max_length)
        if self.shift:
            x = shifted(x, self.shift)
        return (x if self.filters is None else log_mel(x, self.filters)), target


class SpeechCommands(SequenceDataModule):
    """The published folder: `root/<word>/<speaker>_nohash_<n>.wav`, validation_list.txt and testing_list.txt.

    Each folder is a class, except folders whose name begins with an underscore, such as _background_noise_. Recordings
    that are in neither list are for training. The classes "unknown" and "silence" of the competition are not created.
    In a batch, shorter recordings are padded and masked.

    Args:
        root: the folder with the recordings and the two lists.
        words: the classes, in this order; null: all folders, sorted. In yaml, put quotes around yes, no, on and off.
        features: "log_mel", (n_mels, frames): frames of 25 ms every 10 ms; or "waveform", (1, samples), in [-1, 1).
        n_mels: number of mel filters of the spectrogram.
        max_length: maximum length of a recording, in samples, 16,000 per second; a longer one counts as corrupt.
        time_shift: maximum shift in time, in seconds, to either side at random, in training; 0: no shift.
        corrupt: "stop" at a recording that cannot be read and name it, before training starts if its header is
            corrupt; or "replace" it by the next good one, with a warning. In validation and test that one then counts
            twice.
        max_corrupt: with "replace", the share of a part's recordings that may be corrupt; one more stops the run.
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        num_workers: number of processes that load; 0 loads in the main process.
        path: for `predict`, a wav file or a folder that is searched for wav files. A corrupt one always stops it.

    Raises:
        ValueError: an invalid argument, a missing folder or list, or a missing file that is listed.
        CorruptFileError: a recording that is empty, damaged, too long, or not 16-bit PCM at 16 kHz with one channel.
    """

    def __init__(
        self,
        root: str,
        words: Sequence[str] | None = None,
        features: Literal["log_mel", "waveform"] = "log_mel",
        n_mels: int = 40,
        max_length: int = RATE,
        time_shift: float = 0.1,
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
        batch_size: int = 64,
        num_workers: int = 0,
        path: str | None = None,
    ) -> None:
        if features not in ("log_mel", "waveform"):
            raise ValueError(f"features must be 'log_mel' or 'waveform', got {features!r}")
        check_minimum({"n_mels": (n_mels, 1), "max_length": (max_length, 1)})
        if time_shift < 0:
            raise ValueError(f"time_shift must be at least 0 seconds, got {time_shift}")
        check_corrupt(corrupt, max_corrupt)
        self.filters = mel_filters(n_mels, RATE) if features == "log_mel" else None
        self.paths = None if path is None else find_files(path, (".wav",), "recording")
        find = partial(find_recordings, Path(root), words)
        classes, self.parts = training_data(find, classes_alone)
        if corrupt == "stop":
            paths = [file for samples in self.parts.values() for file, _ in samples]
            for file in paths[:: math.ceil(len(paths) / CHECKED) or 1]:
                check_wav(file, RATE, max_length)
        self.max_length, self.shift = max_length, round(time_shift * RATE)
        self.corrupt, self.max_corrupt = corrupt, max_corrupt
        size = (1, max_length) if self.filters is None else (n_mels, frames(max_length))
        super().__init__(classes, *size, batch_size, num_workers)
        self.normalisation = {"features": features, "n_mels": n_mels}

    def dataset(self, part: str) -> Recordings[int]:
        shift = self.shift if part == "train" else 0
        policy = (self.corrupt, self.max_corrupt)
        return Recordings(self.parts[part], self.max_length, self.filters, shift, *policy)

    def predict_dataset(self) -> Recordings[str]:
        if self.paths is None:
            raise ValueError("predict needs recordings: --data.path=<wav file or folder>")
        return Recordings([(path, path) for path in self.paths], self.max_length, self.filters)


def find_recordings(root: Path, words: Sequence[str] | None) -> tuple[list[str], dict[str, list[tuple[str, int]]]]:
    """The classes, and the paths and labels of "train", "val" and "test"."""
    expected = f"expected {root}/<word>/*.wav, validation_list.txt and testing_list.txt"
    folders = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    existing = [name for name in folders if name[0] not in "_."]
    classes = existing if words is None else list(words)
    if not existing:
        raise MissingDataError(f"no word folder in {root}: {expected}")
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(existing):
        given = listed(sorted(set(classes) - set(existing)) or classes, 60) or "none"
        raise ValueError(f"words must be distinct folders in {root}, which has {listed(existing, 60)}; got {given}")
    part_of = {name: part for part, file in LISTS.items() for name in read_list(root / file, words)}
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label, word in enumerate(classes):
        files = sorted(path.name for path in (root / word).glob("*.wav"))
        if not files:
            raise MissingDataError(f"no recording in {root / word}: {expected}")
        for name in files:
            parts[part_of.get(f"{word}/{name}", "train")].append((str(root / word / name), label))
    if empty := [part for part, samples in parts.items() if not samples]:
        raise MissingDataError(f"no recording for {' and '.join(empty)} in {root}: {expected}")
    return classes, parts


def read_list(path: Path, words: Sequence[str] | None) -> list[str]:
    """The lines <word>/<file> of a list, only for some words if `words` is given; ValueError if a file is missing."""
    if not path.is_file():
        raise MissingDataError(f"no file {path}: expected lines <word>/<speaker>_nohash_<n>.wav")
    lines = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1)]
    chosen = [(number, line) for number, line in lines if line and (words is None or line.partition("/")[0] in words)]
    for number, line in chosen:
        if not (path.parent / line).is_file():
            raise MissingDataError(f"{path}, line {number}: no file {path.parent / line}")
    return [line for _, line in chosen]


def fake(root: str | Path) -> dict[str, Any]:
    """Write the published layout with tones for 3 words, 7 recordings of 0.05 to 0.1 s each, and a recording of noise.

    Returns:
        The arguments with which `SpeechCommands` reads them.
    """
    random = np.random.default_rng(0)
    lists: dict[str, list[str]] = {part: [] for part in LISTS}
    for label, word in enumerate(("no", "up", "yes")):
        for k in range(7):
            time = np.arange(random.integers(800, 1601)) / RATE
            name = f"{word}/{random.integers(16**8):08x}_nohash_{k % 2}.wav"
            write_wav(Path(root) / name, 0.5 * np.sin(2 * np.pi * 400 * 2**label * time + k))
            if k < 4:
                lists["val" if k < 2 else "test"].append(name)
    write_wav(Path(root) / "_background_noise_" / "white_noise.wav", 0.1 * random.standard_normal(3200))
    for part, names in lists.items():
        (Path(root) / LISTS[part]).write_text("".join(f"{name}\n" for name in names))
    return {"root": str(root), "words": ["no", "up", "yes"], "max_length": 1600}


def write_wav(path: Path, samples: np.ndarray[Any, np.dtype[np.float64]], rate: int = RATE) -> None:
    """Write samples in [-1, 1) as a mono wav file of 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes((samples * 2**15).astype("<i2").tobytes())
