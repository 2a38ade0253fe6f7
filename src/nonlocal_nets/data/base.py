"""What the image data modules share: transforms, loaders, a stratified split, corrupt files, and images to predict."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Sample = tuple[str, int]  # path and label
Target = TypeVar("Target", int, str)
log = logging.getLogger(__name__)
CHECKED = 5000  # files that are looked into before any work starts; a second or so


class CorruptImageError(ValueError):
    """A file that cannot be read as an image, or too many of them. The message names the file, in one line."""


def read_image(path: str) -> Image.Image:
    """The image of a file, decoded, as RGB; grey is repeated. Whatever hinders it is a CorruptImageError."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # of these Pillow clips what is above 255
                raise ValueError(f"mode {image.mode}, more than 8 bits a channel")
            return image.convert("RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise CorruptImageError(f"corrupt image {path}: {' '.join(str(error).split())}") from error


def check_headers(paths: Sequence[str]) -> None:
    """Raise CorruptImageError for a file that is no image at all, of at most CHECKED ones, evenly spread over all."""
    for path in paths[:: math.ceil(len(paths) / CHECKED) or 1]:
        try:
            Image.open(path).close()  # reads the header only
        except Exception as error:
            raise CorruptImageError(f"corrupt image {path}: {' '.join(str(error).split())}") from error


class ImageFiles(Dataset[tuple[Tensor, Target]], Generic[Target]):
    """Sample k is image k (C, H, W) and its target, read from its file at each access.

    Args:
        samples: paths and targets.
        transform: of the RGB image.
        corrupt: "stop" at a corrupt file, or "replace" it by the next file that is not.
        max_corrupt: the share of the files that may be replaced.

    Raises:
        CorruptImageError: at access; a corrupt file, or one more than `max_corrupt` lets pass.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, Target]],
        transform: v2.Transform,
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
    ) -> None:
        self.samples: Sequence[tuple[str, Target]] = samples
        self.transform, self.corrupt, self.max_corrupt = transform, corrupt, max_corrupt
        # One flag a file, not a counter: all workers of a loader see it, in all epochs, and no file counts twice.
        self.known_corrupt = torch.zeros(len(samples), dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        while True:  # ends: max_corrupt < 1, so that some file is good or too many are bad
            path, target = self.samples[index]
            if not self.known_corrupt[index]:
                try:
                    image = read_image(path)
                except CorruptImageError as error:
                    self._count(index, error)
                else:
                    return self.transform(image), target
            index = (index + 1) % len(self)  # in a list sorted by class mostly one of the same class

    def _count(self, index: int, error: CorruptImageError) -> None:
        if self.corrupt == "stop":
            raise error
        self.known_corrupt[index] = True
        count = int(self.known_corrupt.sum())
        so_far = f"{count} of {len(self)} images so far"
        if count / len(self) > self.max_corrupt:
            raise CorruptImageError(f"{error}; {so_far}, more than max_corrupt={self.max_corrupt}") from error
        # by logging: warnings.warn would show a text once a process only, and every rank meets files of its own
        log.warning("%s; replaced by another (%s)", error, so_far)


def split(groups: Sequence[Any], fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """A random split, stratified: each part has its share of each group of samples, give or take one or two.

    Unlike scikit-learn's it holds for groups of any size, also of one sample: the samples lie in a row, group by group,
    shuffled within each, and a part takes every (1 / fraction)-th of those that the parts before it have left.

    Args:
        groups: of each sample, what is to be spread evenly, such as its label.
        fractions: of each part but "train", which gets the rest.
        seed: of the split, which is a function of it, the groups and the fractions.

    Returns:
        Of each part the indices, sorted; together they are 0 .. len(groups) - 1.

    Raises:
        ValueError: fractions that are not above 0 and together below 1, or that leave a part empty.
    """
    if min(fractions.values()) <= 0 or sum(fractions.values()) >= 1:
        given = ", ".join(f"{part}_fraction={fraction}" for part, fraction in fractions.items())
        raise ValueError(f"fractions must be above 0, and below 1 together, got {given}")
    random = np.random.default_rng(seed)
    order = np.lexsort((random.random(len(groups)), np.unique(np.asarray(groups), return_inverse=True)[1]))
    parts, left = {}, 1.0
    for part, fraction in fractions.items():
        taken = np.diff(np.floor(random.random() + fraction / left * np.arange(len(order) + 1))) > 0
        parts[part], order, left = sorted(order[taken].tolist()), order[~taken], left - fraction
    parts["train"] = sorted(order.tolist())
    for part, indices in parts.items():
        if not indices:
            raise ValueError(f"a split of {len(groups)} samples leaves none for {part}: choose other fractions")
    return parts


def find_images(path: str | Path) -> list[str]:
    """The images of a file or a folder, searched through all its folders: sorted paths; ValueError where none is."""
    path = Path(path)
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise ValueError(f"no file or folder {path}: expected an image, or a folder with images")
    found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS and file.is_file())
    if not found:
        raise ValueError(f"no image in {path}: expected files that end in {', '.join(IMG_EXTENSIONS)}")
    return found


def _with_paths(batch: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    return torch.stack([image for image, _ in batch]), [path for _, path in batch]


class ImageDataModule(pl.LightningDataModule, ABC):
    """Batches of images (B, 3, H, W), float32 and normalised, and labels (B,), int64; for `predict`, paths.

    Args:
        class_names: in the order of the labels.
        image_size: height and width of an image in a batch, pixels.
        augment: what training does at random, on PIL images; must end at `image_size`.
        crop_fraction: evaluation resizes the shorter side to image_size / crop_fraction and crops the middle.
        batch_size: samples a batch. In training an incomplete last batch is dropped.
        num_workers: processes that load; 0 loads in the main process.
        mean: of the normalisation (x - mean) / std of red, green and blue in [0, 1]; the default is ImageNet's.
        std: of the normalisation.
        path: for `predict`, an image or a folder that is searched for images. A corrupt one always stops `predict`.

    Raises:
        ValueError: a size, share or path that cannot be.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        image_size: int,
        augment: Sequence[v2.Transform],
        crop_fraction: float,
        batch_size: int = 32,
        num_workers: int = 0,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        path: str | None = None,
    ) -> None:
        super().__init__()
        least = {"image_size": (image_size, 1), "batch_size": (batch_size, 1), "num_workers": (num_workers, 0)}
        for name, (value, low) in least.items():
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be above 0 and at most 1, got {crop_fraction}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers, std above 0; got {mean} and {std}")
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.input_size = (3, image_size, image_size)
        self.batch_size, self.num_workers = batch_size, num_workers
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()]
        centre = [v2.Resize(round(image_size / crop_fraction)), v2.CenterCrop(image_size)]
        self.train_transform = v2.Compose([*augment, *to_tensor])
        self.eval_transform = v2.Compose([*centre, *to_tensor])
        self.paths = None if path is None else find_images(path)
        check_headers(self.paths or [])

    @abstractmethod
    def dataset(self, part: str, transform: v2.Transform) -> Dataset[tuple[Tensor, int]]:
        """The transformed images and labels of "train", "val" or "test"."""

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        dataset = self.dataset("train", self.train_transform)
        enough = len(dataset) >= self.batch_size  # type: ignore[arg-type]  # else dropping would leave no batch at all
        return self._loader(dataset, shuffle=True, drop_last=enough)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return self._loader(self.dataset("val", self.eval_transform))

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        return self._loader(self.dataset("test", self.eval_transform))

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, str]]:
        if self.paths is None:
            raise ValueError("predict needs images: --data.path=<file or folder>")
        samples = [(path, path) for path in self.paths]
        return self._loader(ImageFiles(samples, self.eval_transform), collate_fn=_with_paths)

    def _loader(self, dataset: Dataset[tuple[Tensor, Target]], **options: Any) -> DataLoader[tuple[Tensor, Target]]:
        options |= {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
        # Not persistent: new workers are seeded from the main process, so a run that resumes draws what it would have.
        return DataLoader(dataset, batch_size=self.batch_size, **options)  # by name: predict makes it anew


class ImageFilesDataModule(ImageDataModule):
    """An `ImageDataModule` whose images are files.

    Args:
        parts: the samples of "train", "val" and "test".
        corrupt: "stop" at a corrupt image, with its path, before any work if its header tells; or "replace" it by the
            next good one, with a warning. In validation and test that one then counts twice.
        max_corrupt: with "replace", the share of a part's images that may be corrupt; one more stops. The workers of a
            process count together, the processes of a distributed run each for itself.
        kwargs: of `ImageDataModule`.

    Raises:
        ValueError: a share that is not in [0, 1); and all of `ImageDataModule`.
    """

    @abstractmethod  # so that the command line does not offer this class
    def __init__(
        self,
        parts: Mapping[str, Sequence[Sample]],
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if corrupt not in ("stop", "replace"):
            raise ValueError(f"corrupt must be 'stop' or 'replace', got {corrupt!r}")
        if not 0 <= max_corrupt < 1:
            raise ValueError(f"max_corrupt must be a share in [0, 1), got {max_corrupt}")
        if corrupt == "stop":
            check_headers([path for samples in parts.values() for path, _ in samples])
        self.parts, self.corrupt, self.max_corrupt = parts, corrupt, max_corrupt

    def dataset(self, part: str, transform: v2.Transform) -> ImageFiles[int]:
        return ImageFiles(self.parts[part], transform, self.corrupt, self.max_corrupt)
