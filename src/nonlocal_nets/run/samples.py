"""Which samples a training batch has, found again from the order of the epoch."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from nonlocal_nets.data.order import TrainingOrder


def names(trainer: pl.Trainer, batches: list[int]) -> list[str]:
    """The paths, or else the indices, of the samples of this process's batches, by their numbers in the epoch.

    If some of these samples have values that are not finite, only those.
    """
    loader: Any = trainer.train_dataloader
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, TrainingOrder):
        return [f"batch {batch} of the epoch" for batch in batches]
    order, size = sampler.order(), loader.batch_size
    indices = [index for batch in batches for index in order[batch * size : (batch + 1) * size]]
    bad = [index for index in indices if _is_not_finite(loader.dataset[(sampler.epoch, index)])]
    return [_name(loader.dataset, index) for index in bad or indices]


def _is_not_finite(sample: Any) -> bool:
    parts = sample if isinstance(sample, (tuple, list)) else [sample]
    return any(isinstance(part, Tensor) and not part.isfinite().all() for part in parts)


def _name(dataset: Any, index: int) -> str:
    while hasattr(dataset, "dataset"):  # Seeded, or a Subset
        index = dataset.indices[index] if hasattr(dataset, "indices") else index
        dataset = dataset.dataset
    samples: Any = getattr(dataset, "samples", None)
    of_files = isinstance(samples, (list, tuple)) and isinstance(samples[index], tuple)
    return str(samples[index][0]) if of_files else f"sample {index}"
