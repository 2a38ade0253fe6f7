"""The pairwise functions of Eq. 1: for each one f, C(x), its exact forms, what they cost, and which is the fastest.

A form is a function (query, key, value, mask, scale) -> y that computes Eq. 1. It gets tensors of float32 or wider
("fused" takes any dtype) in which masked keys and values are zero; mask is bool (B, M). Shape suffixes as in
functional.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nonlocal_nets.nn.fused_softmax import fused_softmax
from nonlocal_nets.nn.softmax_by_rows import softmax_by_rows
from nonlocal_nets.nn.sorted_sum import sorted_sum
from nonlocal_nets.nn.tiled_softmax import TILE, tiled_softmax

Form = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]

# Sizes at which one form becomes faster than another, in float32 on two cores of an AMD EPYC
# (`python -m benchmarks choice`); SORTING on an Intel Xeon too. Maps are counted in entries.
LARGEST_KEPT_MAP = 40_000_000  # of a batch: 160 MB kept for backward save one matrix product of five; 0 saves them
KEPT_PER_WIDTH = {"rows": 2**17, "materialised": 2**14}  # of a batch, times d + v: with narrow queries and values,
# computing a map again is faster than reading it from memory, the more so the more operations read it
LARGEST_CACHED_MAP = TILE // 4  # of a sample: a larger one leaves the cache between two operations, unless by rows
LARGEST_COMPILED_MAP = 2 * TILE  # of a batch: torch.compile would unroll the loops over rows and tiles
LONGEST_ROW = 2**13  # keys: a block of longer rows has too few of them for a fast matrix product
LARGEST_PADDED_WIDTH = 128  # torch's kernel computes with the larger of d and v for both
SORTING = 250  # entries of the map in the time that it takes to sort and gather one position


class Sizes(NamedTuple):
    """What the choice of a form depends on: n queries, m keys, and the widths d of both and v of the values."""

    n: int
    m: int
    d: int
    v: int
    batch: int = 1
    like: Tensor | None = None  # has the device, dtype and requires_grad; None: float32 on a CPU, with a gradient
    symmetric: bool = False  # the keys are the queries, without a mask


class Function:
    """A pairwise function f and its C(x)."""

    forms: dict[str, Form]
    plain = "materialised"  # the fastest form of operations that torch can differentiate again and again
    has_scale = False
    has_weight = False

    def fold(self, query: Tensor, key: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries and keys with `weight`, if f has one, folded into them."""
        return query, key

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """f / C(x): (B, N, M), for a mask (B, M) or (B, N, M)."""
        raise NotImplementedError

    def choose(self, sizes: Sizes) -> str:
        """The fastest form. In an export sizes are symbols, so that it must not depend on them."""
        raise NotImplementedError

    def multiply_adds(self, form: str, n: int, m: int, d: int, v: int) -> int:
        """Multiply-adds of a form per sample."""
        return n * m * (d + v)


class Softmax(Function):
    """f = exp(scale q_i . k_j), C = sum_j f (Eq. 2 and 3): f / C is a softmax over the keys."""

    has_scale = True

    def __init__(self) -> None:
        self.forms = {
            "fused": fused_softmax,
            "tiled": tiled_softmax,
            "rows": softmax_by_rows,
            "materialised": self.materialised,
        }

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return softmax(query @ key.mT * scale, mask)

    def materialised(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return product(self.weights(query, key, mask, scale), value)

    def choose(self, sizes: Sizes) -> str:
        n, m, d, v, batch, like, symmetric = sizes
        other = like is not None and (like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64))
        if other or torch.compiler.is_exporting():
            return "fused"
        entries = batch * n * m
        if torch.compiler.is_compiling():
            return "materialised" if entries <= LARGEST_COMPILED_MAP else "fused"
        gradient = like is None or like.requires_grad
        if symmetric and gradient and n * m > TILE:  # half of the map, and none is kept; one tile has no mirror image
            return "tiled"
        form = "rows" if n * m > LARGEST_CACHED_MAP else "materialised"
        if d == v:
            built = gradient and entries <= min(LARGEST_KEPT_MAP, (d + v) * KEPT_PER_WIDTH[form])
        else:
            built = entries <= LARGEST_KEPT_MAP if gradient else m <= LONGEST_ROW
        if built:
            return form
        return "fused" if d == v or max(d, v) <= LARGEST_PADDED_WIDTH else "tiled"


class Counted(Function):
    """C(x) is the number of keys."""

    def f(self, query: Tensor, key: Tensor) -> Tensor:
        """The map, (B, N, M), not yet divided by C(x)."""
        raise NotImplementedError

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return divide_by_count(self.f(query, key), mask)

    def materialised(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return product(self.f(query, key), value / _count(key, mask))


class DotProduct(Counted):
    """f = q_i . k_j, C = M (Eq. 4): (q k^T) v = q (k^T v)."""

    plain = "associative"

    def __init__(self) -> None:
        self.forms = {"associative": self.associative, "materialised": self.materialised}

    def f(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.mT

    def associative(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return product(query, product(key.mT, value) / _count(key, mask))

    def choose(self, sizes: Sizes) -> str:
        if torch.compiler.is_exporting():
            return "associative"
        costs = {form: self.multiply_adds(form, *sizes[:4]) for form in self.forms}
        return "associative" if costs["associative"] < costs["materialised"] else "materialised"

    def multiply_adds(self, form: str, n: int, m: int, d: int, v: int) -> int:
        return (n + m) * d * v if form == "associative" else n * m * (d + v)


class Concatenation(Counted):
    """f = relu(w_f . [q_i, k_j]) = relu(a_i + b_j) with a scalar for each position, C = M (Eq. 5).

    a and b stand in tensors of width 1. On each side of its kink relu is linear, so that after a sort prefix sums do.
    """

    has_weight = True

    def __init__(self) -> None:
        self.forms = {"sorted": self.sorted, "materialised": self.materialised}

    def fold(self, query: Tensor, key: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """a (B, N, 1) and b (B, M, 1)."""
        if weight is None:
            return query, key
        w_query, w_key = weight.to(query.dtype)[:, None].chunk(2)
        return query @ w_query, key @ w_key

    def f(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.relu(query + key.mT)

    def sorted(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return sorted_sum(query[..., 0], key[..., 0], value / _count(key, mask))

    def choose(self, sizes: Sizes) -> str:
        if torch.compiler.is_exporting():  # which cannot see the backward of "sorted"
            return "materialised"
        return "sorted" if sizes.n * sizes.m > SORTING * (sizes.n + sizes.m) else "materialised"

    def multiply_adds(self, form: str, n: int, m: int, d: int, v: int) -> int:
        return (n + m) * (d + v) if form == "sorted" else n * m * (d + v)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b for (B, N, K) and (B, K, V): (B, N, V), with rows or columns next to each other in memory as b has them."""
    return a @ b if b.is_contiguous() else (b.mT @ a.mT).mT


def softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """exp(logits) / sum_j exp(logits), (B, N, M), over the keys where mask, bool (B, M) or (B, N, M), is True.

    A row without any key is zero, and its gradient too.
    """
    if mask is None:
        return logits.softmax(-1)
    out = ~(mask[:, None] if mask.ndim == 2 else mask)
    return logits.masked_fill(out, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(out, 0)


def divide_by_count(f: Tensor, mask: Tensor | None = None) -> Tensor:
    """f / M, (B, N, M), with M the number of keys; with a mask as in `softmax`, of the keys where it is True."""
    if mask is None:
        return f / f.shape[2]
    mask = mask[:, None] if mask.ndim == 2 else mask
    return f.masked_fill(~mask, 0) / mask.sum(-1, keepdim=True).clamp(min=1)


def _count(key: Tensor, mask: Tensor | None) -> Tensor | int:
    """C(x) = M. It divides the smallest tensor of a form, not the map or y."""
    return key.shape[1] if mask is None else mask.sum(1)[:, None, None].clamp(min=1)


FUNCTIONS: dict[str, Function] = {
    "gaussian": Softmax(),
    "embedded_gaussian": Softmax(),
    "dot_product": DotProduct(),
    "concatenation": Concatenation(),
}
