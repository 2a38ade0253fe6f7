"""Table "layers": the block beside the same equation in plain convolutions, and three ways to compute its layers."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contestants import Plain, make_block
from benchmarks.measure import MODES, Call, Target, in_turn, markdown, note, ratio
from nonlocal_nets.nn import pointwise

SHAPES = ((1, 1024, 4, 14, 14), (8, 1024, 4, 14, 14), (1, 512, 4, 28, 28), (2, 64, 56, 56))
FUNCTIONS = ("embedded_gaussian", "dot_product", "gaussian")


def table(target: Target, seconds: float = 2.0) -> str:
    """A row per shape and memory layout, forward + backward."""
    head = ["input", "channels", *(f"{name}, plain" for name in FUNCTIONS), "layer: rows", "layer: columns", "chosen"]
    rows = [_row(shape, last, seconds, target) for shape in SHAPES for last in (False, True)]
    return markdown(head, rows)


def _row(shape: tuple[int, ...], last: bool, seconds: float, target: Target) -> list[str]:
    note(f"layers: {shape} {last}")
    batch, channels, *size = shape
    drawn = (batch, *size, channels) if last else shape
    cells = []
    for name in FUNCTIONS:
        block = make_block(channels, {"pairwise": name}).to(*target)
        calls = {"ours": _on(block, last), "plain": _on(Plain(block), last)}
        times = in_turn(calls, drawn, seconds, target=target)
        cells.append(str(ratio(times["plain"], times["ours"])))
    weight, bias = (target.random((channels // 2, *more)).requires_grad_() for more in ((channels,), ()))
    ways = {way.__name__: way for way in (pointwise.convolution, pointwise.rows, pointwise.columns)}
    layers: dict[str, Call] = {name: _layer(way, weight, bias, last) for name, way in ways.items()}
    times = in_turn(layers, drawn, seconds, target=target)
    chosen = pointwise._fastest(_moved(target.random(drawn), last).flatten(2), weight).__name__
    others = [str(ratio(times[name], times["convolution"])) for name in ("rows", "columns")]
    return [str(shape), "last" if last else "first", *cells, *others, chosen]


def _moved(x: Tensor, last: bool) -> Tensor:
    return x.movedim(-1, 1) if last else x


def _on(module: torch.nn.Module, last: bool) -> Call:
    """A training step on an input in one of the layouts."""
    step = MODES["forward + backward"](module)
    return lambda x: step(_moved(x, last))


def _layer(way: Callable[[Tensor, Tensor, Tensor | None], Tensor], weight: Tensor, bias: Tensor, last: bool) -> Call:
    step = MODES["forward + backward"](lambda x: way(x.flatten(2), weight, bias))
    return lambda x: step(_moved(x, last))
