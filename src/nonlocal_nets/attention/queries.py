"""Which queries are drawn: the position that a block changes most, the data's own point, and further ones."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nonlocal_nets.attention.capture import Activations
from nonlocal_nets.attention.rows import Point, Row, extent, rows_at
from nonlocal_nets.nn import NonLocalBlock

QueryPoint = Callable[[Tensor], Point]  # from an input of the network, (C, *S) or (L,), to fractions


class Sample(NamedTuple):
    """What is drawn of one sample."""

    title: str
    values: Tensor  # the network's input, (C, *S) or tokens (L,), without padding, on the CPU
    rows: dict[str, Row]  # by title


def changed_most(seen: Activations) -> Point:
    """The valid position at which ||z_i - x_i|| is largest, its middle, in fractions."""
    change = (seen.z - seen.x).square().sum(0)
    if seen.mask is not None:
        change = change.masked_fill(~seen.mask, -1)  # what stands in the padding may be NaN
    position = torch.unravel_index(change.argmax(), change.shape)
    size = extent(change.shape, seen.mask)
    return tuple((int(i) + 0.5) / s for i, s in zip(position, size, strict=True))


def rows_by_query(
    name: str,
    block: NonLocalBlock,
    seen: Activations,
    values: Tensor,
    query_point: QueryPoint | None = None,
    at: Sequence[float] = (),
) -> dict[str, Row]:
    """The rows of a block for one sample, by title, on the CPU; keys in the padding are cut off.

    Args:
        name: of the block in its model.
        block: the block.
        seen: what it saw of the sample.
        values: the network's input for this sample, without padding, on the CPU.
        query_point: of the data module. The first sentence of its docstring is the title.
        at: further points of a sequence, as fractions.
    """
    points = {"changed most": changed_most(seen)}
    if query_point is not None:
        points[(query_point.__doc__ or "query point").split(".")[0].lower()] = query_point(values)
    points |= {f"at {fraction:g}": (fraction,) for fraction in at}
    point = name.removeprefix("network.").removesuffix(".non_local")
    titles = [f"{point}: {what}" for what in points]
    rows = rows_at(block, seen.x, list(points.values()), seen.mask)
    return dict(zip(titles, map(_without_padding, rows), strict=True))


def _without_padding(row: Row) -> Row:
    keys = tuple(slice(s // p) for s, p in zip(row.size, row.pool, strict=True))
    return row._replace(weights=row.weights[keys].cpu())
