"""What the blocks of a model attend to, asked of a few positions: only these rows of the map are ever computed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn.insert import blocks
from nonlocal_nets.nn.nonlocal_block import NonLocalBlock


@torch.no_grad()
def attention(model: nn.Module, x: Tensor, at: Sequence[Sequence[int]], **kwargs: Any) -> dict[str, Tensor]:
    """f / C(x) of Eq. 1 for the asked positions and every block, by a normal forward pass, exact.

    Args:
        model: with blocks, in whatever mode it is; its forward pass is `model(x, **kwargs)`.
        x: inputs (B, C, *S), or tokens (B, L).
        at: positions of the input, one integer per axis each, such as (row, column) of an image's pixel, (frame, row,
            column) of a clip or (place,) of a sequence. A block is asked for the position of its own, coarser grid in
            which this one lies. Negative ones count from the end.
        **kwargs: other inputs of the model, such as a sequence's mask.

    Returns:
        By the name of each block (B, Q, *keys): for the Q positions the weights on the block's grid of keys, in float32
        or wider. Those of a Gaussian or embedded Gaussian are positive and sum to 1; those of the dot product and the
        concatenation sum to anything, the former's can be negative.

    Raises:
        ValueError: no block, a position outside the input, or a block that did not run, or not on a grid of these axes.
    """
    size = tuple(x.shape[1:] if x.ndim == 2 else x.shape[2:])
    points = [_checked(point, size) for point in at]
    found = blocks(model)
    if not found or not points:
        raise ValueError(f"attention needs a block and a position, got {len(found)} blocks and {len(points)} positions")
    rows: dict[str, Tensor] = {}
    handles = [
        block.register_forward_pre_hook(_Ask(name, points, size, rows), with_kwargs=True)
        for name, block in found.items()
    ]
    try:
        model(x, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if missing := found.keys() - rows.keys():
        raise ValueError(f"the forward pass did not use {', '.join(sorted(missing))}")
    return {name: rows[name] for name in found}


class _Ask:
    """A forward pre-hook: the rows of one block, of its input."""

    def __init__(self, name: str, points: list[list[int]], size: tuple[int, ...], rows: dict[str, Tensor]) -> None:
        self.name, self.points, self.size, self.rows = name, points, size, rows

    def __call__(self, block: NonLocalBlock, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        x, mask = args[0], args[1] if len(args) > 1 else kwargs.get("mask")
        grid = x.shape[2:]
        if len(grid) != len(self.size):
            raise ValueError(f"{self.name} sees {tuple(grid)}, positions are of {self.size}")
        queries = []
        for point in self.points:
            flat = 0
            for position, of, here in zip(point, self.size, grid, strict=True):
                flat = flat * here + position * here // of
            queries.append(flat)
        weights = block.weights(x.to(block.g.weight.dtype), queries, mask)
        self.rows[self.name] = torch.unflatten(weights, 2, block.key_size(grid))


def _checked(point: Sequence[int], size: tuple[int, ...]) -> list[int]:
    """A position with negative entries counted from the end."""
    inside = len(point) == len(size) and all(-s <= p < s for p, s in zip(point, size, strict=True))
    if not inside:
        raise ValueError(f"a position must have one integer for each axis of {size}, got {tuple(point)}")
    return [p % s for p, s in zip(point, size, strict=True)]
