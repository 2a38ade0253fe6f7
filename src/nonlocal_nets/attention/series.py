"""Weights over signals or tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonlocal_nets.attention.queries import Sample
from nonlocal_nets.attention.rows import Row
from nonlocal_nets.files import replacing

NAMED = 6  # strongest keys whose tokens are written
WIDTH = 14  # characters there, about


def draw(samples: Sequence[Sample], names: Sequence[str] | None, path: Path) -> None:
    """Sequences beside each other, a row for every query, to a PNG file.

    Args:
        samples: the sequences, signals (C, L) or tokens (L,), with rows of the same titles.
        names: of the tokens, if they have any.
        path: of the file.
    """
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(wspace=0.05)  # texts below the outermost keys stand out
    count = len(samples[0].rows)
    figure = Figure(figsize=(4.5 * len(samples), 0.5 + 1.4 * count), layout=layout)
    figure.suptitle("weights of the query at the dashed line; red: positive, blue: negative", fontsize=9)
    axes = figure.subplots(count, len(samples), squeeze=False)
    for k, sample in enumerate(samples):
        for axis, (title, row) in zip(axes[:, k], sample.rows.items(), strict=True):
            _draw_row(axis, row, sample.values, names)
            axis.set_title(title if k == 0 else "", fontsize=8, loc="left")
        axes[0, k].set_title(sample.title, fontsize=8, loc="right", parse_math=False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110)


def _draw_row(axis: Any, row: Row, values: Tensor, names: Sequence[str] | None) -> None:
    length = values.shape[-1]
    _weights(axis, row, length)
    _arcs(axis, row, length)
    if values.is_floating_point():
        _signal(axis, values)
    elif names is None:
        _strip(axis, values)
    else:
        _tokens(axis, row, values, names)


def _weights(axis: Any, row: Row, length: int) -> None:
    """Steps from zero, over the positions of the sequence, and the query."""
    weights = row.weights.double().numpy()
    edges = torch.linspace(0, row.covered[0] * length, len(weights) + 1, dtype=torch.float64).numpy()
    for part, colour in ((weights.clip(min=0), "tab:red"), (weights.clip(max=0), "tab:blue")):
        axis.stairs(part, edges, fill=True, color=colour, alpha=0.5)
        axis.stairs(part, edges, color=colour, linewidth=0.8)  # a fill alone does not show one key of a thousand
    axis.axhline(0, color="black", linewidth=0.6)
    axis.axvline(row.middle[0] * length, color="green", linestyle="--", linewidth=1.2)
    low, high = min(weights.min(initial=0), 0.0), max(weights.max(initial=0), 0.0)
    margin = 0.08 * (high - low or 1)
    axis.set(xlim=(0, length), ylim=(low - margin * (low < 0), high + margin))
    ticks = sorted({0.0} | {value for value in (low, high) if abs(value) > 0.1 * (high - low)})
    axis.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axis.tick_params(labelsize=6)


def _arcs(axis: Any, row: Row, length: int) -> None:
    """From the query to its strongest keys, the more opaque the stronger."""
    from matplotlib.patches import FancyArrowPatch

    query, middles = row.middle[0] * length, key_middles(row, length)
    for key in strongest(row, length):
        weight, end = float(row.weights[key]), middles[key]
        axis.add_patch(
            FancyArrowPatch(
                (query, 0.6),
                (end, 0.6),
                transform=axis.get_xaxis_transform(),
                connectionstyle=f"arc3,rad={0.25 if end < query else -0.25}",  # upwards
                arrowstyle="-|>",
                mutation_scale=7,
                shrinkA=0,
                color="tab:red" if weight > 0 else "tab:blue",
                alpha=0.2 + 0.8 * (abs(weight) / float(row.weights.abs().amax())),  # in this order: never above 1
            )
        )


def _signal(axis: Any, values: Tensor) -> None:
    """All channels of (C, L), faint, with an axis of their own."""
    behind = axis.twinx()
    positions = (torch.arange(values.shape[1]) + 0.5).numpy()
    behind.plot(positions, values.T.numpy(), color="black", alpha=0.4, linewidth=0.6)
    behind.set_yticks([])


def _strip(axis: Any, tokens: Tensor) -> None:
    """A colour for every token."""
    extent = (0, len(tokens), *axis.get_ylim())
    axis.imshow(tokens[None].numpy(), extent=extent, aspect="auto", cmap="viridis", alpha=0.35, zorder=-1)


def _tokens(axis: Any, row: Row, tokens: Tensor, names: Sequence[str]) -> None:
    """The tokens at the strongest keys, below, and at the query, inside."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.15 * (high - low))  # room for the query's
    text, between = [names[token] for token in tokens.tolist()], "" if " " in names else " "
    middles = key_middles(row, len(tokens))
    ticks = [middles[key] for key in strongest(row, len(tokens))]
    plain: dict[str, Any] = {"fontsize": 5, "parse_math": False}  # a text may have a $
    axis.set_xticks(ticks, [around(text, int(tick), between) for tick in ticks], **plain)
    query = row.middle[0] * len(tokens)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    style = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top", "color": "green", "bbox": box}
    axis.text(query, 0.98, around(text, int(query), between), **plain, **style)


def key_middles(row: Row, length: int) -> list[float]:
    """Where the middles of the keys lie in a sequence of this length."""
    keys = len(row.weights)
    return [(key + 0.5) * (row.covered[0] * length / keys) for key in range(keys)]


def strongest(row: Row, length: int) -> list[int]:
    """The strongest keys, by absolute value, of those that leave room for each other's tokens.

    A weight below a hundredth of the largest is not worth a token.
    """
    weights, middles = row.weights.abs(), key_middles(row, length)
    order = weights.argsort(descending=True, stable=True)
    keys: list[int] = []
    for key in order[weights[order] > 0.01 * weights[order[:1]]].tolist():
        if len(keys) < NAMED and all(abs(middles[key] - middles[k]) > length / NAMED for k in keys):
            keys.append(key)
    return keys


def around(text: Sequence[str], position: int, between: str) -> str:
    """The tokens at a position and to both sides of it, as many as there is room for, with something between them."""
    first, last = position, position + 1
    while last - first < len(text):
        wider = max(first - 1, 0), min(last + 1, len(text))
        if len(between.join(text[slice(*wider)])) > WIDTH:
            break
        first, last = wider
    return between.join(text[first:last])
