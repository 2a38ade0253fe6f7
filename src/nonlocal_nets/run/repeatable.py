"""All randomness of training follows from the seed: a run that was interrupted goes on as if it had not been."""

import os
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch


class Repeatable(pl.Callback):
    """Each training step's random numbers follow from (seed, process, epoch, batch), of torch, numpy and Python.

    Dropout, mixup and whatever else is drawn in a step thus differ between processes, and repeat: no state of a
    generator needs saving. Samples and their order follow from (seed, epoch) by themselves (data/order.py). A
    checkpoint from the middle of an epoch tells how far it was, and the run goes on with the batch after that one. On a
    CPU its weights are then bit for bit those of a run that was not interrupted.
    """

    def __init__(self) -> None:
        self.epoch, self.batches, self.total = 0, 0, 0  # batches trained in this epoch, and in all

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first batch is drawn; the loop has its state by now."""
        sampler = getattr(trainer.train_dataloader, "sampler", None)
        unfinished = trainer.current_epoch == self.epoch and self.batches < trainer.num_training_batches
        if unfinished and hasattr(sampler, "skip"):
            sampler.skip = self.batches * trainer.train_dataloader.batch_size  # type: ignore[union-attr]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.epoch, self.batches, self.total = trainer.current_epoch, batch_idx + 1, self.total + 1
        entropy = (int(os.environ.get("PL_GLOBAL_SEED", 0)), trainer.global_rank, self.epoch, batch_idx)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # what timm draws from
        random.seed(seed)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the progress of the loops as an uninterrupted run would.

        Lightning 2.6 miscounts after a resume, so that a run that is interrupted twice would repeat batches.
        """
        if not self.total:
            return
        loops = checkpoint["loops"]["fit_loop"]
        ended = self.batches >= trainer.num_training_batches
        batches = {"total": _progress(self.total, self.total - 1 + ended)}
        batches["current"] = _progress(self.batches, self.batches - 1 + ended)
        loops["epoch_loop.batch_progress"] = batches | {"is_last_batch": ended}
        epochs = _progress(self.epoch + 1, self.epoch) | {"processed": self.epoch + ended}
        loops["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
        loops["epoch_loop.state_dict"] = {"_batches_that_stepped": trainer.global_step - 1 + ended}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batches": self.batches, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch, self.batches, self.total = (state_dict[name] for name in ("epoch", "batches", "total"))


def _progress(begun: int, completed: int) -> dict[str, int]:
    return {"ready": begun, "started": begun, "processed": begun, "completed": completed}
