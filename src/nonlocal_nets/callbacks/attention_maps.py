"""A picture, after the test, of what each non-local block attends to in a few test images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from nonlocal_nets.callbacks.run_folder import run_folder
from nonlocal_nets.nn import NonLocalBlock, blocks

Point = tuple[float, float]  # row and column, as fractions of the height and the width


class AttentionMaps(pl.Callback):
    """Writes `attention.png` into the run's folder: one column an image, one row a block and a query.

    A map is the row f(x_i, .) / C(x) of one query position i, exact, and a cross marks that position. There are two
    queries: the position that the block changes most, ||z_i - x_i||, and, if the data module has a method
    `query_point(image) -> (row, column)` in fractions, the point that it names. Weights of the dot product can be
    negative: then blue is negative, white zero and red positive.

    Args:
        images: how many images of the first test batch are drawn.
    """

    def __init__(self, images: int = 6) -> None:
        self.images = images
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        self.handles: list[Any] = []

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
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
        point_of = getattr(trainer.datamodule, "query_point", None)  # type: ignore[attr-defined]
        rows = {}
        for name, (x, z) in self.seen.items():
            block = blocks(pl_module)[name]
            place = name.removeprefix("network.").removesuffix(".non_local")
            rows[f"{place}: changed most"] = look(block, x, changed_most(x, z))
            if point_of is not None:
                rows[f"{place}: {point_of.__doc__.split('.')[0].lower()}"] = look(block, x, [*map(point_of, images)])
        rank_zero_info(f"What the blocks attend to: {draw(images, rows, run_folder(trainer) / 'attention.png')}")

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.seen[name] = (args[0][: self.images].detach(), output[: self.images].detach())

        return hook


def changed_most(x: Tensor, z: Tensor) -> list[Point]:
    """Of each image the position where a block's input x and output z, (K, C, H, W), differ most."""
    height, width = x.shape[2:]
    flat = (z - x).square().sum(1).flatten(1).argmax(1).tolist()
    return [((k // width + 0.5) / height, (k % width + 0.5) / width) for k in flat]


@torch.no_grad()
def look(block: NonLocalBlock, x: Tensor, points: Sequence[Point]) -> list[tuple[Point, Tensor]]:
    """Of each image, the middle of the position at its point and that query's weights on the grid of the keys.

    Args:
        block: the block.
        x: its input, (K, C, H, W).
        points: one query an image.
    """
    height, width = x.shape[2:]
    seen = []
    for k, (row, column) in enumerate(points):
        i, j = int(row * height), int(column * width)
        weights = block.weights(x[k : k + 1], queries=[i * width + j])
        seen.append((((i + 0.5) / height, (j + 0.5) / width), weights.view(block.key_size((height, width))).cpu()))
    return seen


def draw(images: Tensor, rows: dict[str, list[tuple[Point, Tensor]]], path: Path) -> Path:
    """Images (K, 3 or 1, H, W) above the maps of every row, to a PNG file."""
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind

    figure = Figure(figsize=(1.6 * len(images), 1.75 * (1 + len(rows))), layout="constrained")
    axes = figure.subplots(1 + len(rows), len(images), squeeze=False)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    pictures = ((images - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    height, width = images.shape[2:]
    for k, picture in enumerate(pictures):
        axes[0, k].imshow(picture)
        for axis, (name, seen) in zip(axes[1:, k], rows.items(), strict=True):
            (row, column), weights = seen[k]
            largest = float(weights.abs().amax()) or 1.0
            signed = bool((weights < 0).any())
            style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -largest} if signed else {"cmap": "magma", "vmin": 0}
            axis.imshow(weights.numpy(), vmax=largest, extent=(0, width, height, 0), **style)
            axis.contour(picture.max(2), levels=[0.3], colors="gray", linewidths=0.7, extent=(0, width, 0, height))
            axis.plot(column * width, row * height, "+", color="lime", markersize=10, markeredgewidth=2)
            axis.set_title(name if k == 0 else "", fontsize=8, loc="left")
    for axis in axes.flat:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
