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

from nonlocal_nets.data.base import CorruptFileError, DataModule, Files, Target, check_corrupt, check_least, find_files

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Sample = tuple[str, int]  # path and label
CHECKED = 5000  # files that are looked into before any work starts; a second or so


class CorruptImageError(CorruptFileError):
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


class ImageFiles(Files[Target]):
    """Sample k is image k (C, H, W) and its target.

    Args:
        samples, corrupt, max_corrupt: of `Files`.
        transform: of the RGB image.
    """

    what = "images"

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
        check_least({"image_size": (image_size, 1)})
        super().__init__(class_names, (3, image_size, image_size), batch_size, num_workers)
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be above 0 and at most 1, got {crop_fraction}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers, std above 0; got {mean} and {std}")
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
        check_corrupt(corrupt, max_corrupt)
        if corrupt == "stop":
            check_headers([path for samples in parts.values() for path, _ in samples])
        self.parts, self.corrupt, self.max_corrupt = parts, corrupt, max_corrupt

    def images(self, part: str, transform: v2.Transform) -> ImageFiles[int]:
        return ImageFiles(self.parts[part], transform, self.corrupt, self.max_corrupt)
