"""The form "sorted" of the concatenation: a sum over all pairs by sorting and prefix sums."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 16  # positions that are summed by one matrix product


def sorted_sum(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """sum_j relu(a_i + b_j) v_j, (B, N, V), for a (B, N), b (B, M), v (B, M, V), in O((N + M) (log M + V)) time."""
    y: Tensor = _SortedSum.apply(a, b, v)
    return y


class _SortedSum(torch.autograd.Function):
    """relu(a_i + b_j) = a_i + b_j for the j with b_j > -a_i, else 0. With b in descending order these j come first, so
    the sum is a_i G + H with prefix sums G of v and H of b v. The gradients are such sums with a and b exchanged.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, a: Tensor, b: Tensor, v: Tensor) -> Tensor:
        sum_v, sum_bv = _active_sums(a, b, v)
        ctx.save_for_backward(a, b, v, sum_v)
        ctx.set_materialize_grads(False)
        return a[..., None] * sum_v + sum_bv

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, dy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if dy is None:  # higher_order.py has the gradients
            return None, None, None
        a, b, v, sum_v = ctx.saved_tensors  # type: ignore[attr-defined]
        sum_dy, sum_ady = _active_sums(b, a, dy)
        return (sum_v * dy).sum(-1), (sum_dy * v).sum(-1), b[..., None] * sum_dy + sum_ady


def _active_sums(a: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of v_j and of b_j v_j over the j with a_i + b_j > 0, for every i: (B, N, V) each."""
    minus_b, order = (-b).sort(dim=1)
    m, width = v.shape[1:]
    terms = v.new_zeros(v.shape[0], m // BLOCK * BLOCK + BLOCK, 2 * width)  # a zero first: the sum over no j
    terms[:, 1 : m + 1, :width] = _rows(v, order)
    terms[:, 1 : m + 1, width:] = terms[:, 1 : m + 1, :width] * -minus_b[..., None]
    active = torch.searchsorted(minus_b, a.contiguous())  # number of j with b_j > -a_i
    sum_v, sum_bv = _rows(_prefix_sums(terms), active).chunk(2, dim=2)
    return sum_v, sum_bv


def _prefix_sums(x: Tensor) -> Tensor:
    """cumsum along dim 1 of (B, k BLOCK, W) by a matrix product per block: faster than torch.cumsum on a CPU."""
    sums = x.new_ones(BLOCK, BLOCK).tril() @ torch.unflatten(x, 1, (-1, BLOCK))
    sums[:, 1:] += sums[:, :-1, -1:].cumsum(1)
    return sums.flatten(1, 2)


def _rows(t: Tensor, index: Tensor) -> Tensor:
    """The rows index (B, N) of t (B, M, W): (B, N, W). Faster than torch.gather."""
    first = torch.arange(t.shape[0], device=t.device)[:, None] * t.shape[1]
    return torch.unflatten(t.flatten(0, 1).index_select(0, (index + first).flatten()), 0, index.shape)
