"""Weights in clips, as in Figure 3 of the paper: arrows over a few frames, and an animation of all frames."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nonlocal_nets.attention.images import picture
from nonlocal_nets.attention.rows import Row
from nonlocal_nets.files import replacing

FRAMES = 8  # of a longer clip, in the picture


class Mark(NamedTuple):
    """A cell of a block's grid, in the clip: the query or a key."""

    frame: int  # in which the middle of the cell lies
    frames: range  # which the cell covers
    row: float  # pixels
    column: float
    weight: float  # f / C(x)


class Arrows(NamedTuple):
    """From a query to its strongest keys, the strongest first."""

    query: Mark  # its weight is that of the strongest key, without sign
    keys: list[Mark]
    share: float  # of these keys in the sum of all weights, without sign


def strongest(row: Row, clip_size: Sequence[int], arrows: int) -> Arrows:
    """The keys with the largest weights by absolute value, in frames and pixels of the clip.

    Args:
        row: of a block with axes (T, H, W).
        clip_size: frames, height and width of the clip.
        arrows: how many keys at most; those of weight 0 are left out.
    """
    strength = row.weights.abs().flatten().nan_to_num()
    top = strength.topk(min(arrows, int((strength > 0).sum()))).indices
    cells = torch.stack(torch.unravel_index(top, row.weights.shape), 1).tolist()
    keys = [_mark(cell, row.pool, row.size, clip_size, float(row.weights[tuple(cell)])) for cell in cells]
    query = _mark(row.query, (1, 1, 1), row.size, clip_size, float(strength.max()))
    return Arrows(query, keys, float(strength[top].sum() / strength.sum().clamp(min=1e-30)))


def _mark(
    cell: Sequence[int], pool: Sequence[int], size: Sequence[int], clip_size: Sequence[int], weight: float
) -> Mark:
    """Where a cell of `pool` positions lies in the clip, which the grid of `size` spans."""
    first, middle, end = (k * pool[0] * clip_size[0] // (2 * size[0]) for k in range(2 * cell[0], 2 * cell[0] + 3))
    covered = range(first, max(end, middle + 1))
    row, column = ((cell[k] + 0.5) * pool[k] / size[k] * clip_size[k] for k in (1, 2))
    return Mark(middle, covered, row, column, weight)


def shown(frames: int, arrows: Arrows) -> list[int]:
    """Which frames of a clip are drawn: all, or the query's and 8 others, evenly chosen.

    Of each eighth of the clip it is the frame with the most weight in the arrows, or without any the middle one.
    """
    if frames <= FRAMES:
        return list(range(frames))
    weights = [sum(abs(key.weight) for key in arrows.keys if key.frame == number) for number in range(frames)]
    numbers = {arrows.query.frame}
    for k in range(FRAMES):
        part = [number for number in range(frames) if number * FRAMES // frames == k]
        heaviest = max(part, key=weights.__getitem__)
        numbers.add(heaviest if weights[heaviest] else part[len(part) // 2])
    return sorted(numbers)


def nearest(key: Mark, numbers: Sequence[int], frames: int) -> int:
    """Which of the drawn frames a key goes into: one that its cell covers, else the nearest, of its eighth first."""

    def badness(number: int) -> tuple[bool, bool, int]:
        elsewhere = number * FRAMES // frames != key.frame * FRAMES // frames
        return number not in key.frames, elsewhere, abs(number - key.frame)

    return min(numbers, key=badness)


def draw(clip: Tensor, rows: dict[str, Arrows], path: Path, name: str) -> None:
    """A clip (C, T, H, W) of some name, with a row of its frames for every query, to a PNG file."""
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind

    frames = picture(clip).numpy()
    height, width = clip.shape[2:]
    numbers = [shown(len(frames), arrows) for arrows in rows.values()]
    columns = max(map(len, numbers))
    figure = Figure(figsize=(1.5 * columns, 0.3 + (1.5 * height / width + 0.45) * len(rows)), layout="constrained")
    legend = "the more opaque the stronger" + "; dotted: in a frame beside it" * (len(frames) > FRAMES)
    if any(key.weight < 0 for arrows in rows.values() for key in arrows.keys):
        legend += "; blue: negative"
    heading = f"{name}: from the query (+) to its strongest keys, {legend}"
    figure.suptitle(heading, fontsize=9, parse_math=False)  # a file's name may have a $
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row_numbers, (title, arrows) in zip(axes, numbers, rows.items(), strict=True):
        summary = f"strongest weight {arrows.query.weight:.2g}, the {len(arrows.keys)} hold {arrows.share:.0%} of all"
        line[columns // 2].set_title(f"{title} ({summary})", fontsize=8)
        for axis, number in zip(line, row_numbers, strict=False):
            axis.imshow(frames[number], extent=(0, width, height, 0))
            axis.set_xlabel(f"frame {number}", fontsize=7, labelpad=2)
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        _arrows(figure, dict(zip(row_numbers, line, strict=False)), arrows, len(frames))
    with replacing(path) as part:
        figure.savefig(part, dpi=110)


def _arrows(figure: Any, axes: dict[int, Any], arrows: Arrows, frames: int) -> None:
    """The arrows over the axes, which go by the number of their frame; the clip has so many frames."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import ConnectionPatch
    from matplotlib.patheffects import withStroke

    query, query_axes = arrows.query, axes[arrows.query.frame]
    start = (query.column, query.row)
    for key in reversed(arrows.keys):  # the strongest on top
        number = nearest(key, list(axes), frames)
        end = (key.column, key.row)
        opacity = 0.3 + 0.7 * (abs(key.weight) / query.weight)
        outline = [withStroke(linewidth=2.5, foreground="black", alpha=0.7 * opacity)]  # on a bright picture
        style: dict[str, Any] = {"color": colour(key), "alpha": opacity, "path_effects": outline}
        axes[number].plot(*end, "o", markersize=3, **style)
        if (number, end) != (query.frame, start):
            style |= {"linestyle": "-" if number in key.frames else ":", "arrowstyle": "-|>", "mutation_scale": 8}
            transforms = (query_axes.transData, axes[number].transData)
            figure.add_artist(ConnectionPatch(start, end, *transforms, **style))
    for shade, width in (("black", 4), ("white", 2)):  # on the figure, as the arrows are, to be above them
        cross: dict[str, Any] = {"marker": "+", "color": shade, "markersize": 9 + width, "markeredgewidth": width}
        figure.add_artist(Line2D([query.column], [query.row], transform=query_axes.transData, **cross))


def animate(clip: Tensor, rows: dict[str, Arrows], path: Path) -> None:
    """All frames of a clip (C, T, H, W), once for every query and with its keys, to a GIF file."""
    from PIL import Image, ImageDraw

    frames = (255 * picture(clip)).byte().numpy()
    zoom = 240 / max(clip.shape[2:])
    height, width = (round(zoom * side) for side in clip.shape[2:])
    across = math.ceil(math.sqrt(len(rows)))
    film = []
    for number, frame in enumerate(frames):
        panel = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        sheet = Image.new("RGB", (across * (width + 4), 18 + math.ceil(len(rows) / across) * (height + 18)))
        text = ImageDraw.Draw(sheet)
        text.text((4, 3), f"frame {number} ({len(frames)} frames)")  # Pillow drops frames that are equal
        for k, (title, arrows) in enumerate(rows.items()):
            left, top = k % across * (width + 4), 18 + k // across * (height + 18)
            text.text((left + 4, top + 3), title)
            sheet.paste(_circles(panel.copy(), arrows, number, zoom), (left, top + 18))
        film.append(sheet)
    with replacing(path) as part:
        film[0].save(part, save_all=True, append_images=film[1:], duration=300, loop=0)


def _circles(panel: Any, arrows: Arrows, number: int, zoom: float) -> Any:
    """One frame, with the keys and the query that are in it."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(panel)
    for key in arrows.keys:
        if number in key.frames:
            radius = 3 + 12 * abs(key.weight) / arrows.query.weight
            for shade, width in (("black", 4), (colour(key), 2)):
                pen.circle((zoom * key.column, zoom * key.row), radius + width // 2, outline=shade, width=width)
    x, y = zoom * arrows.query.column, zoom * arrows.query.row
    if number in arrows.query.frames:
        for shade, width in (("black", 6), ("white", 2)):
            pen.line((x - 7, y, x + 7, y), shade, width)
            pen.line((x, y - 7, x, y + 7), shade, width)
    return panel


def colour(key: Mark) -> str:
    return "yellow" if key.weight > 0 else "deepskyblue"
