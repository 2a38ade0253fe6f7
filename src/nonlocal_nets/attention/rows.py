"""The rows of f / C(x) at points: what the blocks of a model attend to from there. Only these rows are computed."""

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nonlocal_nets.attention.capture import Activations, capture
from nonlocal_nets.nn import NonLocalBlock, blocks, functional
from nonlocal_nets.nn.grid import pool_sizes

Point = Sequence[float]  # a fraction in [0, 1) of the sample's extent, for each axis


class Row(NamedTuple):
    """The weights of one query of a block for one sample."""

    weights: Tensor  # f / C(x) on the grid of the keys
    query: tuple[int, ...]  # the query's position on the block's grid
    size: tuple[int, ...]  # extent of the sample on this grid, without padding
    pool: tuple[int, ...]  # positions that a key takes up along each axis

    @property
    def middle(self) -> tuple[float, ...]:
        """Where the middle of the query's position lies, in fractions of the sample."""
        return tuple((i + 0.5) / s for i, s in zip(self.query, self.size, strict=True))

    @property
    def covered(self) -> tuple[float, ...]:
        """The share of each axis that the keys cover: a pool leaves out an incomplete rest."""
        keys = self.weights.shape
        return tuple(k * p / s if s else 0.0 for k, p, s in zip(keys, self.pool, self.size, strict=True))


@torch.no_grad()
def attention(model: nn.Module, x: Tensor, at: Sequence[Sequence[int]], **kwargs: Any) -> dict[str, Tensor]:
    """f / C(x) of Eq. 1 at some positions of the input, for every block, exact, by a normal forward pass.

    Args:
        model: with blocks, in whatever mode it is; its forward pass is `model(x, **kwargs)`.
        x: inputs (B, C, *S), or tokens (B, L).
        at: positions of the input, one integer per axis each, such as (row, column) of an image's pixel, (frame, row,
            column) of a clip or (step,) of a sequence. In a block's own, coarser grid the query is the position in
            which this one lies. Negative ones count from the end.
        **kwargs: other inputs of the model. With `mask`, bool (B, *S), each sample is treated as it is without its
            padding: positions are of its own extent.

    Returns:
        By the name of each block (B, Q, *keys): for the Q positions the weights on the block's grid of keys, in float32
        or wider. Those of a Gaussian or embedded Gaussian are positive and sum to 1; those of the dot product and the
        concatenation sum to anything, the former's can be negative.

    Raises:
        ValueError: no block, a position outside the input, or a block that does not see each sample once, or not on a
            grid of these axes.
    """
    size, found, positions = tuple(x.shape[1:] if x.ndim == 2 else x.shape[2:]), blocks(model), list(at)
    if not found or not positions:
        raise ValueError(
            f"attention needs a block and a position, got {len(found)} blocks and {len(positions)} positions"
        )
    mask = kwargs.get("mask")
    extents = [extent(size, None if mask is None else mask[k]) for k in range(len(x))]
    points = [[_fractions(position, extents[k], k) for position in positions] for k in range(len(x))]
    rows: dict[str, list[Tensor]] = {name: [] for name in found}
    counts = dict.fromkeys(found, 0)

    def see(name: str, block: NonLocalBlock, k: int, seen: Activations) -> None:
        if seen.x.ndim - 1 != len(size):
            raise ValueError(f"{name} sees {tuple(seen.x.shape[1:])}, positions are of {size}")
        counts[name] += 1
        if k < len(x):
            of_sample = rows_at(block, seen.x, points[k], seen.mask)
            rows[name].append(torch.stack([row.weights for row in of_sample]))

    with capture(model, see):
        model(x, **kwargs)
    if missing := [name for name, count in counts.items() if not count]:
        raise ValueError(f"the forward pass did not use {', '.join(missing)}")
    if wrong := {name: count for name, count in counts.items() if count != len(x)}:
        raise ValueError(f"each block must see each of the {len(x)} samples once, got {wrong}")
    return {name: torch.stack(samples) for name, samples in rows.items()}


@torch.no_grad()
def rows_at(block: NonLocalBlock, x: Tensor, points: Sequence[Point], mask: Tensor | None = None) -> list[Row]:
    """The rows of f / C(x) of one sample, for the queries at some points.

    Args:
        block: the block.
        x: its input for this sample, (C, *S).
        points: fractions in [0, 1) of the sample's extent, one for each axis of S.
        mask: bool (*S), the valid positions; None: all.

    Raises:
        ValueError: a point with other fractions.
    """
    grid = tuple(x.shape[1:])
    size = extent(grid, mask)
    queries = [_position(point, size) for point in points]
    flat = [_flat(query, grid) for query in queries]
    with functional.autocast(x.device.type, False):  # under it x is narrower, and the embeddings would be
        x = x.to(block.g.weight.dtype)
        weights = block.weights(x[None], flat, None if mask is None else mask[None])[0]
    pool, keys = pool_sizes(block.pool, grid), block.key_size(grid)
    return [Row(row.view(keys), query, size, pool) for row, query in zip(weights, queries, strict=True)]


def extent(size: Sequence[int], mask: Tensor | None) -> tuple[int, ...]:
    """How far a sample reaches along each axis of a grid of `size`: to its last valid position."""
    if mask is None:
        return tuple(size)
    valid = mask.nonzero()
    return tuple((valid.amax(0) + 1).tolist()) if len(valid) else (0,) * mask.ndim


def _position(point: Point, size: Sequence[int]) -> tuple[int, ...]:
    """The position of a grid in which a point lies. The fraction k / size, however rounded, lies in position k."""
    if len(point) != len(size) or not all(0 <= fraction < 1 for fraction in point):
        raise ValueError(
            f"a point must be {len(size)} fractions in [0, 1), one for each axis of {tuple(size)}, got {tuple(point)}"
        )
    return tuple(min(int(fraction * s + 1e-9), max(s - 1, 0)) for fraction, s in zip(point, size, strict=True))


def _flat(position: Sequence[int], size: Sequence[int]) -> int:
    """The index of a position in row-major order."""
    number = 0
    for i, s in zip(position, size, strict=True):
        number = number * s + i
    return number


def _fractions(position: Sequence[int], size: Sequence[int], sample: int) -> Point:
    """A position of the input, negative ones counted from the end, in fractions of the sample's extent."""
    whole = [index(p) for p in position]
    if len(whole) != len(size) or not all(-s <= p < s for p, s in zip(whole, size, strict=True)):
        expected = f"a position of sample {sample} must have one integer for each axis of {tuple(size)}"
        raise ValueError(f"{expected}, got {tuple(whole)}")
    return tuple(p % s / s for p, s in zip(whole, size, strict=True))
