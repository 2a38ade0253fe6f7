"""Samples, positions and floating-point operations a second, by Lightning's monitor."""

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.throughput import measure_flops
from pytorch_lightning.callbacks import ThroughputMonitor
from torch import Tensor, nn


class Throughput(ThroughputMonitor):
    """Logs `train/device/samples_per_sec`, of one process, and the same of `items` (positions), `batches` and `flops`.

    With several processes also their sums, `train/samples_per_sec` and so on; the same for `validate` and `test`; and
    on cards whose peak Lightning knows `train/device/mfu`, the share of it. The operations are those of the first batch
    of an epoch: matrix products and convolutions, forward and in training backward. A position is a pixel, a pixel of
    a frame, or a step of a sequence that is no padding.

    Args:
        window_size: batches over which the speed is taken; there is none before.
    """

    def __init__(self, window_size: int = 20) -> None:
        super().__init__(lambda batch: len(batch[1]), positions, window_size=window_size)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            pl_module.flops_per_batch = flops(pl_module.network, batch, training=True)  # where Lightning looks for it

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            self.trained: int | None = getattr(pl_module, "flops_per_batch", None)
            pl_module.flops_per_batch = flops(pl_module.network, batch, training=False)

    on_test_batch_start = on_validation_batch_start

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        pl_module.flops_per_batch = self.trained


def positions(batch: Any) -> int:
    """How many there are in the inputs of a batch, (B, C, *S), (B, V, C, T, H, W), or ((B, C, L) or (B, L), mask)."""
    x, mask = batch[0] if isinstance(batch[0], (tuple, list)) else (batch[0], None)
    if mask is not None:
        return int(mask.sum())
    channels = 1 if x.ndim == 2 else x.shape[2] if x.ndim == 6 else x.shape[1]
    return int(x.numel() // channels)


def flops(network: nn.Module, batch: Any, training: bool) -> int | None:
    """Floating-point operations of a batch, by a copy of the network without storage; None if it looks at values."""
    x = batch[0] if isinstance(batch[0], Tensor) else batch[0][0]
    x = torch.empty_like(x.flatten(0, 1) if x.ndim == 6 else x, device="meta")  # (B, V, ...): each view is a sample
    memo: dict[int, Any] = {id(b): b.to("meta") for b in network.buffers()}
    memo |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in network.parameters()}
    with torch.inference_mode(False), torch.set_grad_enabled(training):
        shadow = copy.deepcopy(network, memo).train(training)
        try:
            return measure_flops(shadow, lambda: shadow(x), torch.sum if training else None)
        except (RuntimeError, NotImplementedError):
            return None
