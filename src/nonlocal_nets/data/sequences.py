"""What the sequence data modules share: padding with a mask, and batches of similar lengths.

Shape suffixes: B batch, C channels, L positions.
"""

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, default_collate

from nonlocal_nets.data.base import DataModule

Padded = tuple[Tensor, Tensor | None]


class Sequences(Dataset[tuple[Tensor, Any]]):
    """Sequences in memory: sample k is a signal (C, L), float32, or tokens (L,), int64, and its target.

    Args:
        values: one tensor per sample; lengths may differ. Tokens may have any integer type, such as uint8.
        targets: one label per sample; or, for `predict`, one name per sample.
    """

    def __init__(self, values: Sequence[Tensor], targets: Sequence[Any]) -> None:
        assert len(values) == len(targets)
        self.values, self.targets = values, targets
        self.lengths = [value.shape[-1] for value in values]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def digest(self) -> int:
        """Differs for other sequences or targets."""
        digest = zlib.crc32(str(self.targets).encode())
        for value in self.values:
            digest = zlib.crc32(value.contiguous().numpy().data, digest)
        return digest

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        value = self.values[index]
        return value if value.is_floating_point() else value.long(), self.targets[index]


def collate(samples: Sequence[tuple[Tensor, Any]]) -> tuple[Padded, Any]:
    """A batch ((B, C, L) or (B, L), mask), targets; zeros at the end pad samples to the length of the longest.

    The mask, bool (B, L), is True where a sample has values. It is None if all samples have the same length.
    """
    lengths = torch.tensor([x.shape[-1] for x, _ in samples])
    longest = int(lengths.max())
    x = torch.stack([pad(x, (0, longest - x.shape[-1])) for x, _ in samples])
    mask = None if lengths.min() == longest else torch.arange(longest) < lengths[:, None]
    return (x, mask), default_collate([target for _, target in samples])


class SequenceDataModule(DataModule):
    """Batches ((x, mask), labels) of signals (B, C, L), float32, or tokens (B, L), int64; names instead for `predict`.

    A batch is as long as its longest sample, see `collate`. If the training data set has an attribute `lengths`,
    training batches have samples of similar lengths.

    Args:
        class_names: in the order of the labels.
        channels: number of channels of a signal, or size of the vocabulary: tokens are 0 to channels - 1.
        length: length of the longest training sample.
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        num_workers: number of processes that load.
    """

    tokens = False  # whether the samples are tokens

    def __init__(
        self, class_names: Sequence[str], channels: int, length: int, batch_size: int, num_workers: int
    ) -> None:
        super().__init__(class_names, (channels, length), batch_size, num_workers)

    def lengths(self, dataset: Dataset[tuple[Tensor, Any]]) -> Sequence[int] | None:
        lengths: Sequence[int] = getattr(dataset, "lengths", [0])
        return None if min(lengths) == max(lengths) else lengths

    def _loader(self, dataset: Dataset[tuple[Tensor, Any]], batch_size: int, *args: Any, **options: Any) -> Any:
        return super()._loader(dataset, batch_size, *args, **options | {"collate_fn": collate})
