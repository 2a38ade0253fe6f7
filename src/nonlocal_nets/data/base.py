"""What the data modules share: data loaders, a stratified split, corrupt files, and messages."""

import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nonlocal_nets.data.order import Seeded, TrainingLoader, TrainingOrder

Target = TypeVar("Target")
log = logging.getLogger(__name__)
MOST_SAMPLES, MOST_WORKERS = 100_000_000, 512  # their order, or the processes, would fill the memory


class CorruptFileError(ValueError):
    """An unreadable file, or too many of them. The message is one line and names the file."""


class Files(Dataset[tuple[Tensor, Any]], ABC, Generic[Target]):
    """Sample k is read from file k at each access.

    Args:
        samples: paths and targets.
        corrupt: "stop" at a corrupt file, or "replace" it by the next good one.
        max_corrupt: the share of the files that may be replaced.

    Raises:
        CorruptFileError: on access to a corrupt file if `corrupt` is "stop", or if too many are corrupt.
    """

    noun = "files"  # in messages

    def __init__(
        self,
        samples: Sequence[tuple[str, Target]],
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
    ) -> None:
        self.samples: Sequence[tuple[str, Target]] = samples
        self.corrupt, self.max_corrupt = corrupt, max_corrupt
        # One flag per file in shared memory, not a counter: workers and epochs share them, and no file counts twice.
        self.known_corrupt = torch.zeros(len(samples), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    @abstractmethod
    def read(self, path: str, target: Target) -> tuple[Tensor, Any]:
        """The input made from a file, and its target; CorruptFileError if the file cannot be read."""

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def digest(self) -> int:
        """Differs for other files: of their names, wherever their folder is, and their targets."""
        listed = "\n".join(f"{Path(path).name} {target}" for path, target in self.samples)
        return zlib.crc32(listed.encode("utf-8", "surrogateescape"))

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        while True:  # ends: since max_corrupt < 1, either a file is good or too many are corrupt
            path, target = self.samples[index]
            if not self.known_corrupt[index]:
                try:
                    return self.read(path, target)
                except CorruptFileError as error:
                    self._record(index, error)
            index = (index + 1) % len(self)  # in a list sorted by class, usually another of the same class

    def _record(self, index: int, error: CorruptFileError) -> None:
        """Mark a file as corrupt; raise unless it may be replaced."""
        if self.corrupt == "stop":
            raise error
        self.known_corrupt[index] = True
        count = int(self.known_corrupt.sum())
        so_far = f"{count} of {len(self)} {self.noun} so far"
        if count / len(self) > self.max_corrupt:
            known = [path for (path, _), bad in zip(self.samples, self.known_corrupt.tolist(), strict=True) if bad]
            message = f"{error}; {so_far}, more than max_corrupt={self.max_corrupt}: {listed(known, 60)}"
            raise type(error)(message) from error
        # logging, because warnings.warn shows a text only once per process, and each rank finds its own corrupt files
        log.warning("%s; replaced by another (%s)", error, so_far)


def check_corrupt(corrupt: str, max_corrupt: float) -> None:
    """Raise a ValueError for values that `Files` does not accept."""
    if corrupt not in ("stop", "replace"):
        raise ValueError(f"corrupt must be 'stop' or 'replace', got {corrupt!r}")
    if not 0 <= max_corrupt < 1:
        raise ValueError(f"max_corrupt must be a share in [0, 1), got {max_corrupt}")


def listed(names: Iterable[str], width: int = 100) -> str:
    """Names for a message: as many as fit in `width` characters (at least one), then how many more: a, b (+3 more)."""
    names = list(names)
    count = max(1, sum(length <= width + 2 for length in accumulate(len(name) + 2 for name in names)))
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" (+{rest} more)" if rest > 0 else "")


def only_in(sides: Mapping[str, set[str]]) -> str:
    """For a message about two sets of names that should be one: the names that only one side has."""
    (_, first), (_, second) = sides.items()
    both = first & second
    return "; ".join(f"only in {side}: {listed(sorted(names - both), 40) or 'none'}" for side, names in sides.items())


def one_line(error: Exception) -> str:
    """The message of an error in one line, at most 150 characters long."""
    return " ".join(str(error).split())[:150]


def find_files(path: str | Path, extensions: Sequence[str], noun: str) -> list[str]:
    """The path itself if it is a file, else all files with one of the extensions in the folder and its subfolders.

    Args:
        path: a file or a folder.
        extensions: such as ".png", in lower case.
        noun: what such a file is called in messages, such as "image".

    Returns:
        The paths, sorted.

    Raises:
        ValueError: no such file or folder, or no such file in the folder.
    """
    path = Path(path)
    article = f"a{'n' * (noun[0] in 'aeiou')}"
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise ValueError(f"no file or folder {path}: expected {article} {noun}, or a folder with {noun}s")
    found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in extensions and file.is_file())
    if not found:
        raise ValueError(f"no {noun} in {path}: expected files that end in {', '.join(extensions)}")
    return found


def split(groups: Sequence[Any], fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """A random stratified split: each part gets its fraction of each group, to within one or two samples.

    Unlike scikit-learn's, it accepts groups of any size, even of one sample: the samples are sorted by group and
    shuffled within each group, and each part takes every (1 / fraction)-th of those that the parts before it have left.

    Args:
        groups: the group of each sample, such as its label.
        fractions: the fraction of each part except "train", which gets the rest.
        seed: seed of the split, which depends on nothing but the three arguments.

    Returns:
        The sorted indices of each part; together they are 0 .. len(groups) - 1.

    Raises:
        ValueError: a fraction that is not above 0, fractions whose sum is not below 1, or a part without samples.
    """
    if min(fractions.values()) <= 0 or sum(fractions.values()) >= 1:
        given = ", ".join(f"{part}_fraction={fraction}" for part, fraction in fractions.items())
        raise ValueError(f"fractions must be above 0, and below 1 together, got {given}")
    random = np.random.default_rng(seed)
    order = np.lexsort((random.random(len(groups)), np.unique(np.asarray(groups), return_inverse=True)[1]))
    parts, left = {}, 1.0
    for part, fraction in fractions.items():
        taken = np.diff(np.floor(random.random() + fraction / left * np.arange(len(order) + 1))) > 0
        parts[part], order, left = sorted(order[taken].tolist()), order[~taken], left - fraction
    parts["train"] = sorted(order.tolist())
    for part, indices in parts.items():
        if not indices:
            raise ValueError(f"a split of {len(groups)} samples leaves none for {part}: choose other fractions")
    return parts


class DataModule(pl.LightningDataModule, ABC):
    """Batches (inputs (B, *input_size), targets); for `predict`, (inputs, paths).

    Args:
        class_names: in the order of the labels.
        input_size: size of one training input, channels first.
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        num_workers: number of processes that load; 0 loads in the main process.

    Raises:
        ValueError: a size below its minimum.
    """

    def __init__(
        self, class_names: Sequence[str], input_size: tuple[int, ...], batch_size: int, num_workers: int
    ) -> None:
        super().__init__()
        check_minimum({"batch_size": (batch_size, 1), "num_workers": (num_workers, 0)})
        check_maximum({"batch_size": (batch_size, MOST_SAMPLES), "num_workers": (num_workers, MOST_WORKERS)})
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.input_size = input_size
        self.normalisation: dict[str, Any] = {}  # the options that scale the inputs, in plain values
        self.batch_size, self.test_batch_size, self.num_workers = batch_size, batch_size, num_workers

    @property
    def meaning(self) -> dict[str, Any]:
        """What the inputs and outputs of a network trained on these data mean, in plain values, for its checkpoints.

        "class_names", in the order of the outputs, "normalisation" and "input_size".
        """
        names, size = list(self.class_names), list(self.input_size)
        return {"class_names": names, "normalisation": self.normalisation, "input_size": size}

    @abstractmethod
    def dataset(self, part: str) -> Dataset[tuple[Tensor, Any]]:
        """Inputs and targets of "train", "val" or "test"."""

    @abstractmethod
    def predict_dataset(self) -> Dataset[tuple[Tensor, str]]:
        """Inputs and paths for `predict`; ValueError if no path was given."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Any]]:
        dataset = self.dataset("train")
        enough = len(dataset) >= self.batch_size  # type: ignore[arg-type]  # else dropping would leave no batch at all
        processes = (
            {} if self.trainer is None else {"replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        )
        order = TrainingOrder(dataset, self.batch_size, self.lengths(dataset), **processes)
        return self._loader(Seeded(dataset), self.batch_size, TrainingLoader, sampler=order, drop_last=enough)

    def lengths(self, dataset: Dataset[tuple[Tensor, Any]]) -> Sequence[int] | None:
        """The lengths of the training samples if a batch should have samples of similar lengths, else None."""
        return None

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Any]]:
        return self._loader(self.dataset("val"), self.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Any]]:
        return self._loader(self.dataset("test"), self.test_batch_size)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, str]]:
        return self._loader(self.predict_dataset(), self.test_batch_size, collate_fn=_with_paths)

    def _loader(
        self,
        dataset: Dataset[tuple[Tensor, Any]],
        batch_size: int,
        loader_class: type[DataLoader[tuple[Tensor, Any]]] = DataLoader,
        **options: Any,
    ) -> DataLoader[tuple[Tensor, Any]]:
        options |= {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        return loader_class(dataset, batch_size=batch_size, **options)  # keywords: Lightning rebuilds predict's loader


def check_minimum(given: Mapping[str, tuple[int, int]]) -> None:
    """Raise a ValueError for a number below its minimum; `given` maps names to (number, minimum)."""
    for name, (value, minimum) in given.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_maximum(given: Mapping[str, tuple[int, int]]) -> None:
    """Raise a ValueError for a number above its maximum; `given` maps names to (number, maximum)."""
    for name, (value, maximum) in given.items():
        if value > maximum:
            raise ValueError(f"{name} must be at most {maximum}, got {value}")


def _with_paths(batch: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    return torch.stack([x for x, _ in batch]), [path for _, path in batch]
