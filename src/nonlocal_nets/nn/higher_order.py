"""Derivatives that the backward passes of the fast forms do not have: second ones, forward mode, and torch.func."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which needs plain operations of torch."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def differentiable_again(y: Tensor, plain: Operation, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """y itself, whose gradients are those of plain(query, key, value) where these are to be differentiated again.

    Else they come from the form that has computed y, and `plain`, which may be much slower, is not called.
    """
    if not (torch.is_grad_enabled() and y.requires_grad) or torch.compiler.is_compiling():
        return y
    again: Tensor = _DifferentiableAgain.apply(y, plain, query, key, value)
    return again


class _DifferentiableAgain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, plain: Operation, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.plain = plain
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        batched = torch._C._functorch.is_legacy_batchedtensor(dy)  # by is_grads_batched and functional.jacobian
        if not (torch.is_grad_enabled() or batched):
            return dy, None, None, None, None
        with torch.enable_grad():
            inputs = [t.view_as(t) for t in ctx.saved_tensors]  # key may be query: each gets the gradient of its role
            y = ctx.plain(*inputs)
            wanted = [t for t in inputs if t.requires_grad]
            gradients = iter(torch.autograd.grad(y, wanted, dy.to(y.dtype), create_graph=True))
        return None, None, *(next(gradients) if t.requires_grad else None for t in inputs)
