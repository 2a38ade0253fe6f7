"""Maps of weights over images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonlocal_nets.attention.queries import Sample
from nonlocal_nets.attention.rows import Row
from nonlocal_nets.files import replacing


def picture(values: Tensor) -> Tensor:
    """An input (C, *S), normalised in whatever way, as colours (*S, 3) in [0, 1]; grey unless C is 3."""
    low, high = values.float().amin(), values.float().amax()
    scaled = (values - low) / (high - low).clamp(min=1e-6)
    if len(scaled) != 3:
        scaled = scaled.mean(0, keepdim=True).expand(3, *scaled.shape[1:])
    return scaled.movedim(0, -1)


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Images beside each other, and below them for every row its weights over them, to a PNG file."""
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind

    titles = list(samples[0].rows)
    figure = Figure(figsize=(max(1.6 * len(samples) + 0.6, 3.2), 1.75 * (1 + len(titles))), layout="constrained")
    axes = figure.subplots(1 + len(titles), len(samples), squeeze=False)
    for axis, sample in zip(axes[0], samples, strict=True):
        axis.imshow(picture(sample.values).numpy())
    for line, title in zip(axes[1:], titles, strict=True):
        for axis, sample in zip(line, samples, strict=True):
            overlay(axis, picture(sample.values), sample.rows[title])
        line[0].set_title(title, fontsize=8, loc="left")
        _colour_bar(figure, line, signed=any(bool((sample.rows[title].weights < 0).any()) for sample in samples))
    for axis in axes.flat:
        axis.set_axis_off()
    with replacing(path) as part:
        figure.savefig(part, dpi=110)


def overlay(axis: Any, image: Tensor, row: Row) -> None:
    """Weights over a pale image (H, W, 3): red where positive, blue where negative, the image where zero.

    Colours are a share of the largest weight; a cross marks the query.
    """
    height, width = image.shape[:2]
    pale = (0.55 + 0.45 * image.mean(2, keepdim=True)).expand(-1, -1, 3)
    axis.imshow(pale.numpy(), vmin=0, vmax=1, extent=(0, width, height, 0))
    shares = row.weights / (row.weights.abs().amax() or 1.0)
    painted = colours(signed=True)((shares / 2 + 0.5).numpy())
    painted[..., 3] = (shares.abs() * 2).clamp(max=1).numpy()
    bottom, right = row.covered[0] * height, row.covered[1] * width
    axis.imshow(painted, extent=(0, right, bottom, 0), interpolation="nearest")
    axis.set(xlim=(0, width), ylim=(height, 0))
    y, x = row.middle[0] * height, row.middle[1] * width
    axis.plot(x, y, "+", color="black", markersize=11, markeredgewidth=3.5)
    axis.plot(x, y, "+", color="lime", markersize=10, markeredgewidth=2)


def colours(signed: bool) -> Any:
    """From blue over white to red, or its upper half."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    whole = colormaps["RdBu_r"]
    return whole if signed else ListedColormap(whole(torch.linspace(0.5, 1, 128).numpy()))


def _colour_bar(figure: Any, line: Any, signed: bool) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(-1 if signed else 0, 1), colours(signed)), ax=line, aspect=12)
    bar.set_ticks([-1, 0, 1] if signed else [0, 1], labels=["-max", "0", "max"] if signed else ["0", "max"])
    bar.ax.tick_params(labelsize=7)
