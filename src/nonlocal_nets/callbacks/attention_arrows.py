"""Pictures, after test and predict, of what each non-local block attends to in a few videos: Figure 3 of the paper."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from nonlocal_nets.callbacks.arrows_picture import Arrows, Mark, animate, draw
from nonlocal_nets.callbacks.attention_maps import Point, look, queries, shape_of
from nonlocal_nets.callbacks.publish import publish
from nonlocal_nets.callbacks.run_folder import run_folder
from nonlocal_nets.nn import NonLocalBlock, blocks
from nonlocal_nets.nn.grid import pool_sizes


class AttentionArrows(pl.Callback):
    """Writes `attention_arrows-0.png` and `attention_arrows-0.gif` into the run's folder, and so for each video.

    The picture has one row a block and a query, as in Figure 3 of the paper: frames of the clip, a cross at the query
    and arrows to its strongest keys in space and time, the more opaque the stronger. At most 8 frames are shown, evenly
    chosen, and the query's; a dotted arrow goes to a key in a frame beside the one shown. The animation has all frames,
    and circles at the keys, the larger the stronger; a key shows in all frames that its cell of the block's grid
    covers. Weights of the dot product can be negative: the strongest by absolute value are drawn, yellow if positive
    and blue if negative.

    There are two queries, as in `AttentionMaps`: the position that the block changes most, and the point of the data
    module's `query_point(clip) -> (frame, row, column)` in fractions, if it has this method. Of a video with several
    views the middle one is drawn.

    Args:
        videos: how many of the first videos are drawn.
        arrows: how many keys a query; fewer where fewer have a weight, as in a small window.

    Raises:
        ValueError: a number below 1, or batches that are not clips (B, C, T, H, W) or views (B, V, C, T, H, W).
    """

    def __init__(self, videos: int = 2, arrows: int = 20) -> None:
        if videos < 1 or arrows < 1:
            raise ValueError(f"videos and arrows must be at least 1, got {videos} and {arrows}")
        self.videos, self.arrows = videos, arrows
        self.drawn = 0
        self.seen: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}  # of each video in the batch, by block: x and z
        self.handles: list[Any] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.drawn = 0

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not isinstance(batch[0], Tensor) or batch[0].ndim not in (5, 6):
            others = "AttentionMaps draws images, AttentionSeries sequences"
            raise ValueError(f"AttentionArrows draws clips (B, C, T, H, W), got {shape_of(batch[0])}; {others}")
        shape = batch[0].shape
        if trainer.is_global_zero and self.drawn < self.videos:
            views = shape[1] if len(shape) == 6 else 1
            middles = {k * views + views // 2: k for k in range(min(shape[0], self.videos - self.drawn))}
            self.seen = {k: {} for k in middles.values()}
            self.handles = [
                block.register_forward_hook(self._keep(name, middles)) for name, block in blocks(pl_module).items()
            ]

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
        for k, seen in self.seen.items():
            if not seen:  # the task left this video out
                continue
            clip = batch[0][k] if batch[0].ndim == 5 else batch[0][k, batch[0].shape[1] // 2]
            rows = self._rows(trainer, pl_module, seen, clip[None].cpu())
            path = run_folder(trainer) / f"attention_arrows-{self.drawn}.png"
            name = batch[1][k] if isinstance(batch[1][k], str) else f"video {self.drawn}"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(clip.cpu(), rows, path, Path(name).name)
            animate(clip.cpu(), rows, path.with_suffix(".gif"))
            publish(trainer, path)
            publish(trainer, path.with_suffix(".gif"))
            self.drawn += 1
            rank_zero_info(f"What the blocks attend to in {name}: {path} and .gif")
        self.seen = {}

    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end

    def _keep(self, name: str, middles: dict[int, int]) -> Callable[..., None]:
        """A hook that keeps the middle views of a batch, (B * V, C, T, H, W), which may come in parts."""
        past = 0

        def hook(_block: nn.Module, args: tuple[Any, ...], z: Tensor) -> None:
            nonlocal past
            if z.ndim != 5:
                raise ValueError(f"AttentionArrows draws blocks of (B, C, T, H, W), {name} gets {tuple(z.shape)}")
            for index, k in middles.items():
                if 0 <= index - past < len(z):
                    here = slice(index - past, index - past + 1)
                    self.seen[k][name] = (args[0][here].detach().clone(), z[here].detach().clone())
            past += len(z)

        return hook

    def _rows(
        self, trainer: pl.Trainer, model: pl.LightningModule, seen: dict[str, tuple[Tensor, Tensor]], clip: Tensor
    ) -> dict[str, Arrows]:
        rows = {}
        for name, (x, z) in seen.items():
            for title, (point,) in queries(trainer, name, x, z, clip).items():
                rows[title] = attend(blocks(model)[name], x, point, clip.shape[2:], self.arrows)
        return rows


def attend(block: NonLocalBlock, x: Tensor, point: Point, clip_size: Sequence[int], arrows: int) -> Arrows:
    """The strongest keys of the query at a point, in frames and pixels of the clip.

    Args:
        block: the block.
        x: its input, (1, C, T', H', W').
        point: frame, row and column, as fractions.
        clip_size: T, H and W of the clip.
        arrows: how many keys at most; those of weight 0 are left out.
    """
    size = x.shape[2:]
    ((middle, weights),) = look(block, x, [point])
    strength = weights.abs().flatten().nan_to_num()
    top = strength.topk(min(arrows, int((strength > 0).sum()))).indices
    cells = torch.stack(torch.unravel_index(top, weights.shape), 1).tolist()
    pool = pool_sizes(block.pool, size)
    keys = [_mark(cell, pool, size, clip_size, float(weights[tuple(cell)])) for cell in cells]
    own = [int(fraction * s) for fraction, s in zip(middle, size, strict=True)]
    query = _mark(own, (1, 1, 1), size, clip_size, float(strength.max()))
    return Arrows(query, keys, float(strength[top].sum() / strength.sum().clamp(min=1e-30)))


def _mark(
    cell: Sequence[int], pool: Sequence[int], size: Sequence[int], clip_size: Sequence[int], weight: float
) -> Mark:
    """Where a cell of `pool` positions lies: the grid of `size` spans the clip."""
    first, middle, end = (k * pool[0] * clip_size[0] // (2 * size[0]) for k in range(2 * cell[0], 2 * cell[0] + 3))
    covered = range(first, max(end, middle + 1))
    row, column = ((cell[k] + 0.5) * pool[k] / size[k] * clip_size[k] for k in (1, 2))
    return Mark(middle, covered, row, column, weight)
