"""Normalisation after W_z, and of padded sequences, images or clips: which norms there are, and how each is applied."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nonlocal_nets.nn.pointwise import is_channels_last

EPS, MOMENTUM = 1e-5, 0.1  # torch's defaults
GROUPS = 32  # of a group norm, or the largest divisor of it that divides the channels
NORMS: dict[str, Callable[[int, float, float], nn.Module]] = {
    "batch": lambda channels, eps, momentum: nn.BatchNorm1d(channels, eps, momentum),
    "group": lambda channels, eps, _: nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps),
    "layer": lambda channels, eps, _: nn.LayerNorm(channels, eps),
    "none": lambda *_: nn.Identity(),
}


def normalise(norm: nn.Module, u: Tensor, valid: Tensor | None = None) -> Tensor:
    """`norm` of (B, C, N), in the memory layout of u.

    Args:
        norm: one of `NORMS`.
        u: (B, C, N).
        valid: bool (B, N): the positions that are normalised, see `norm_valid`. None: all.
    """
    if valid is not None:
        return norm_valid(norm, u.mT, valid).mT
    if isinstance(norm, nn.LayerNorm):
        return norm(u.mT).mT  # type: ignore[no-any-return]
    if isinstance(norm, _BatchNorm) and is_channels_last(u):  # of three axes, torch would copy it
        return norm(u.mT.flatten(0, 1)).view_as(u.mT).mT  # type: ignore[no-any-return]
    return norm(u)  # type: ignore[no-any-return]


def norm_valid(norm: nn.Module, u_BNC: Tensor, valid_BN: Tensor) -> Tensor:
    """`norm` of the valid positions, zero at the others. The statistics of batch and group norm are of the valid ones.

    In training, the valid positions are gathered for batch norm. Their number depends on the data, so that
    torch.compile needs fullgraph=False.

    Args:
        norm: batch norm, group norm, or a norm that treats each position separately.
        u_BNC: (B, N, C).
        valid_BN: bool (B, N).
    """
    if isinstance(norm, nn.GroupNorm):
        u = _group_norm(norm, u_BNC, valid_BN)
    elif not isinstance(norm, _BatchNorm):
        u = norm(u_BNC)
    elif not (norm.training or norm.running_mean is None):
        u = norm(u_BNC.flatten(0, 1)).view_as(u_BNC)
    elif valid_BN.any():
        index = valid_BN.flatten().nonzero()[:, 0]
        normed: Tensor = norm(u_BNC.flatten(0, 1).index_select(0, index))
        return normed.new_zeros(valid_BN.numel(), normed.shape[1]).index_copy(0, index, normed).view_as(u_BNC)
    else:  # nothing to normalise, but DDP needs a gradient, zero, for every parameter
        u = u_BNC * norm.weight + norm.bias
    return u.masked_fill(~valid_BN[..., None], 0)


def _group_norm(norm: nn.GroupNorm, u_BNC: Tensor, valid_BN: Tensor) -> Tensor:
    """With the mean and the variance of the valid positions of each sample and group, in float32 or wider."""
    u_BNGC = torch.unflatten(u_BNC.to(torch.promote_types(u_BNC.dtype, torch.float32)), 2, (norm.num_groups, -1))
    out = ~valid_BN[:, :, None, None]
    count = (valid_BN.sum(1) * u_BNGC.shape[3]).clamp(min=1)[:, None, None, None]
    centred = u_BNGC - u_BNGC.masked_fill(out, 0).sum((1, 3), keepdim=True) / count
    variance = centred.masked_fill(out, 0).square().sum((1, 3), keepdim=True) / count
    normed = (centred * torch.rsqrt(variance + norm.eps)).flatten(2)
    return (normed * norm.weight + norm.bias).to(u_BNC.dtype)
