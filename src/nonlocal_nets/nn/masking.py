"""Normalisation of padded sequences, images or clips."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
