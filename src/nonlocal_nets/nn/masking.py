"""Normalisation of padded sequences, images or clips."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def norm_valid(norm: nn.Module, u_BNC: Tensor, valid_BN: Tensor) -> Tensor:
    """`norm` of the valid positions, zero at the others. The statistics of a batch norm are those of the valid ones.

    In training, the valid positions are gathered for batch norm. Their number depends on the data, so that
    torch.compile needs fullgraph=False.

    Args:
        norm: batch norm, or a norm that treats each position separately.
        u_BNC: (B, N, C).
        valid_BN: bool (B, N).
    """
    if not isinstance(norm, _BatchNorm):
        u: Tensor = norm(u_BNC)
    elif not (norm.training or norm.running_mean is None):
        u = norm(u_BNC.flatten(0, 1)).view_as(u_BNC)
    elif valid_BN.any():
        index = valid_BN.flatten().nonzero()[:, 0]
        normed: Tensor = norm(u_BNC.flatten(0, 1).index_select(0, index))
        return normed.new_zeros(valid_BN.numel(), normed.shape[1]).index_copy(0, index, normed).view_as(u_BNC)
    else:  # nothing to normalise, but DDP needs a gradient, zero, for every parameter
        u = u_BNC * norm.weight + norm.bias
    return u.masked_fill(~valid_BN[..., None], 0)
