"""Layers that treat every position alone."""

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
    if x.is_contiguous() or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    y_BND = torch.baddbmm(bias, x.flatten(1, -2), weight.t().expand(len(x), -1, -1))
    return torch.unflatten(y_BND, 1, x.shape[1:-1])
