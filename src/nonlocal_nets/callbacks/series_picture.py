"""What `AttentionSeries` draws, and how: weights over a signal or over tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

WRITTEN = 6  # strongest keys whose tokens are written
WIDTH = 14  # characters there, about


class Seen(NamedTuple):
    """What a block attends to from one query of a sequence."""

    query: float  # its place, as a fraction of the sequence
    weights: Tensor  # (M,), f / C(x)
    covered: float  # the share of the sequence that the keys cover; a pool may leave out a rest


class Series(NamedTuple):
    """A column of the picture."""

    title: str
    values: Tensor  # a signal (C, L) or tokens (L,)
    rows: dict[str, Seen]


def draw(columns: Sequence[Series], names: Sequence[str] | None, path: Path) -> Path:
    """Sequences beside each other, a row for every query, to a PNG file.

    Args:
        columns: the sequences, with the same rows.
        names: of the tokens, if they have any.
        path: of the file.
    """
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(wspace=0.05)  # words below the outermost keys stand out
    count = len(columns[0].rows)
    figure = Figure(figsize=(4.5 * len(columns), 0.5 + 1.4 * count), layout=layout)
    figure.suptitle("weights of the query at the dashed line; red: positive, blue: negative", fontsize=9)
    axes = figure.subplots(count, len(columns), squeeze=False)
    for k, column in enumerate(columns):
        for axis, (name, seen) in zip(axes[:, k], column.rows.items(), strict=True):
            _weights(axis, seen, column.values.shape[-1])
            _arcs(axis, seen, column.values.shape[-1])
            if column.values.is_floating_point():
                _signal(axis, column.values)
            elif names is None:
                _strip(axis, column.values)
            else:
                _words(axis, seen, column.values, names)
            axis.set_title(name if k == 0 else "", fontsize=8, loc="left")
        axes[0, k].set_title(column.title, fontsize=8, loc="right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _weights(axis: Any, seen: Seen, length: int) -> None:
    """Steps from zero, over the positions of the sequence, and the query."""
    weights = seen.weights.double().numpy()
    edges = np.linspace(0, seen.covered * length, len(weights) + 1)
    for part, colour in ((weights.clip(min=0), "tab:red"), (weights.clip(max=0), "tab:blue")):
        axis.stairs(part, edges, fill=True, color=colour, alpha=0.5)
        axis.stairs(part, edges, color=colour, linewidth=0.8)  # a fill alone does not show one key of a thousand
    axis.axhline(0, color="black", linewidth=0.6)
    axis.axvline(seen.query * length, color="green", linestyle="--", linewidth=1.2)
    low, high = min(weights.min(initial=0), 0.0), max(weights.max(initial=0), 0.0)
    margin = 0.08 * (high - low or 1)
    axis.set(xlim=(0, length), ylim=(low - margin * (low < 0), high + margin))
    ticks = sorted({0.0} | {value for value in (low, high) if abs(value) > 0.1 * (high - low)})
    axis.set_yticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axis.tick_params(labelsize=6)


def _arcs(axis: Any, seen: Seen, length: int) -> None:
    """From the query to its strongest keys, the more opaque the stronger."""
    from matplotlib.patches import FancyArrowPatch

    largest, query = float(seen.weights.abs().amax()) if len(seen.weights) else 0, seen.query * length
    for place in strongest(seen, length):
        weight = float(seen.weights[int(place / (seen.covered * length) * len(seen.weights))])
        axis.add_patch(
            FancyArrowPatch(
                (query, 0.6),
                (place, 0.6),
                transform=axis.get_xaxis_transform(),
                connectionstyle=f"arc3,rad={0.25 if place < query else -0.25}",  # upwards
                arrowstyle="-|>",
                mutation_scale=7,
                shrinkA=0,
                color="tab:red" if weight > 0 else "tab:blue",
                alpha=0.2 + 0.8 * (abs(weight) / largest),  # in this order: never above 1
            )
        )


def _signal(axis: Any, values: Tensor) -> None:
    """All channels of (C, L), faint, with an axis of their own."""
    behind = axis.twinx()
    behind.plot(np.arange(values.shape[1]) + 0.5, values.T.numpy(), color="black", alpha=0.4, linewidth=0.6)
    behind.set_yticks([])


def _strip(axis: Any, tokens: Tensor) -> None:
    """A colour for every token."""
    extent = (0, len(tokens), *axis.get_ylim())
    axis.imshow(tokens[None].numpy(), extent=extent, aspect="auto", cmap="viridis", alpha=0.35, zorder=-1)


def _words(axis: Any, seen: Seen, tokens: Tensor, names: Sequence[str]) -> None:
    """The tokens at the strongest keys, below, and at the query, inside."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.15 * (high - low))  # room for the query's
    written, between = [names[token] for token in tokens.tolist()], "" if " " in names else " "
    places = strongest(seen, len(tokens))
    plain: dict[str, Any] = {"fontsize": 5, "parse_math": False}  # a text may have a $
    axis.set_xticks(places, [around(written, int(place), between) for place in places], **plain)
    query = seen.query * len(tokens)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
    style = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top", "color": "green", "bbox": box}
    axis.text(query, 0.98, around(written, int(query), between), **plain, **style)


def strongest(seen: Seen, length: int) -> list[float]:
    """The middles of the strongest keys, without regard to sign, of those that leave room for each other's words.

    A weight below a hundredth of the largest is not worth a word.
    """
    weights = seen.weights.abs().numpy()
    middles = (np.arange(len(weights)) + 0.5) * (seen.covered * length / max(len(weights), 1))
    places: list[float] = []
    for key in np.argsort(-weights, kind="stable"):
        strong = weights[key] > 0.01 * weights.max()
        if len(places) < WRITTEN and strong and all(abs(middles[key] - p) > length / WRITTEN for p in places):
            places.append(float(middles[key]))
    return places


def around(written: Sequence[str], place: int, between: str) -> str:
    """The tokens at a place and to both sides of it, as many as there is room for, with something between them."""
    first, last = place, place + 1
    while last - first < len(written):
        wider = max(first - 1, 0), min(last + 1, len(written))
        if len(between.join(written[slice(*wider)])) > WIDTH:
            break
        first, last = wider
    return between.join(written[first:last])
