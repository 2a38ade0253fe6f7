"""All randomness of training follows from the seed: a run that was interrupted goes on as if it had not been."""

import os
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_warn

from nonlocal_nets.run.loops import resumable


class Repeatable(pl.Callback):
    """Each training step's random numbers follow from (seed, process, epoch, batch), of torch, numpy and Python.

    Dropout, mixup and whatever else is drawn in a step thus differ between processes, and repeat: no state of a
    generator needs saving. Samples and their order follow from (seed, epoch) by themselves (data/order.py). A
    checkpoint from the middle of an epoch tells how far it was, and the run goes on with the batch after that one. On a
    CPU its weights are then bit for bit those of a run that was not interrupted.
    """

    def __init__(self) -> None:
        self.epoch, self.batches = 0, 0  # batches trained in this epoch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        resumable(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first batch is drawn; the loop has its state by now."""
        sampler = getattr(trainer.train_dataloader, "sampler", None)
        unfinished = trainer.current_epoch == self.epoch and self.batches < trainer.num_training_batches
        if unfinished and hasattr(sampler, "skip"):
            sampler.skip = self.batches * trainer.train_dataloader.batch_size  # type: ignore[union-attr]
        elif unfinished and self.batches:  # --trainer.overfit_batches, or a loader of the user's
            rank_zero_warn(f"this loader cannot skip the {self.batches} batches that were done: it begins again")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.epoch, self.batches = trainer.current_epoch, batch_idx + 1
        entropy = (int(os.environ.get("PL_GLOBAL_SEED", 0)), trainer.global_rank, self.epoch, batch_idx)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # what timm draws from
        random.seed(seed)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All processes validate what checkpoints hold: the first one's running means, of which each has its own."""
        if isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.batches = (state_dict[name] for name in ("epoch", "batches"))
