"""A picture, after the test, of what each non-local block attends to in a few test images."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from nonlocal_nets.nn import NonLocalBlock, blocks


class AttentionMaps(pl.Callback):
    """Writes `attention.png` into the run's folder: one row an image, one column a block.

    The query, marked by a cross, is the position that the block changes most: where ||z_i - x_i|| is largest. The map
    is the row f(x_i, .) / C(x) of that query, exact, for these few positions alone. Weights of the dot product can be
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
        found = blocks(pl_module)
        maps = {
            name: [attended(found[name], x[None], z[None]) for x, z in zip(*kept, strict=True)]
            for name, kept in self.seen.items()
        }
        checkpoint = trainer.checkpoint_callback
        folder = Path(checkpoint.dirpath or ".").parent if isinstance(checkpoint, ModelCheckpoint) else Path()
        path = draw(batch[0][: self.images].cpu(), maps, folder / "attention.png")
        rank_zero_info(f"What the blocks attend to: {path}")

    def _keep(self, name: str) -> Any:
        def hook(_block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.seen[name] = (args[0][: self.images].detach(), output[: self.images].detach())

        return hook


@torch.no_grad()
def attended(block: NonLocalBlock, x: Tensor, z: Tensor) -> tuple[tuple[float, ...], Tensor]:
    """The position that the block changes most, one fraction of its axis each, and its weights on the grid of keys.

    Args:
        block: the block.
        x: its input, of one image: (1, C, H, W).
        z: its output for x.
    """
    query = int((z - x).square().sum(1).flatten().argmax())
    row = block.weights(x, queries=[query])[0, 0]
    position = torch.unravel_index(torch.tensor(query), x.shape[2:])
    fractions = tuple((int(p) + 0.5) / s for p, s in zip(position, x.shape[2:], strict=True))
    return fractions, row.view(block.key_size(x.shape[2:])).cpu()


def draw(images: Tensor, maps: dict[str, list[tuple[tuple[float, ...], Tensor]]], path: Path) -> Path:
    """Images (K, 3 or 1, H, W), each with the map of every block over it, to a PNG file."""
    from matplotlib.figure import Figure  # no pyplot: needs no display and leaves no global figure behind

    columns = 1 + len(maps)
    figure = Figure(figsize=(2.2 * columns, 2.2 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    height, width = images.shape[2:]
    for k, image in enumerate(images):
        low, high = image.amin(), image.amax()
        picture = ((image - low) / (high - low).clamp(min=1e-6)).expand(3, -1, -1).permute(1, 2, 0).numpy()
        axes[k, 0].imshow(picture)
        for axis, (name, rows) in zip(axes[k, 1:], maps.items(), strict=True):
            (y, x), weights = rows[k]
            largest = float(weights.abs().amax()) or 1.0
            signed = bool((weights < 0).any())
            style = {"cmap": "RdBu_r", "vmin": -largest} if signed else {"cmap": "magma", "vmin": 0}
            axis.imshow(picture.mean(2), cmap="gray")
            axis.imshow(weights.numpy(), vmax=largest, alpha=0.75, extent=(0, width, height, 0), **style)
            axis.plot(
                x * width, y * height, "+", color="black" if signed else "white", markersize=12, markeredgewidth=2
            )
            axis.set_title(name.split(".")[-2] if k == 0 and "." in name else "", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
