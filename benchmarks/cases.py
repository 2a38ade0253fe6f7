"""Input shapes: the paper's, a detector's, and others of one and two axes."""

from typing import NamedTuple


class Case(NamedTuple):
    """An input (batch, channels, *size) and the subsampling of the keys."""

    name: str
    channels: int
    size: tuple[int, ...]
    pool: tuple[int, ...] | None = None
    batch: int = 1


PAPER = [
    Case(f"{stage}, {clip}{', pooled' if pool else ''}", channels, (frames, side, side), pool, batch)
    for clip, frames in (("32 or 8 frames", 4), ("128 frames", 16))
    for stage, channels, side in (("res3", 512, 28), ("res4", 1024, 14))
    for pool in (None, (1, 2, 2))
    for batch in ((1, 8) if frames == 4 else (1,))
]
OTHERS = [
    Case("res4, image of 1333 x 800", 1024, (50, 84)),
    Case("56 x 56", 256, (56, 56), None, 1),
    Case("56 x 56", 256, (56, 56), None, 8),
    Case("128 x 128", 64, (128, 128)),
    *(Case(f"N = {n:,}", 64, (n,), None, 1) for n in (1024, 4096, 16384, 65536)),
    *(Case(f"N = {n:,}", 64, (n,), None, 8) for n in (1024, 4096)),
]
CASES = PAPER + OTHERS
