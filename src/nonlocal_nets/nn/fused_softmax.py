"""The form of the two softmax functions by torch's kernel, scaled_dot_product_attention.

Shape suffixes as in functional.py. Tensors may be of any floating-point dtype; sums run in float32 or wider.
"""

import torch.nn.functional as F
from torch import Tensor


def fused_softmax(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Torch's kernel. On a CPU it builds the N x M map after all, without a word, unless the widths of queries and
    values are equal and the last dimension is contiguous; zeros added to queries and keys do not change their product.
    """
    v = value.shape[2]
    width = max(query.shape[2], v)
    q, k, g = (_widen(t, width).contiguous()[:, None] for t in (query, key, value))
    if mask is not None:  # without any valid key all count: their values are zero, so y is zero, and not NaN
        mask = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, g, attn_mask=mask, scale=scale)[:, 0, :, :v]


def _widen(t: Tensor, width: int) -> Tensor:
    """Zeros added at the end of the last dimension; the tensor itself where it is wide enough (F.pad would copy it)."""
    return F.pad(t, (0, width - t.shape[2])) if t.shape[2] < width else t
