"""Pictures, after test and predict, of what each non-local block attends to in a few samples."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from nonlocal_nets.attention import clips, images, series
from nonlocal_nets.attention.capture import Activations, capture
from nonlocal_nets.attention.queries import QueryPoint, Sample, rows_by_query
from nonlocal_nets.attention.rows import extent
from nonlocal_nets.callbacks.publish import publish
from nonlocal_nets.nn import NonLocalBlock


class Kind(NamedTuple):
    """What a batch may hold."""

    name: str
    shape: str
    axes: int  # of its positions
    samples: int  # drawn by default


IMAGES = Kind("images", "(B, C, H, W)", 2, 6)
CLIPS = Kind("clips", "(B, C, T, H, W) or views of them (B, V, C, T, H, W)", 3, 2)
SEQUENCES = Kind("sequences", "((B, C, L) or (B, L), mask)", 1, 3)
ARROWS = 20
AT = (0.25, 0.75)


class AttentionMaps(pl.Callback):
    """Draws what each block attends to, for a few samples of the test or of predict, into `default_root_dir`.

    A row f(x_i, .) / C(x) of one query position i, exact, for each block and each query: the position that the block
    changes most, ||z_i - x_i||, and the point that the data module's `query_point(sample)` names in fractions of each
    axis, if it has this method. Weights of the dot product can be negative, which has a colour of its own.

    Images: `attention.png`, one column an image, a row a block and query. Colours are a share of a map's largest
    weight: red is positive, blue negative, and zero lets the image through. A cross marks the query.

    Clips: `attention-0.png` and `attention-0.gif`, and so for each video. The picture is Figure 3 of the paper: frames
    of the clip, a cross at the query and arrows to its strongest keys in space and time, the more opaque the stronger,
    yellow if positive, blue if negative. At most 8 frames are shown, evenly chosen, and the query's; a dotted arrow
    goes to a key in a frame beside the one shown. The animation has all frames, and circles at the keys, the larger the
    stronger. Of a video with several views the middle one is drawn.

    Sequences: `attention.png`, one column a sequence at its own length. Weights are steps over the signal or tokens,
    red or blue; a dashed line marks the query, and arcs go to its strongest keys. Of tokens the names are written
    there, if the data module has `token_names`, else colours show which is which.

    Args:
        samples: how many are drawn: by default the first 6 images or 3 sequences of the first batch, or the first 2
            videos.
        arrows: for clips, how many keys a query, by default 20; fewer where fewer have a weight.
        at: for sequences, further queries as fractions in [0, 1) of a sequence's own length, by default 0.25 and 0.75.

    Raises:
        ValueError: an argument outside of this or that the batches cannot use, or batches of another shape.
    """

    def __init__(
        self, samples: int | None = None, arrows: int | None = None, at: Sequence[float] | None = None
    ) -> None:
        for name, given in (("samples", samples), ("arrows", arrows)):
            if given is not None and given < 1:
                raise ValueError(f"AttentionMaps: {name} must be at least 1, got {given}")
        if not all(0 <= fraction < 1 for fraction in at or ()):
            raise ValueError(f"AttentionMaps: at must be fractions in [0, 1), got {list(at or ())}")
        self.samples, self.arrows, self.at = samples, arrows, at
        self.drawn = 0
        self.drawing: dict[int, Sample] = {}  # by index, as the blocks count them: a view is a sample there
        self.capturing = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.drawn = 0

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        kind = kind_of(batch)
        self._refuse_unused(kind)
        left = (self.samples or kind.samples) - self.drawn
        if not trainer.is_global_zero or left <= 0:
            return
        data = getattr(trainer, "datamodule", None)
        x = batch[0][0] if kind is SEQUENCES else batch[0]
        views = x.shape[1] if x.ndim == 6 else 1
        for k in range(min(len(x), left)):
            target = batch[1][k] if len(batch) > 1 else None
            title = title_of(kind, self.drawn + k, target, getattr(data, "class_names", None))
            self.drawing[k * views + views // 2] = Sample(title, values_of(kind, batch[0], k).cpu(), {})
        see = partial(self._see, kind, getattr(data, "query_point", None))
        self.capturing.enter_context(capture(pl_module, see))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.capturing.close()
        samples = [sample for sample in self.drawing.values() if sample.rows]  # the task leaves out duplicates
        self.drawing = {}
        if not samples:
            return
        if kind_of(batch) is CLIPS:
            self._draw_clips(trainer, samples)
        else:
            self._draw_together(trainer, kind_of(batch), samples)

    on_predict_batch_start = on_test_batch_start
    on_predict_batch_end = on_test_batch_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.capturing.close()

    def _refuse_unused(self, kind: Kind) -> None:
        for name, given, user in (("arrows", self.arrows, CLIPS), ("at", self.at, SEQUENCES)):
            if given is not None and kind is not user:
                raise ValueError(f"AttentionMaps: {name} is for {user.name}, the batches are {kind.name} {kind.shape}")

    def _see(
        self,
        kind: Kind,
        query_point: QueryPoint | None,
        name: str,
        block: NonLocalBlock,
        index: int,
        seen: Activations,
    ) -> None:
        """Add the rows of a block to a sample that is drawn."""
        if seen.x.ndim - 1 != kind.axes:
            expected = f"AttentionMaps draws {kind.name} by blocks with {kind.axes} axes"
            raise ValueError(f"{expected}, {name} gets (C, *S) = {tuple(seen.x.shape)}")
        if index in self.drawing:
            sample = self.drawing[index]
            at = () if kind is not SEQUENCES else AT if self.at is None else self.at
            sample.rows.update(rows_by_query(name, block, seen, sample.values, query_point, at))

    def _draw_together(self, trainer: pl.Trainer, kind: Kind, samples: Sequence[Sample]) -> None:
        """The samples of the first batch, in one picture."""
        path = Path(trainer.default_root_dir) / "attention.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind is IMAGES:
            images.draw(samples, path)
        else:
            series.draw(samples, getattr(getattr(trainer, "datamodule", None), "token_names", None), path)
        publish(trainer, path)
        rank_zero_info(f"What the blocks attend to: {path}")
        self.drawn = self.samples or kind.samples

    def _draw_clips(self, trainer: pl.Trainer, samples: Sequence[Sample]) -> None:
        """A picture and an animation of each video."""
        for sample in samples:
            path = Path(trainer.default_root_dir) / f"attention-{self.drawn}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = sample.values.shape[1:]
            rows = {title: clips.strongest(row, size, self.arrows or ARROWS) for title, row in sample.rows.items()}
            clips.draw(sample.values, rows, path, sample.title)
            clips.animate(sample.values, rows, path.with_suffix(".gif"))
            publish(trainer, path)
            publish(trainer, path.with_suffix(".gif"))
            rank_zero_info(f"What the blocks attend to in {sample.title}: {path} and .gif")
            self.drawn += 1


def kind_of(batch: Any) -> Kind:
    """What a batch holds, from its first item.

    Raises:
        ValueError: nothing that can be drawn.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        return IMAGES
    if isinstance(inputs, Tensor) and inputs.ndim in (5, 6):
        return CLIPS
    if isinstance(inputs, (tuple, list)) and len(inputs) == 2 and _is_padded(*inputs):
        return SEQUENCES
    accepted = ", ".join(f"{kind.name} {kind.shape}" for kind in (IMAGES, CLIPS, SEQUENCES))
    raise ValueError(f"AttentionMaps draws {accepted}; got {_shape(inputs)}")


def _is_padded(x: Any, mask: Any) -> bool:
    if not isinstance(x, Tensor) or x.ndim not in (2, 3):
        return False
    expected = (x.shape[0], x.shape[-1])
    return mask is None or (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == expected)


def _shape(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    if isinstance(inputs, (tuple, list)) and inputs:
        return f"{len(inputs)} inputs, the first {_shape(inputs[0])}"
    return f"a {type(inputs).__name__}"


def values_of(kind: Kind, inputs: Any, k: int) -> Tensor:
    """The network's input for sample k: the middle one of several views, a sequence without its padding."""
    if kind is SEQUENCES:
        x, mask = inputs
        length = extent(x.shape[2:] or x.shape[1:], None if mask is None else mask[k])[0]
        values: Tensor = x[k, ..., :length]
    else:
        values = inputs[k, inputs.shape[1] // 2] if inputs.ndim == 6 else inputs[k]
    return values


def title_of(kind: Kind, number: int, target: Any, class_names: Sequence[str] | None) -> str:
    """The name of its file, where the target is one, or its number and the class of a sequence."""
    if isinstance(target, str):
        return Path(target).name
    if kind is CLIPS:
        return f"video {number}"
    if not isinstance(target, Tensor) or target.ndim or target.is_floating_point():
        return f"sample {number}"
    return f"sample {number}, class {class_names[int(target)] if class_names is not None else int(target)}"
