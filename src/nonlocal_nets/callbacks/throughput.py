"""Samples, positions and floating-point operations a second, by Lightning's monitor."""

import copy
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.throughput import measure_flops
from pytorch_lightning.callbacks import ThroughputMonitor
from torch import Tensor, nn

from nonlocal_nets.callbacks.task import require


class Throughput(ThroughputMonitor):
    """Logs `train/device/samples_per_sec`, of one process, and the same of `items` (positions), `batches` and `flops`.

    With several processes also their sums, `train/samples_per_sec` and so on; the same for `validate` and `test`; and
    on cards whose peak Lightning knows `train/device/mfu`, the share of it. The operations are those of the first batch
    of an epoch: matrix products and convolutions, forward and in training backward. A position is a pixel, a pixel of
    a frame, or a step of a sequence that is no padding.

    Args:
        window_size: batches over which the speed is taken; there is none before.

    Raises:
        ValueError: a LightningModule without `network`, `inputs(batch, stage)` and `num_samples(batch)`.
    """

    def __init__(self, window_size: int = 20) -> None:
        super().__init__(self._num_samples, self._num_positions, window_size=window_size)
        self.task: Any = None
        self.stage = "train"
        self.training_flops: int | None = None
        self.counted: set[str] = set()  # the stages of which a batch was looked at, in this command

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require(self, pl_module, "network", "inputs", "num_samples")
        self.task, self.counted = pl_module, set()
        super().setup(trainer, pl_module, stage)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._start_batch(pl_module, batch, batch_idx, "train")
        self.training_flops = pl_module.flops_per_batch

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start_batch(pl_module, batch, batch_idx, "val")

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start_batch(pl_module, batch, batch_idx, "test")

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start_batch(pl_module, batch, batch_idx, "predict")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        pl_module.flops_per_batch = self.training_flops

    def _start_batch(self, pl_module: Any, batch: Any, batch_idx: int, stage: str) -> None:
        self.stage = stage
        if batch_idx == 0 or stage not in self.counted:  # a resumed run may begin in the middle of an epoch
            self.counted.add(stage)
            # where Lightning looks for it
            pl_module.flops_per_batch = flops(pl_module.network, pl_module.inputs(batch, stage), stage == "train")

    def _num_samples(self, batch: Any) -> int:
        return int(self.task.num_samples(batch))

    def _num_positions(self, batch: Any) -> int:
        return positions(self.task.inputs(batch, self.stage))


def positions(inputs: Any) -> int:
    """How many positions a network's inputs have: (B, C, *S) or tokens (B, L), and perhaps a mask, bool (B, *S)."""
    x, *others = _arguments(inputs)
    masks = [other for other in others if _is_mask(other)]
    if masks:
        return int(masks[0].sum())
    return int(x.numel() // x.shape[1] if x.is_floating_point() else x.numel())


def flops(network: nn.Module, inputs: Any, training: bool) -> int | None:
    """Floating-point operations of a batch, by a copy of the network without storage; None if it looks at values.

    A mask is left out: what it spares depends on its values.
    """
    tensors = [x for x in _arguments(inputs) if isinstance(x, Tensor) and not _is_mask(x)]
    shapes = [torch.empty_like(x, device="meta") for x in tensors]
    memo: dict[int, Any] = {id(b): b.to("meta") for b in network.buffers()}
    memo |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in network.parameters()}
    with torch.inference_mode(False), torch.set_grad_enabled(training):
        shadow = copy.deepcopy(network, memo).train(training)
        try:
            return measure_flops(shadow, lambda: shadow(*shapes), torch.sum if training else None)
        except (RuntimeError, NotImplementedError):
            return None


def _arguments(inputs: Any) -> Sequence[Any]:
    return inputs if isinstance(inputs, (tuple, list)) else (inputs,)


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.bool
