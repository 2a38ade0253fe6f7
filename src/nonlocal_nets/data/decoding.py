"""Frames of a video by their number: of a file, by PyAV, or of a folder of images.

PyAV was chosen by measurement (benchmarks/README.md): its wheels bring FFmpeg, and damaged data are an error in it,
where the faster decord and OpenCV give wrong frames without a word.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torchvision.datasets.folder import IMG_EXTENSIONS

from nonlocal_nets.data.base import CorruptFileError
from nonlocal_nets.data.images import read_image

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")
Frames = npt.NDArray[np.uint8]


class CorruptVideoError(CorruptFileError):
    """A file without a readable clip, or too many of them. The message names the file, in one line."""


class Video(Protocol):
    """What is opened: so many frames, so many a second."""

    rate: float

    def __len__(self) -> int: ...

    def frames(self, numbers: Sequence[int]) -> Frames:
        """uint8 (T, H, W, 3), RGB, of the frames of these numbers, from 0, in rising order; some may come again."""


@contextmanager
def open_video(path: str | Path, rate: float = 24.0) -> Iterator[Video]:
    """A video file, or a folder with one image a frame, whose names sort in the order of time.

    Args:
        path: the file or the folder.
        rate: frames a second of a folder.

    Raises:
        CorruptVideoError: it cannot be opened, has no frames, or those that are asked for cannot be decoded.
    """
    import av  # takes half a second

    try:
        if Path(path).is_dir():
            yield FrameFolder(Path(path), rate)
        else:
            with av.open(str(path)) as container:
                yield VideoFile(container)
    except (av.FFmpegError, OSError, ValueError) as error:  # what is corrupt is a ValueError too
        raise CorruptVideoError(f"corrupt video {path}: {' '.join(str(error).split())}") from error


class FrameFolder:
    """A folder with one image a frame, as Charades and others are published."""

    def __init__(self, path: Path, rate: float) -> None:
        self.paths = sorted(file for file in path.iterdir() if file.suffix.lower() in IMG_EXTENSIONS)
        self.rate = rate
        if not self.paths:
            raise CorruptVideoError("a folder without images")

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self, numbers: Sequence[int]) -> Frames:
        found = {number: np.asarray(read_image(str(self.paths[number]))) for number in set(numbers)}
        if len({frame.shape for frame in found.values()}) > 1:
            raise CorruptVideoError("frames of different sizes")
        return np.stack([found[number] for number in numbers])


class VideoFile:
    """The first video stream of an open container.

    A frame's number is its place in the order of presentation. All packets tell their times when the file is opened,
    without being decoded; where they do not, as in AVI files with B-frames, frames are counted from the start.
    """

    def __init__(self, container: Any) -> None:
        if not container.streams.video:
            raise CorruptVideoError("no video stream")
        self.container, self.stream = container, container.streams.video[0]
        self.stream.thread_type = "NONE"  # the loader has workers
        self.rate = float(self.stream.average_rate or 0) or 25.0
        packets = [packet for packet in container.demux(self.stream) if packet.size and not packet.is_discard]
        times = sorted(packet.pts for packet in packets if packet.pts is not None)
        self.count, self.times = len(packets), times if len(times) == len(packets) else None
        if not packets:
            raise CorruptVideoError("no frames")

    def __len__(self) -> int:
        return self.count

    def frames(self, numbers: Sequence[int]) -> Frames:
        if max(numbers) >= self.count or min(numbers) < 0:
            raise ValueError(f"frames {min(numbers)} to {max(numbers)} of {self.count}")
        found = self._by_time(set(numbers)) if self.times else {}
        if len(found) < len(set(numbers)):
            found = self._by_count(set(numbers))
        missing = sorted(set(numbers) - found.keys())
        if missing:
            raise CorruptVideoError(f"no frame {missing[0]}, though it should have {self.count}")
        return np.stack([found[number] for number in numbers])

    def _by_time(self, wanted: set[int]) -> dict[int, Frames]:
        """From the last keyframe before the first frame on."""
        assert self.times is not None
        times = {self.times[number]: number for number in wanted}
        self.container.seek(min(times), stream=self.stream)
        found: dict[int, Frames] = {}
        for frame in self.container.decode(self.stream):
            if frame.pts in times:
                found[times[frame.pts]] = _rgb(frame)
            if len(found) == len(wanted) or (frame.pts is not None and frame.pts > max(times)):
                break
        return found

    def _by_count(self, wanted: set[int]) -> dict[int, Frames]:
        """From the start on."""
        self.container.seek(0, stream=self.stream)
        found: dict[int, Frames] = {}
        for number, frame in enumerate(self.container.decode(self.stream)):
            if number in wanted:
                found[number] = _rgb(frame)
            if len(found) == len(wanted):
                break
        return found


def _rgb(frame: Any) -> Frames:
    if frame.is_corrupt:
        raise CorruptVideoError(f"frame at {frame.time:.2f} s is damaged")
    array: Frames = frame.to_ndarray(format="rgb24")
    return array


def write_video(path: str | Path, frames: Frames, rate: int = 25, codec: str = "libx264") -> None:
    """Write frames, uint8 (T, H, W, 3), as a video file, nearly without loss: the small ones of `fake`."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10"} if codec == "libx264" else {"qscale": "2"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
