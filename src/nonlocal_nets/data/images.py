"""What the image data modules share: reading, transforms, and images to predict."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from nonlocal_nets.data.base import (
    CorruptFileError,
    DataModule,
    Files,
    Target,
    check_corrupt,
    check_minimum,
    find_files,
    one_line,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Sample = tuple[str, int]  # path and label
CHECKED = 5000  # number of files whose headers are checked before training starts; takes about a second


class CorruptImageError(CorruptFileError):
    """A file that cannot be read as an image, or too many of them. The message is one line and names the file."""


def read_image(path: str) -> Image.Image:
    """The decoded image as RGB; a grey image is repeated in all three channels. Any failure is a CorruptImageError."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would clip values above 255
                raise ValueError(f"mode {image.mode}, more than 8 bits per channel")
            return image.convert("RGB")
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise CorruptImageError(f"corrupt image {path}: {one_line(error)}") from error


def check_headers(paths: Sequence[str]) -> None:
    """Raise CorruptImageError for a file that is not an image; of many files, check CHECKED that are evenly spread."""
    for path in paths[:: math.ceil(len(paths) / CHECKED) or 1]:
        try:
            Image.open(path).close()  # reads only the header
        except Exception as error:
            raise CorruptImageError(f"corrupt image {path}: {one_line(error)}") from error


class ImageFiles(Files[Target]):
    """Sample k is image k (C, H, W) and its target.

    Args:
        samples, corrupt, max_corrupt: see `Files`.
        transform: applied to the RGB image.
    """

    noun = "images"

    def __init__(
        self,
        samples: Sequence[tuple[str, Target]],
        transform: v2.Transform,
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
    ) -> None:
        super().__init__(samples, corrupt, max_corrupt)
        self.transform = transform

    def read(self, path: str, target: Target) -> tuple[Tensor, Target]:
        return self.transform(read_image(path)), target


class ImageDataModule(DataModule):
    """Batches of normalised images (B, 3, H, W), float32, and labels (B,), int64; for `predict`, images and paths.

    Args:
        class_names: in the order of the labels.
        image_size: height and width of the images in a batch, in pixels.
        augment: random transforms of PIL images for training; the result must have size `image_size`.
        crop_fraction: evaluation resizes the shorter side to image_size / crop_fraction and takes the central crop.
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        num_workers: number of processes that load; 0 loads in the main process.
        mean: means of red, green and blue in [0, 1] for the normalisation (x - mean) / std; the default is ImageNet's.
        std: standard deviations for the normalisation, as for mean.
        path: for `predict`, an image or a folder that is searched for images. A corrupt one always stops `predict`.

    Raises:
        ValueError: an invalid size, share or path.
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
        check_minimum({"image_size": (image_size, 1)})
        super().__init__(class_names, (3, image_size, image_size), batch_size, num_workers)
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be above 0 and at most 1, got {crop_fraction}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers, std above 0; got {mean} and {std}")
        self.normalisation = {"mean": list(mean), "std": list(std)}
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), v2.ToPureTensor()]
        centre = [v2.Resize(round(image_size / crop_fraction)), v2.CenterCrop(image_size)]
        self.train_transform = v2.Compose([*augment, *to_tensor])
        self.eval_transform = v2.Compose([*centre, *to_tensor])
        self.paths = None if path is None else find_files(path, IMG_EXTENSIONS, "image")
        check_headers(self.paths or [])

    @abstractmethod
    def images(self, part: str, transform: v2.Transform) -> Dataset[tuple[Tensor, int]]:
        """The transformed images and labels of "train", "val" or "test"."""

    def dataset(self, part: str) -> Dataset[tuple[Tensor, int]]:
        return self.images(part, self.train_transform if part == "train" else self.eval_transform)

    def predict_dataset(self) -> Dataset[tuple[Tensor, str]]:
        if self.paths is None:
            raise ValueError("predict needs images: --data.path=<file or folder>")
        return ImageFiles([(path, path) for path in self.paths], self.eval_transform)


class ImageFilesDataModule(ImageDataModule):
    """An `ImageDataModule` whose images are files.

    Args:
        parts: the samples of "train", "val" and "test".
        corrupt: "stop" at a corrupt image and name it, before training starts if its header is corrupt; or "replace"
            it by the next good one, with a warning. In validation and test that one then counts twice.
        max_corrupt: with "replace", the share of a part's images that may be corrupt; one more stops the run. All
            workers of a process share the count; each process of a distributed run has its own.
        kwargs: arguments of `ImageDataModule`.

    Raises:
        ValueError: an invalid `corrupt` or `max_corrupt`, or whatever `ImageDataModule` raises.
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
        check_corrupt(corrupt, max_corrupt)
        if corrupt == "stop":
            check_headers([path for samples in parts.values() for path, _ in samples])
        self.parts, self.corrupt, self.max_corrupt = parts, corrupt, max_corrupt

    def images(self, part: str, transform: v2.Transform) -> ImageFiles[int]:
        return ImageFiles(self.parts[part], transform, self.corrupt, self.max_corrupt)
