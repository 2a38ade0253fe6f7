"""The form "rows" of the two softmax functions: keeps the map for the backward pass, and reads and writes it once.

Shape suffixes as in functional.py. q (B, N, D), k (B, M, D), v (B, M, V) are of float32 or wider.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nonlocal_nets.nn import tiled_softmax


def softmax_by_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v, (B, N, V), over the keys where mask, bool (B, M), is True."""
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    y: Tensor = _SoftmaxByRows.apply(q, k, v, mask, scale, keep)
    return y


class _SoftmaxByRows(torch.autograd.Function):
    """softmax(scale q k^T) v, a block of rows of the map at a time, small enough for the processor's cache.

    Otherwise each operation of the forward and backward pass would read the whole map from memory and write it back.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        scale: float,
        keep: bool,
    ) -> Tensor:
        n, m = q.shape[1], k.shape[1]
        p_BNM = q.new_empty(len(q), n, m) if keep else None
        row_buffer = q.new_empty(0 if keep else _height(n, m), m)
        shape = len(q), n, v.shape[2]
        y = q.new_empty(shape) if v.is_contiguous() else q.new_empty(shape[0], shape[2], n).mT  # in the layout of v
        least = torch.finfo(q.dtype).tiny ** (2 / 3)  # against denormal numbers, see tiled_softmax._exp
        for b, rows in _rows(q, k):
            p = row_buffer[: rows.stop - rows.start] if p_BNM is None else p_BNM[b, rows]
            torch.addmm(p, q[b, rows], k[b].t(), beta=0, alpha=scale, out=p)
            if mask is not None:  # without any valid key the weights are equal, and y is zero as the values are
                p.masked_fill_(~mask[b], torch.finfo(p.dtype).min)
            torch.softmax(p, 1, out=p)
            p.clamp_(min=least)
            torch.mm(p, v[b], out=y[b, rows])
        ctx.save_for_backward(q, k, v, p_BNM, y)  # type: ignore[arg-type]
        ctx.scale = scale  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, dy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        if dy is None:  # higher_order.py has the gradients
            return (None,) * 6
        q, k, v, p_BNM, y = ctx.saved_tensors  # type: ignore[attr-defined]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # dy1 v1^T is dp minus its mean under p
        dy1 = tiled_softmax.append(dy, -(dy * y).sum(2, keepdim=True))
        v1 = tiled_softmax.append(v, torch.ones_like(v[..., :1]))
        row_buffer = q.new_empty(_height(q.shape[1], k.shape[1]), k.shape[1])
        for b, rows in _rows(q, k):
            p = p_BNM[b, rows]
            dv[b].addmm_(p.t(), dy[b, rows])
            dlogits = torch.mm(dy1[b, rows], v1[b].t(), out=row_buffer[: len(p)]).mul_(p)
            torch.mm(dlogits, k[b], out=dq[b, rows])
            dk[b].addmm_(dlogits.t(), q[b, rows])
        scale: float = ctx.scale  # type: ignore[attr-defined]
        return dq.mul_(scale), dk.mul_(scale), dv, None, None, None


def _rows(q: Tensor, k: Tensor) -> Iterator[tuple[int, slice]]:
    """(sample, rows of its map), at most TILE entries at a time."""
    n = q.shape[1]
    height = _height(n, k.shape[1])
    for b in range(len(q)):
        for i in range(0, n, height):
            yield b, slice(i, min(i + height, n))


def _height(n: int, m: int) -> int:
    return tiled_softmax.even(n, max(tiled_softmax.TILE // max(m, 1), 1))
