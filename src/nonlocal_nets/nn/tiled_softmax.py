"""The form "tiled" of the two softmax functions: plain matrix products, a tile of the map at a time.

Shape suffixes as in functional.py. q (B, N, D), k (B, M, D), v (B, M, V) are of float32 or wider.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 2**21  # entries of the map that are computed at a time


def tiled_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v, (B, N, V), over the keys where mask, bool (B, M), is True."""
    y: Tensor = _TiledSoftmax.apply(q, k, v.contiguous(), mask, scale)  # 1.2 times as fast
    return y


class _TiledSoftmax(torch.autograd.Function):
    """softmax(scale q k^T) v with memory that grows with N + M: tiles are computed again in the backward pass.

    If k is q itself, the logits are symmetric. Then only the tiles on one side of the diagonal are computed, each one
    serves its mirror image too, and one product instead of two takes the gradients of both to q.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        symmetric = k is q
        v1 = append(v, torch.ones_like(v[..., :1]))  # the last column of the sums is then C
        sums = q.new_zeros(*q.shape[:2], v1.shape[2])  # of f v1 over the keys so far, with f = exp(logit - top)
        top = q.new_full((*q.shape[:2], 1), torch.finfo(q.dtype).min)  # the largest logit so far

        def add(b: int, rows: slice, columns: slice, logits: Tensor, f: Tensor) -> None:
            larger = torch.maximum(top[b, rows], logits.amax(1, keepdim=True))
            sums[b, rows].mul_(torch.exp(top[b, rows] - larger))
            sums[b, rows].addmm_(_exp(torch.sub(logits, larger, out=f)), v1[b, columns])
            top[b, rows] = larger

        for b, rows, columns, logits, f, _ in _tiles(q, k, mask, scale, symmetric):
            add(b, rows, columns, logits, f)
            if symmetric and rows != columns:
                add(b, columns, rows, logits.t(), f.t())
        c = sums[..., -1:]
        y = sums[..., :-1] / c
        ctx.save_for_backward(q, k, v1, mask, y, top.add_(c.log()))  # type: ignore[arg-type]
        ctx.scale, ctx.symmetric = scale, symmetric  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, dy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if dy is None:  # higher_order.py has the gradients
            return (None,) * 5
        q, k, v1, mask, y, log_c = ctx.saved_tensors  # type: ignore[attr-defined]
        scale: float = ctx.scale  # type: ignore[attr-defined]
        symmetric: bool = ctx.symmetric  # type: ignore[attr-defined]
        dq = torch.zeros_like(q)
        dk, dv = dq if symmetric else torch.zeros_like(k), torch.zeros_like(v1[..., :-1])
        dy1 = append(dy, -(dy * y).sum(2, keepdim=True))  # dy1 v1^T is dp minus its mean under p

        def dlogits(b: int, rows: slice, columns: slice, logits: Tensor, p: Tensor, dp: Tensor) -> Tensor:
            _exp(torch.sub(logits, log_c[b, rows], out=p))
            dv[b, columns].addmm_(p.t(), dy[b, rows])
            return torch.mm(dy1[b, rows], v1[b, columns].t(), out=dp).mul_(p)

        for b, rows, columns, logits, p, dp in _tiles(q, k, mask, scale, symmetric):
            if symmetric and rows != columns:
                mirrored = dlogits(b, columns, rows, logits.t(), p.t(), dp.t()).t()
                both = dlogits(b, rows, columns, logits, logits, p).add_(mirrored)
            else:
                both = dlogits(b, rows, columns, logits, logits, dp)
            dq[b, rows].addmm_(both, k[b, columns])
            dk[b, columns].addmm_(both.t(), q[b, rows])
        dq.mul_(scale)
        return dq, None if symmetric else dk.mul_(scale), dv, None, None


def _tiles(
    q: Tensor, k: Tensor, mask: Tensor | None, scale: float, symmetric: bool
) -> Iterator[tuple[int, slice, slice, Tensor, Tensor, Tensor]]:
    """(sample, rows, columns, their logits, two buffers of this shape). All tiles share the same three buffers."""
    n, m = q.shape[1], k.shape[1]
    width = even(m, math.isqrt(TILE))
    height = width if symmetric else even(n, TILE // width)
    buffers = [q.new_empty(height * width) for _ in range(3)]
    for b in range(len(q)):
        for i in range(0, n, height):
            for j in range(i if symmetric else 0, m, width):
                rows, columns = slice(i, min(i + height, n)), slice(j, min(j + width, m))
                shape = (rows.stop - i, columns.stop - j)
                logits, spare, spare_2 = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
                torch.addmm(logits, q[b, rows], k[b, columns].t(), beta=0, alpha=scale, out=logits)
                if mask is not None:  # without any valid key the weights are equal, and y is zero as the values are
                    logits.masked_fill_(~mask[b, columns], torch.finfo(logits.dtype).min)
                yield b, rows, columns, logits, spare, spare_2


def even(n: int, most: int) -> int:
    """The length of the parts if n is cut into equal ones that are no longer than `most`."""
    return max(-(-n // max(-(-n // most), 1)), 1)


def _exp(logits: Tensor) -> Tensor:
    """exp in place, of logits minus the largest of their row.

    A negligible result is clamped to a normal number: with one denormal number in a hundred, a matrix product on a CPU
    takes a hundred times as long.
    """
    return logits.clamp_(min=2 / 3 * math.log(torch.finfo(logits.dtype).tiny)).exp_()


def append(t: Tensor, column: Tensor) -> Tensor:
    return torch.cat([t, column], 2)
