"""A picture, after the test, of what each non-local block attends to in a few test images."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from nonlocal_nets.callbacks.publish import publish
from nonlocal_nets.callbacks.run_folder import run_folder
from nonlocal_nets.nn import NonLocalBlock, blocks

Point = tuple[float, ...]  # row and column, of a clip frame, row and column, as fractions [0, 1) of the whole


class AttentionMaps(pl.Callback):
    """Writes `attention.png` into the run's folder: one column an image, one row a block and a query.

    A map is the row f(x_i, .) / C(x) of one query position i, exact, and a cross marks that position. There are two
    queries: the position that the block changes most, ||z_i - x_i||, and, if the data module has a method
    `query_point(image) -> (row, column)` in fractions, the point that it names. Colours are a share of a map's largest
    weight: red is positive, zero lets the picture through, and blue is negative, as weights of the dot product can be.

    Args:
        images: how many images of the first test batch are drawn.

    Raises:
        ValueError: the batches are not images (B, C, H, W).
    """

    def __init__(self, images: int = 6) -> None:
        self.images = images
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        self.handles: list[Any] = []

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and (not isinstance(batch[0], Tensor) or batch[0].ndim != 4):
            others = "AttentionArrows draws videos, AttentionSeries sequences"
            raise ValueError(f"AttentionMaps draws images (B, C, H, W), got {shape_of(batch[0])}; {others}")
        if trainer.is_global_zero and batch_idx == 0:
            self.seen = {}
            self.handles = [block.register_forward_hook(self._keep(name)) for name, block in blocks(pl_module).items()]

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.handles:
            return
        for handle in self.handles:
            handle.remove()
        self.handles = []
        images = batch[0][: self.images].cpu()
        rows = {}
        for name, (x, z) in self.seen.items():
            for title, points in queries(trainer, name, x, z, images).items():
                rows[title] = look(blocks(pl_module)[name], x, points)
        path = draw(images, rows, run_folder(trainer) / "attention.png")
        publish(trainer, path)
        rank_zero_info(f"What the blocks attend to: {path}")

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.seen[name] = (args[0][: self.images].detach(), output[: self.images].detach())

        return hook


def shape_of(inputs: Any) -> tuple[int, ...] | str:
    """Of a batch's inputs, for messages; they may be a tensor, or several, such as a padded batch and its mask."""
    return tuple(inputs.shape) if isinstance(inputs, Tensor) else f"{len(inputs)} inputs, of {shape_of(inputs[0])}"


def queries(trainer: pl.Trainer, name: str, x: Tensor, z: Tensor, inputs: Tensor) -> dict[str, list[Point]]:
    """What a block is asked, and of each of the network's inputs the point: changed most, the data module's own.

    Args:
        trainer: with a data module, or without.
        name: of the block.
        x: the block's input, (K, C, *S).
        z: its output.
        inputs: the network's, (K, 3 or 1, *S), on the CPU.
    """
    place = name.removeprefix("network.").removesuffix(".non_local")
    asked = {f"{place}: changed most": changed_most(x, z)}
    point_of = getattr(getattr(trainer, "datamodule", None), "query_point", None)
    if point_of is not None:
        what = (point_of.__doc__ or "query point").split(".")[0].lower()
        asked[f"{place}: {what}"] = [point_of(one) for one in inputs]
    return asked


def changed_most(x: Tensor, z: Tensor) -> list[Point]:
    """Of each sample the position where a block's input x and output z, (K, C, *S), differ most."""
    size = x.shape[2:]
    flat = (z - x).square().sum(1).flatten(1).argmax(1)
    return [_middle(index.tolist(), size) for index in torch.stack(torch.unravel_index(flat, size), 1)]


@torch.no_grad()
def look(block: NonLocalBlock, x: Tensor, points: Sequence[Point]) -> list[tuple[Point, Tensor]]:
    """Of each sample, the middle of the position at its point and that query's weights on the grid of the keys.

    Args:
        block: the block.
        x: its input, (K, C, *S).
        points: one query a sample, with a fraction for each axis of S.
    """
    size = x.shape[2:]
    x = x.to(block.g.weight.dtype)  # under autocast the input was narrower
    seen = []
    for k, point in enumerate(points):
        if len(point) != len(size):
            raise ValueError(f"the query point must be {len(size)} fractions, one an axis, got {point}")
        index = [int(fraction * s) for fraction, s in zip(point, size, strict=True)]
        flat = sum(i * math.prod(size[axis + 1 :]) for axis, i in enumerate(index))
        weights = block.weights(x[k : k + 1], queries=[flat])
        seen.append((_middle(index, size), weights.view(block.key_size(size)).cpu()))
    return seen


def _middle(index: Sequence[int], size: Sequence[int]) -> Point:
    return tuple((i + 0.5) / s for i, s in zip(index, size, strict=True))


def pictures(inputs: Tensor) -> NDArray[np.float32]:
    """Inputs (K, 3 or 1, *S), normalised in whatever way, as colours (K, *S, 3) in [0, 1]."""
    axes = tuple(range(1, inputs.ndim))
    low, high = inputs.float().amin(axes, keepdim=True), inputs.float().amax(axes, keepdim=True)
    scaled = (inputs - low) / (high - low).clamp(min=1e-6)
    return scaled.expand(-1, 3, *inputs.shape[2:]).movedim(1, -1).numpy()


def draw(images: Tensor, rows: dict[str, list[tuple[Point, Tensor]]], path: Path) -> Path:
    """Images (K, 3 or 1, H, W), and below them for every row their weights over them, to a PNG file."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind

    figure = Figure(figsize=(1.6 * len(images) + 0.6, 1.75 * (1 + len(rows))), layout="constrained")
    axes = figure.subplots(1 + len(rows), len(images), squeeze=False)
    size = images.shape[2:]
    for axis, picture in zip(axes[0], pictures(images), strict=True):
        axis.imshow(picture)
    for line, (name, seen) in zip(axes[1:], rows.items(), strict=True):
        for axis, picture, (point, weights) in zip(line, pictures(images), seen, strict=True):
            overlay(axis, picture, weights, point, size)
        line[0].set_title(name, fontsize=8, loc="left")
        signed = any(bool((weights < 0).any()) for _, weights in seen)
        bar = figure.colorbar(ScalarMappable(Normalize(-1 if signed else 0, 1), colours(signed)), ax=line, aspect=12)
        bar.set_ticks([-1, 0, 1] if signed else [0, 1], labels=["-max", "0", "max"] if signed else ["0", "max"])
        bar.ax.tick_params(labelsize=7)
    for axis in axes.flat:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def overlay(axis: Any, picture: NDArray[np.float32], weights: Tensor, point: Point, size: Sequence[int]) -> None:
    """Weights over a pale picture (H, W, 3): red where positive, blue where negative, the picture where zero."""
    height, width = size
    shades = np.repeat(0.55 + 0.45 * picture.mean(2, keepdims=True), 3, axis=2)
    axis.imshow(shades, vmin=0, vmax=1, extent=(0, width, height, 0))
    shares = (weights / (weights.abs().amax() or 1.0)).numpy()
    painted = colours(signed=True)(shares / 2 + 0.5)
    painted[..., 3] = np.minimum(np.abs(shares) * 2, 1)  # zero lets the picture through
    axis.imshow(painted, extent=(0, width, height, 0), interpolation="nearest")
    row, column = point
    axis.plot(column * width, row * height, "+", color="black", markersize=11, markeredgewidth=3.5)
    axis.plot(column * width, row * height, "+", color="lime", markersize=10, markeredgewidth=2)


def colours(signed: bool) -> Any:
    """From blue over white to red, or its upper half."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    whole = colormaps["RdBu_r"]
    return whole if signed else ListedColormap(whole(np.linspace(0.5, 1, 128)))
