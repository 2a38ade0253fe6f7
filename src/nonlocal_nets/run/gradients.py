"""A checkpoint between two batches of one step has the gradients of the first."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.distributed.tensor import DTensor

from nonlocal_nets.run.loops import FitLoop

KEY = "gradients"  # in a checkpoint


class Gradients(pl.Callback):
    """Keeps what has been accumulated where a validation in the middle of a step writes a checkpoint.

    That of several processes is their mean, as at the end of the step. Weights that FSDP shares out are left out.
    """

    def __init__(self) -> None:
        self.saved: dict[str, Tensor] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loop = trainer.fit_loop
        if isinstance(loop, FitLoop) and loop.in_epoch and loop._should_accumulate():
            found = {name: parameter.grad for name, parameter in pl_module.named_parameters()}
            checkpoint[KEY] = {
                name: trainer.strategy.reduce(value.clone(), reduce_op="mean")
                for name, value in found.items()
                if value is not None and not isinstance(value, DTensor)
            }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.saved = checkpoint.get(KEY, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        saved, self.saved = self.saved, {}
        for name, parameter in pl_module.named_parameters() if trainer.fit_loop.restarting else ():
            if name in saved:
                parameter.grad = saved[name].to(parameter.device)
