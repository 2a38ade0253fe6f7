"""The order of the training samples and the randomness of each sample, as functions of the seed and the epoch alone.

Neither depends on the number of workers or on what was drawn before. Nor, batch for batch, on the number of processes:
two processes with B samples each see what one process with 2 B samples sees.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler


def global_seed() -> int:
    """The seed set by seed_everything; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


class TrainingOrder(DistributedSampler[Any]):
    """Pairs (epoch, index) that visit all samples in a random order, a new one in each epoch.

    The samples are distributed round-robin among the processes. Lightning sets the epoch, and does not replace a
    sampler that is distributed already. With `lengths`, samples of similar lengths share a batch: the samples of each
    `CHUNK` consecutive batches, all processes together, are sorted by length; then the batches are shuffled.

    Args:
        dataset: the data set; only its length is used.
        batch_size: samples per batch and process.
        lengths: the length of each sample; None if they do not matter.
        replicas: number of processes.
        rank: number of this process.
    """

    CHUNK = 32

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        lengths: Sequence[int] | None = None,
        replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, replicas, rank, shuffle=True, seed=global_seed())
        self.batch_size, self.lengths = batch_size * replicas, lengths
        self.skip = 0  # how many samples of this process the next epoch skips, since a resumed run has seen them

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        yield from ((self.epoch, index) for index in self.order()[skip:])

    def order(self) -> list[int]:
        """The indices of this process's samples in this epoch, also of those that a resumed run has seen."""
        random = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(len(self.dataset), generator=random).tolist()  # type: ignore[arg-type]
        if self.lengths is not None:
            order = self._by_length(order, self.lengths, random)
        order += (order * self.num_replicas)[: self.total_size - len(order)]  # the same number for all processes
        return order[self.rank :: self.num_replicas]

    def _by_length(self, order: list[int], lengths: Sequence[int], random: torch.Generator) -> list[int]:
        whole = len(order) // self.batch_size * self.batch_size  # an incomplete batch stays the last
        size, batches = self.CHUNK * self.batch_size, []
        for begin in range(0, whole, size):
            chunk = sorted(order[begin : min(begin + size, whole)], key=lengths.__getitem__)
            batches += [chunk[k : k + self.batch_size] for k in range(0, len(chunk), self.batch_size)]
        shuffled = [batches[index] for index in torch.randperm(len(batches), generator=random).tolist()]
        return [index for batch in shuffled for index in batch] + order[whole:]


class Seeded(Dataset[tuple[Tensor, Any]]):
    """A data set indexed by (epoch, index): these two and the seed determine all that torch's generator draws.

    Transforms that should be reproducible must draw from torch's generator, as torchvision's do.
    """

    def __init__(self, dataset: Dataset[tuple[Tensor, Any]]) -> None:
        self.dataset, self.seed = dataset, global_seed()

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: tuple[int, int] | int) -> tuple[Tensor, Any]:
        # --trainer.overfit_batches has a sampler of its own, without epochs
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        before = torch.default_generator.get_state()
        torch.default_generator.manual_seed(int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]))
        try:
            return self.dataset[index]
        finally:
            torch.default_generator.set_state(before)


class TrainingLoader(DataLoader[tuple[Tensor, Any]]):
    """A DataLoader that starts its sampler and workers only when the first batch is requested.

    Lightning creates the iterator before it sets the sampler's epoch and restores a checkpoint.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()
