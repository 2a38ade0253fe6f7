"""Batch norm's running statistics, computed again before they are used."""

import itertools
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nonlocal_nets.callbacks.task import require


class PreciseBN(pl.Callback):
    """Precise BN, as in the released code: before each validation of a fit, statistics of the network as it then is.

    The running averages lag behind the weights and are noisy with few clips a batch. They are replaced by the averages
    over batches of the training data, of all processes. Batch norms that are frozen keep theirs.

    Args:
        batches: of each process; fewer where the training data have fewer. The released code has 200.

    Raises:
        ValueError: a number below 1, or a LightningModule without `network` and `inputs(batch, stage)`.
    """

    def __init__(self, batches: int = 200) -> None:
        if batches < 1:
            raise ValueError(f"batches must be at least 1, got {batches}")
        self.batches = batches

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require(self, pl_module, "network", "inputs")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        loader: Any = trainer.train_dataloader
        batches = (pl_module.transfer_batch_to_device(batch, pl_module.device, 0) for batch in loader)
        inputs = (pl_module.inputs(batch, "train") for batch in batches)
        update(pl_module.network, itertools.islice(inputs, self.batches), trainer.strategy.reduce)


@torch.no_grad()
def update(network: nn.Module, batches: Any, reduce: Any = lambda value: value) -> None:
    """Replace running statistics by their plain averages over batches; modes and momenta stay as they are.

    Unlike `torch.optim.swa_utils.update_bn` it lets frozen batch norms alone, and drops nothing out.

    Args:
        network: in any mode; a batch norm without gradients is frozen and keeps its statistics.
        batches: its inputs; a tuple where it takes several, as a padded batch and its mask.
        reduce: the mean of a tensor over the processes.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and _learns(m)]
    if not norms:
        return
    kept = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    network.eval()  # no dropout; only the norms see the batches
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain average
    try:
        for batch in batches:
            network(*batch) if isinstance(batch, (tuple, list)) else network(batch)
    finally:
        for module, mode in kept:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    for norm in norms:
        for buffer in (norm.running_mean, norm.running_var):
            assert isinstance(buffer, Tensor)
            buffer.copy_(reduce(buffer))


def _learns(norm: _BatchNorm) -> bool:
    return norm.weight is None or norm.weight.requires_grad
