"""Layers that are applied to each position separately."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonlocal_nets.nn.higher_order import is_transformed

GRADIENTS = 2**20  # entries of a weight's gradient, per sample, that are in memory at a time


class Pointwise(nn.Linear):
    """nn.Linear over the channels of (B, *S, C), in the memory layout channels last or channels first.

    It also loads the weights of a convolution of size 1, (D, C, 1, ..., 1), which other implementations have.
    """

    def forward(self, x: Tensor, channels_first: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, channels_first)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}weight"] = as_linear(state_dict[f"{prefix}weight"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def as_linear(weight: Tensor) -> Tensor:
    """A weight (D, C, 1, ..., 1) of a convolution as (D, C); any other tensor as it is."""
    is_pointwise = weight.ndim > 2 and weight.shape[2:].numel() == 1
    return weight.flatten(1) if is_pointwise else weight


def linear(x: Tensor, weight: Tensor, bias: Tensor, channels_first: bool = False) -> Tensor:
    """F.linear, (B, *S, C) -> (B, *S, D), without a copy of x if it is channels first in memory.

    F.linear copies such an x and keeps the copy for the backward pass, as many bytes as the input of a block.

    Args:
        x: (B, *S, C).
        weight: (D, C).
        bias: (D,).
        channels_first: the memory layout of the result.
    """
    plain = torch.compiler.is_compiling() or is_transformed()  # in an export too
    if plain or (x.is_contiguous() and not channels_first):
        return F.linear(x, weight, bias)
    function = _Linear.apply if torch.is_grad_enabled() else _Linear.forward
    y_BND: Tensor = function(x.flatten(1, -2), weight, bias, channels_first)
    return torch.unflatten(y_BND, 1, x.shape[1:-1])


class _Linear(torch.autograd.Function):
    """weight x + bias for each position of (B, N, C).

    The gradient of x has the layout of x, so that gradients from elsewhere are added to it without a copy. The gradient
    of a weight is summed over some samples at a time; autograd would hold one gradient per sample.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, channels_first: bool) -> Tensor:
        if channels_first:
            return torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x.transpose(1, 2)).transpose(1, 2)
        return torch.baddbmm(bias, x, weight.t().expand(len(x), -1, -1))

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor
    ) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            w = weight.to(dy.dtype).expand(len(x), -1, -1)
            if x.is_contiguous():
                dx = torch.bmm(dy, w)
            else:
                dx = torch.bmm(w.transpose(1, 2), dy.transpose(1, 2)).transpose(1, 2)
        if ctx.needs_input_grad[1]:
            samples = max(1, GRADIENTS // weight.numel())
            for some_dy, some_x in zip(torch.split(dy, samples), torch.split(x, samples), strict=True):
                each = torch.bmm(some_dy.transpose(1, 2), some_x.to(dy.dtype))
                some = each[0] if len(each) == 1 else each.sum(0)
                dw = some if dw is None else dw + some
        return dx, dw, dy.sum((0, 1)) if ctx.needs_input_grad[2] else None, None
