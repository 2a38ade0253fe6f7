"""What the video data modules share: clips of T frames, their transforms, and the views for evaluation.

Shape suffixes: V views, C channels, T frames, H and W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from nonlocal_nets.data.base import DataModule, Files, Target, check_corrupt, check_minimum, find_files
from nonlocal_nets.data.decoding import VIDEO_EXTENSIONS, CorruptVideoError, open_video

MEAN = (0.45, 0.45, 0.45)  # of the released code: (x - 114.75) / 57.375 for pixels up to 255
STD = (0.225, 0.225, 0.225)
SMALL: dict[str, Any] = {  # arguments of VideoDataModule for the videos that `fake` writes
    "frames": 8,
    "stride": 2,
    "image_size": 32,
    "scale": (32, 40),
    "test_clips": 2,
    "test_crops": 2,
    "test_size": 32,
    "num_workers": 0,
}

Sample = tuple[str, int]  # path and label


class Clips(Files[Target]):
    """Sample k is one random clip of video k, (C, T, H, W), for training; or its views, (V, C, T, H, W), V >= 1.

    The views are `clips` x `crops`: all crops of the first clip, then those of the second.

    Args:
        samples, corrupt, max_corrupt: see `Files`.
        frames: T, the number of frames in a clip.
        stride: distance between consecutive frames of a clip, in frames of the video.
        transform: (T, C, H, W), uint8, -> (T, C, H, W), float32.
        clips: how many clips, at even distances from the first possible one to the last, or only the middle one;
            None: one random clip, without the axis of views.
        crops: how many square crops of each clip, see `crop`; None: the whole frame.
        rate: frames per second of a video that is a folder of images.
    """

    noun = "videos"

    def __init__(
        self,
        samples: Sequence[tuple[str, Target]],
        frames: int,
        stride: int,
        transform: Any,
        clips: int | None = None,
        crops: int | None = None,
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
        rate: float = 24.0,
    ) -> None:
        super().__init__(samples, corrupt, max_corrupt)
        self.frames, self.stride, self.transform, self.rate = frames, stride, transform, rate
        self.clips, self.crops = clips, crops

    def read(self, path: str, target: Target) -> tuple[Tensor, Any]:
        span = (self.frames - 1) * self.stride + 1
        with open_video(path, self.rate) as video:
            room = len(video) - span
            if room < 0:
                raise CorruptVideoError(f"{len(video)} frames, too short for {self.frames} with stride {self.stride}")
            starts = [int(torch.randint(room + 1, ()))] if self.clips is None else _evenly_spaced(room, self.clips)
            numbers = [start + k * self.stride for start in starts for k in range(self.frames)]
            distinct = sorted(set(numbers))
            pixels = video.frames(distinct)
            begin, end = starts[0] / video.rate, (starts[0] + span) / video.rate
        frames_TCHW = torch.from_numpy(pixels[np.searchsorted(distinct, numbers)]).permute(0, 3, 1, 2)
        views = [crop(self.transform(clip), self.crops) for clip in torch.split(frames_TCHW, self.frames)]
        views_VCTHW = torch.cat(views).transpose(1, 2).contiguous()
        if self.clips is None:
            return views_VCTHW[0], self.label(target, begin, end)
        return views_VCTHW, self.label(target, 0.0, math.inf)

    def label(self, target: Target, begin: float, end: float) -> Any:
        """The label of a clip from begin to end, in seconds; for views it is that of the whole video, 0 to infinity."""
        return target


def _evenly_spaced(room: int, count: int) -> list[int]:
    """Positions from 0 to `room`, rounded down; a single one is in the middle."""
    if count == 1:
        return [room // 2]
    return [room * k // (count - 1) for k in range(count)]


def crop(frames: Tensor, crops: int | None) -> Tensor:
    """(T, C, H, W) -> (V, T, C, S, S): squares of side S = min(H, W) at even distances from one end to the other.

    A single square is in the middle; `crops` None gives the whole frames, (1, T, C, H, W).
    """
    if crops is None:
        return frames[None]
    height, width = frames.shape[-2:]
    side = min(height, width)
    starts = _evenly_spaced(max(height, width) - side, crops)
    return torch.stack([F.crop(frames, *((k, 0) if height > width else (0, k)), side, side) for k in starts])


class VideoDataModule(DataModule):
    """Normalised clips (B, 3, T, H, W), float32, for training; views (B, V, 3, T, H, W) for the rest; and labels.

    Training takes one random clip of each video, resizes its shorter side to a random length in `scale`, takes a random
    square crop and mirrors it with probability 0.5. Validation has a single view, V = 1: the central crop of the middle
    clip. Test and predict have V = `test_clips` x `test_crops` views, whose probabilities the task averages. The
    released code takes 10 x 3 views of 256 pixels, the paper 10 x "frame", the whole frame.

    Args:
        class_names: in the order of the labels.
        parts: paths and targets of "train", "val" and "test".
        frames: T, the number of frames in a clip.
        stride: distance between consecutive frames of a clip, in frames of the video: 32 x 2 spans 64 of them.
        image_size: side of the square crop in training and validation, in pixels.
        scale: smallest and largest length of the shorter side in training, in pixels; validation takes the smallest.
        flip: whether training mirrors clips left to right with probability 0.5.
        test_clips: clips per video in test and predict, at even distances from its start to its end.
        test_crops: square crops of each of these clips, or "frame" for the whole frame.
        test_size: length of the shorter side in test and predict, in pixels.
        batch_size: samples per batch in training and validation. In training an incomplete last batch is dropped.
        test_batch_size: videos per batch in test and predict; must be 1 for test_crops="frame", as frame sizes differ.
        num_workers: number of processes that decode; 0 decodes in the main process.
        mean: means of red, green and blue in [0, 1] for the normalisation (x - mean) / std; the released code's.
        std: standard deviations for the normalisation, as for mean.
        corrupt: what to do with a video that is damaged, empty, without pictures or too short: "stop" and name it, or
            "replace" it by the next good one, with a warning. In validation and test that one then counts twice.
        max_corrupt: with "replace", the share of a part's videos that may be corrupt; one more stops the run. All
            workers of a process share the count; each process of a distributed run has its own.
        path: for `predict`, a video or a folder that is searched for videos. A corrupt one always stops `predict`.

    Raises:
        ValueError: an invalid size, share or path.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        parts: Mapping[str, Sequence[tuple[str, Any]]],
        frames: int = 8,
        stride: int = 8,
        image_size: int = 224,
        scale: tuple[int, int] = (256, 320),
        flip: bool = True,
        test_clips: int = 10,
        test_crops: int | Literal["frame"] = 3,
        test_size: int = 256,
        batch_size: int = 8,
        test_batch_size: int = 1,
        num_workers: int = 0,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = STD,
        corrupt: Literal["stop", "replace"] = "stop",
        max_corrupt: float = 0.01,
        path: str | None = None,
    ) -> None:
        minimum = {"frames": (frames, 1), "stride": (stride, 1), "image_size": (image_size, 1)}
        minimum |= {"test_clips": (test_clips, 1), "test_size": (test_size, 1), "test_batch_size": (test_batch_size, 1)}
        check_minimum(minimum)
        if test_crops != "frame" and not (isinstance(test_crops, int) and test_crops >= 1):
            raise ValueError(f"test_crops must be an int of at least 1 or 'frame', got {test_crops!r}")
        if not image_size <= scale[0] <= scale[1]:
            raise ValueError(f"scale must be two rising lengths of at least image_size={image_size}, got {scale}")
        if test_crops == "frame" and test_batch_size > 1:
            raise ValueError(f"test_crops='frame' needs test_batch_size=1, as sizes vary; got {test_batch_size}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be three numbers, std above 0; got {mean} and {std}")
        check_corrupt(corrupt, max_corrupt)
        super().__init__(class_names, (3, frames, image_size, image_size), batch_size, num_workers)
        self.parts, self.test_batch_size = parts, test_batch_size
        self.clip = {"frames": frames, "stride": stride, "corrupt": corrupt, "max_corrupt": max_corrupt}
        self.views: dict[str, dict[str, int | None]] = {
            "train": {"clips": None, "crops": None},
            "val": {"clips": 1, "crops": None},
            "test": {"clips": test_clips, "crops": None if test_crops == "frame" else test_crops},
        }
        self.normalisation = {"mean": list(mean), "std": list(std)}
        to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        jitter = [v2.RandomShortestSize(list(range(scale[0], scale[1] + 1))), v2.RandomCrop(image_size)]
        mirror = [v2.RandomHorizontalFlip()] if flip else []
        self.transforms = {
            "train": v2.Compose([*jitter, *mirror, *to_float]),
            "val": v2.Compose([v2.Resize(scale[0]), v2.CenterCrop(image_size), *to_float]),
            "test": v2.Compose([v2.Resize(test_size), *to_float]),
        }
        self.paths = None if path is None else find_files(path, VIDEO_EXTENSIONS, "video")

    def dataset(self, part: str) -> Dataset[tuple[Tensor, Any]]:
        return self.clips(self.parts[part], part)

    def clips(self, samples: Sequence[tuple[str, Any]], part: str) -> Clips[Any]:
        """The clips of a part; overridden by data sets whose labels depend on time."""
        return Clips(samples, **self.arguments(part))

    def arguments(self, part: str) -> dict[str, Any]:
        """The arguments of `Clips` for a part."""
        return {"transform": self.transforms[part], **self.clip, **self.views[part]}

    def predict_dataset(self) -> Dataset[tuple[Tensor, str]]:
        if self.paths is None:
            raise ValueError("predict needs videos: --data.path=<file or folder>")
        return Clips([(path, path) for path in self.paths], **self.arguments("test") | {"corrupt": "stop"})
