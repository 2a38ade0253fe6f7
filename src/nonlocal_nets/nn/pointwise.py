"""Layers that treat every position alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pointwise(nn.Linear):
    """nn.Linear over the channels of (B, *S, C), channels last or a view of channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear, (B, *S, C) -> (B, *S, D), which reads a view of channels first as it lies.

    F.linear copies such a view and keeps the copy for the backward pass, as many bytes as the input of a block.
    """
    if x.is_contiguous() or torch.compiler.is_compiling():  # as it is in an export
        return F.linear(x, weight, bias)
    y_BND: Tensor = (_Linear.apply if torch.is_grad_enabled() else _Linear.forward)(x.flatten(1, -2), weight, bias)
    return torch.unflatten(y_BND, 1, x.shape[1:-1])


class _Linear(torch.autograd.Function):
    """weight x + bias of every position of (B, N, C). Its gradient lies as x does, so that what x gets from others is
    added without a change of layout, and that of the weight is never there for each sample, as autograd's own is."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias, x, weight.t().expand(len(x), -1, -1))

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor
    ) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch.bmm(weight.t().to(dy.dtype).expand(len(x), -1, -1), dy.transpose(1, 2)).transpose(1, 2)
        if ctx.needs_input_grad[1]:
            dw = torch.zeros_like(weight)
            for dy_ND, x_NC in zip(dy, x, strict=True):
                dw = dw + dy_ND.t() @ x_NC.to(dy.dtype)
        return dx, dw, dy.sum((0, 1)) if ctx.needs_input_grad[2] else None
