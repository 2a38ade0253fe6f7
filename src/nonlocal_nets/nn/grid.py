"""Operations on the grid of positions: subsampling of the keys, and windows. Tensors are (B, *S, C), any S."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Axes = int | Sequence[int | None] | None


def per_axis(name: str, given: Axes, axes: int) -> tuple[int | None, ...]:
    """One entry per axis, from an int or None (the same for all axes) or a sequence (one for each)."""
    if given is None or isinstance(given, int):
        return (given,) * axes
    if len(given) != axes:
        raise ValueError(f"{name} {tuple(given)} has {len(given)} entries, the input has {axes} axes")
    return tuple(given)


def pool_sizes(pool: Axes, size: Sequence[int]) -> tuple[int, ...]:
    """The kernel, and stride, of the subsampling: one entry per axis."""
    kernel = tuple(k or 1 for k in per_axis("pool", pool, len(size)))
    if any(k > s for k, s in zip(kernel, size, strict=True)):
        raise ValueError(f"pool {kernel} is larger than the input's size {tuple(size)}")
    return kernel


def window_sizes(window: Axes, size: Sequence[int], pool: Sequence[int]) -> tuple[int, ...] | None:
    """The extent of a window, one entry per axis; None if a single window spans all positions."""
    windows = tuple(s if w is None else w for w, s in zip(per_axis("window", window, len(size)), size, strict=True))
    for s, w, k in zip(size, windows, pool, strict=True):
        if s % w:
            raise ValueError(f"window {windows} does not divide the input's size {tuple(size)}")
        if w != s and w % k:
            raise ValueError(f"pool {tuple(pool)} does not divide the window {windows}")
    return None if windows == tuple(size) else windows


def pooled_sizes(size: Sequence[int], pool: Sequence[int]) -> tuple[int, ...]:
    return tuple(s // k for s, k in zip(size, pool, strict=True))


def max_pool(x: Tensor, pool: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Maximum over cells of `pool` positions, (B, *S, C) -> (B, *S // pool, C), in the memory layout of x.

    An incomplete cell at the end of an axis is dropped, as by nn.MaxPool3d. With a mask, bool (B, *S), the maximum is
    that of the valid positions, and zero in a cell without any.
    """
    if mask is not None:
        x = x.masked_fill(~mask[..., None], -math.inf)
    for axis, k in enumerate(pool[:-3], start=1):  # torch pools three axes
        if k > 1:
            x = torch.unflatten(x.narrow(axis, 0, x.shape[axis] // k * k), axis, (-1, k)).amax(axis + 1)
    others, axes = x.shape[1:-4], min(len(pool), 3)
    x = x.flatten(0, len(others)).movedim(-1, 1)
    x = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1](x, tuple(pool[-3:])).movedim(1, -1)
    x = torch.unflatten(x, 0, (-1, *others)) if others else x
    return x if mask is None else x.masked_fill(x == -math.inf, 0)


def pool_mask(mask: Tensor, pool: Sequence[int]) -> Tensor:
    """The valid pooled keys: bool (B, *S) -> (B, *S // pool).

    A cell is valid if it has a valid position and, along each axis, ends before the last valid position of the sample:
    an incomplete cell is dropped in a padded sample as it is in the sample without padding.
    """
    pooled = max_pool(mask[..., None].float(), pool)[..., 0] > 0
    for axis, k in enumerate(pool, start=1):
        if k > 1:
            others = [a for a in range(1, mask.ndim) if a != axis]
            present = mask.any(others) if others else mask
            extent = (present * torch.arange(1, mask.shape[axis] + 1, device=mask.device)).amax(1)
            inside = torch.arange(pooled.shape[axis], device=mask.device) < extent[:, None] // k
            pooled = pooled & inside.view(len(mask), *(-1 if a == axis else 1 for a in range(1, mask.ndim)))
    return pooled


def to_windows(x: Tensor, size: Sequence[int], windows: Sequence[int] | None) -> Tensor:
    """(B, N, ...) on a grid of `size` -> (B * W, n, ...): each of the W windows, of n positions, becomes a sample."""
    if windows is None:
        return x
    axes = len(size)
    split = [part for s, w in zip(size, windows, strict=True) for part in (s // w, w)]
    x = torch.unflatten(x, 1, split)
    x = x.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), *range(2 * axes + 1, x.ndim))
    return x.flatten(0, axes).flatten(1, axes)


def from_windows(x: Tensor, size: Sequence[int], windows: Sequence[int] | None) -> Tensor:
    """The inverse of `to_windows`."""
    if windows is None:
        return x
    axes = len(size)
    counts = [s // w for s, w in zip(size, windows, strict=True)]
    x = torch.unflatten(torch.unflatten(x, 1, tuple(windows)), 0, (-1, *counts))
    pairs = [axis for k in range(1, axes + 1) for axis in (k, k + axes)]
    return x.permute(0, *pairs, *range(2 * axes + 1, x.ndim)).flatten(1, 2 * axes)


def window_index(size: Sequence[int], windows: Sequence[int], device: torch.device) -> Tensor:
    """The number of the window of each position: (N,)."""
    in_window = math.prod(windows)
    number = torch.arange(math.prod(size) // in_window, device=device)
    return from_windows(number[:, None].expand(-1, in_window), size, windows)[0]
