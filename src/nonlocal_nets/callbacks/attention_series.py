"""A picture, after the test, of what each non-local block attends to in a few sequences."""

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from nonlocal_nets.callbacks.attention_maps import queries, shape_of
from nonlocal_nets.callbacks.publish import publish
from nonlocal_nets.callbacks.run_folder import run_folder
from nonlocal_nets.callbacks.series_picture import Seen, Series, draw
from nonlocal_nets.nn import NonLocalBlock, blocks
from nonlocal_nets.nn.grid import pool_sizes


class AttentionSeries(pl.Callback):
    """Writes `attention_series.png` into the run's folder: one column a sequence, one row a block and a query.

    A row is f(x_i, .) / C(x) of one query position i, exact, over the sequence at its own length: red where positive,
    blue where negative, as weights of the dot product can be, from a line at zero. A dashed line marks the query, and
    arcs go to its strongest keys. A signal is drawn behind it, all its channels; of tokens the names are written at the
    strongest keys and above the query, if the data module has `token_names`, else colours show which is which.

    The queries are the position that the block changes most, ||z_i - x_i||, those at `at`, and, if the data module has
    a method `query_point(sequence) -> (place,)`, a fraction, the point that it names.

    Args:
        samples: how many sequences of the first test batch are drawn.
        at: further queries, as fractions of a sequence's own length, 0 to 1.

    Raises:
        ValueError: an argument outside of this, or batches that are not ((signals or tokens, mask), ...).
    """

    def __init__(self, samples: int = 3, at: Sequence[float] = (0.25, 0.75)) -> None:
        if samples < 1 or not all(0 <= fraction < 1 for fraction in at):
            raise ValueError(f"samples must be at least 1 and at fractions in [0, 1), got {samples} and {list(at)}")
        self.samples, self.at = samples, tuple(at)
        self.seen: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}  # of each block x, z and mask
        self.handles: list[Any] = []

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx:
            return
        if not isinstance(batch[0], (tuple, list)) or batch[0][0].ndim not in (2, 3):
            others = "AttentionMaps draws images, AttentionArrows videos"
            expected = "signals (B, C, L) or tokens (B, L) with their mask"
            raise ValueError(f"AttentionSeries draws {expected}, got {shape_of(batch[0])}; {others}")
        if trainer.is_global_zero:
            self.seen = {}
            self.handles = [
                block.register_forward_hook(self._keep(name), with_kwargs=True)
                for name, block in blocks(pl_module).items()
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
        data = getattr(trainer, "datamodule", None)
        x, mask = batch[0]
        columns = []
        for k in range(min(len(x), self.samples, *(len(x) for x, _, _ in self.seen.values()))):
            values = x[k, ..., : x.shape[-1] if mask is None else int(mask[k].sum())].cpu()
            rows: dict[str, Seen] = {}
            for name in self.seen:
                rows |= self._rows(trainer, name, blocks(pl_module)[name], k, values)
            columns.append(Series(f"sample {k}, class {_label(data, batch[1][k])}", values, rows))
        if columns and columns[0].rows:
            path = draw(columns, getattr(data, "token_names", None), run_folder(trainer) / "attention_series.png")
            publish(trainer, path)
            rank_zero_info(f"What the blocks attend to: {path}")

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], z: Tensor) -> None:
            if z.ndim != 3:
                raise ValueError(f"AttentionSeries draws blocks of (B, C, L), {name} gets {tuple(z.shape)}")
            mask = kwargs.get("mask", args[1] if len(args) > 1 else None)
            few = slice(self.samples)
            self.seen[name] = (args[0][few].detach(), z[few].detach(), None if mask is None else mask[few])

        return hook

    def _rows(self, trainer: pl.Trainer, name: str, block: NonLocalBlock, k: int, values: Tensor) -> dict[str, Seen]:
        """What a block sees from each query of sample k, whose values are (C, L) or (L,)."""
        x, z, mask = (None if kept is None else kept[k : k + 1] for kept in self.seen[name])
        assert x is not None
        assert z is not None
        n = x.shape[2] if mask is None else int(mask.sum())
        asked = queries(trainer, name, x[..., :n], z[..., :n], values[None])
        place = next(iter(asked)).partition(":")[0]
        asked |= {f"{place}: at {fraction:g}": [(fraction,)] for fraction in self.at}
        return {title: attend(block, x, mask, point[0]) for title, (point,) in asked.items()}


@torch.no_grad()
def attend(block: NonLocalBlock, x: Tensor, mask: Tensor | None, point: float) -> Seen:
    """A query's weights on the keys of the sample, those that it has without its padding.

    Args:
        block: the block.
        x: its input, (1, C, N).
        mask: bool (1, N), or None.
        point: the query, as a fraction of the sample's own length.
    """
    n = x.shape[2] if mask is None else int(mask.sum())
    query, pool = int(point * n), pool_sizes(block.pool, x.shape[2:])[0]
    weights = block.weights(x.to(block.g.weight.dtype), [query], mask)[
        0, 0, : n // pool
    ]  # under autocast x was narrower
    return Seen((query + 0.5) / n, weights.cpu(), len(weights) * pool / n)


def _label(data: Any, label: Tensor) -> str:
    names = getattr(data, "class_names", None)
    return str(names[int(label)] if names is not None else int(label))
