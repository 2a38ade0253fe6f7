"""The state of the random numbers, in every checkpoint: a run that goes on draws what it would have drawn."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch


class RandomState(pl.Callback):
    """Saves the random states of torch, numpy and Python with each checkpoint, and restores them when training resumes.

    Order of the samples, augmentation (the workers' seeds are drawn from torch's state), dropout and mixup then go on
    as if nothing had happened: on a CPU the resumed run is bit-identical to the one that was not interrupted, if the
    checkpoint was written at the end of an epoch. All ranks get rank 0's state; seed_everything made them equal before.
    """

    def state_dict(self) -> dict[str, Any]:
        version, words, position = random.getstate()
        name, keys, *rest = np.random.get_state()  # noqa: NPY002  # what timm and torchvision draw from
        assert isinstance(keys, np.ndarray)
        return {
            "torch": torch.get_rng_state(),
            "numpy": [name, keys.tolist(), *rest],  # plain numbers: the checkpoint loads with weights_only=True
            "python": [version, list(words), position],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """At once: Lightning makes the first epoch's iterator soon after, before on_train_start."""
        torch.set_rng_state(state_dict["torch"])
        np.random.set_state(tuple(state_dict["numpy"]))  # noqa: NPY002
        version, words, position = state_dict["python"]
        random.setstate((version, tuple(words), position))
