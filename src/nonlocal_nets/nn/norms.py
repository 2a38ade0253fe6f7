"""Normalisation after W_z, and of padded sequences, images or clips: which norms there are, and how each is applied."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nonlocal_nets.nn.pointwise import is_channels_last

EPS, MOMENTUM = 1e-5, 0.1  # torch's defaults
GROUPS = 32  # of a group norm, or the largest divisor of it that divides the channels
KEPT = (  # of a norm that is replaced: a block after it, and hooks
    "_modules",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
FREEZABLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
NORMS: dict[str, Callable[[int, float, float], nn.Module]] = {
    "batch": lambda channels, eps, momentum: nn.BatchNorm1d(channels, eps, momentum),
    "group": lambda channels, eps, _: nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps),
    "layer": lambda channels, eps, _: nn.LayerNorm(channels, eps),
    "none": lambda *_: nn.Identity(),
}


class FrozenBatchNorm(nn.Module):
    """Batch norm that stays as it is, also in training: (B, C, *S) -> (B, C, *S), or (B, C).

    Args:
        norm: whose weight, bias and running statistics it takes, as buffers of the same names.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(norm, name)
            self.register_buffer(name, None if value is None else value.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norms(model: nn.Module) -> nn.Module:
    """Replace all batch norms of `model`, its blocks' too, by ones that stay as they are, in place; returns it.

    timm.layers.freeze_batch_norm_2d does so for two axes only, which leaves out those of the blocks.

    Raises:
        ValueError: a batch norm without running statistics, or one that does more, such as timm's with an activation;
            the model is then unchanged.
    """
    modules = model.named_modules(remove_duplicate=False)
    found = {name: module for name, module in modules if isinstance(module, _BatchNorm)}
    for name, norm in found.items():
        if type(norm) not in FREEZABLE or norm.running_mean is None:
            kind = f"{type(norm).__name__}, track_running_stats={norm.track_running_stats}"
            raise ValueError(
                f"{name!r} cannot be frozen: {kind}; timm.layers.freeze_batch_norm_2d freezes timm's norms"
            )
    made: dict[_BatchNorm, FrozenBatchNorm] = {}  # one for a norm under several names
    for name, norm in found.items():
        parent, _, child = name.rpartition(".")
        if norm not in made:
            made[norm] = FrozenBatchNorm(norm)
            for inside in KEPT:
                getattr(made[norm], inside).update(getattr(norm, inside))
            made[norm]._is_full_backward_hook = norm._is_full_backward_hook
        if name:
            setattr(model.get_submodule(parent), child, made[norm])
    return made.get(model, model)  # type: ignore[call-overload,no-any-return]


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
    if isinstance(norm, _BatchNorm | FrozenBatchNorm) and is_channels_last(u):  # of three axes, torch would copy it
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
    elif not isinstance(norm, _BatchNorm | FrozenBatchNorm):
        u = norm(u_BNC)
    elif isinstance(norm, FrozenBatchNorm) or not (norm.training or norm.running_mean is None):
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
