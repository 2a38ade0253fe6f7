"""Layers that are applied to each position separately."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


class Pointwise(nn.Linear):
    """nn.Linear over the channels of (B, *S, C), whose result has the memory layout of its input.

    It also loads the weights of a convolution of size 1, (D, C, 1, ..., 1), which other implementations have.
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}weight"] = as_linear(state_dict[f"{prefix}weight"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def as_linear(weight: Tensor) -> Tensor:
    """A weight (D, C, 1, ..., 1) of a convolution as (D, C); any other tensor as it is."""
    is_pointwise = weight.ndim > 2 and weight.shape[2:].numel() == 1
    return weight.flatten(1) if is_pointwise else weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear, (B, *S, C) -> (B, *S, D), in the memory layout of x, channels first or last, of which none is copied.

    Args:
        x: (B, *S, C); channels first in memory if it is a tensor (B, C, *S) whose axes were moved.
        weight: (D, C).
        bias: (D,).
    """
    x_BCN = x.movedim(-1, 1).flatten(2)
    y_BDN = _fastest(x_BCN, weight)(x_BCN, weight, bias)
    return torch.unflatten(y_BDN.mT, 1, x.shape[1:-1])


def _fastest(x: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The fastest way for (B, C, N), by `python -m benchmarks layers`.

    A convolution on a CPU with AVX-512, else a product. That of channels first holds a gradient of the weight for each
    sample, so that on a CPU it is taken only where the samples are at least four times as large.
    """
    on_a_cpu = x.device.type == "cpu"
    if on_a_cpu and AVX512:
        return convolution
    if is_channels_last(x):
        return rows
    few = on_a_cpu and (torch.compiler.is_compiling() or x.shape[2] < 4 * len(weight))  # sizes may be symbols
    return convolution if few else columns


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By a convolution of size 1, over two axes: over one, torch would not see that channels are last."""
    batch, channels, n = x.shape
    # not by unsqueeze, which leaves a single sample a stride by which torch would not see it either
    x_BC1N = x.mT.view(batch, 1, n, channels).movedim(-1, 1) if is_channels_last(x) else x.unsqueeze(2)
    return F.conv2d(x_BC1N, weight[:, :, None, None], bias).squeeze(2)


def rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By a product of x^T, for channels last."""
    return F.linear(x.mT, weight, bias).mT


def columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By a product of x, for channels first, of which F.linear would keep a copy."""
    weights = weight.expand(x.shape[0], -1, -1)  # no len: in a trace it would be a constant
    return torch.bmm(weights, x) if bias is None else torch.baddbmm(bias[:, None], weights, x)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a position of (B, C, *S) are next to each other in memory, and the next one follows."""
    return x.movedim(1, -1).is_contiguous() and not x.is_contiguous()
