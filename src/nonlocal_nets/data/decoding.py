"""Frames of a video by number, from a file decoded by PyAV or from a folder of images.

PyAV was chosen by measurement (benchmarks/README.md): its wheels include FFmpeg, and it raises an error for damaged
data, for which the faster decord and OpenCV silently return wrong frames. No container has checksums, though. Damaged
data that happen to decode to a valid picture go unnoticed, as most damage to VP9 does. And a damaged packet header,
except in MP4, loses the packet silently, so that the numbers of all later frames are one too low.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torchvision.datasets.folder import IMG_EXTENSIONS

from nonlocal_nets.data.base import CorruptFileError, one_line
from nonlocal_nets.data.images import read_image

VIDEO_EXTENSIONS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")
QUANTISER_2 = {"flags": "+qscale", "global_quality": "236"}  # for FFmpeg's older codecs: 2 x FF_QP2LAMBDA = 236
Frames = npt.NDArray[np.uint8]


class CorruptVideoError(CorruptFileError):
    """A file without a readable clip, or too many of them. The message is one line and names the file."""


class Video(Protocol):
    """An open video; its length is the number of frames."""

    rate: float  # frames per second

    def __len__(self) -> int: ...

    def frames(self, numbers: Sequence[int]) -> Frames:
        """RGB pixels (T, H, W, 3), uint8, of the frames with these numbers, which start at 0 and must not decrease."""


def check_numbers(numbers: Sequence[int], count: int) -> None:
    """Raise a ValueError for a number that a video of `count` frames does not have."""
    if min(numbers) < 0 or max(numbers) >= count:
        raise ValueError(f"frames {min(numbers)} to {max(numbers)} requested, but it has {count}")


@contextmanager
def open_video(path: str | Path, rate: float = 24.0) -> Iterator[Video]:
    """Open a video file, or a folder with one image per frame whose names sort chronologically.

    Args:
        path: the file or the folder.
        rate: frames per second of a folder.

    Raises:
        CorruptVideoError: the video cannot be opened, has no frames, or the requested frames cannot be decoded.
    """
    import av  # takes half a second

    try:
        if Path(path).is_dir():
            yield FrameFolder(Path(path), rate)
        else:
            with av.open(f"file:{path}") as container:  # FFmpeg would take 12:30.mp4 for a URL
                yield VideoFile(container)
    except (av.FFmpegError, OSError, ValueError) as error:  # CorruptVideoError is a ValueError
        raise CorruptVideoError(f"corrupt video {path}: {one_line(error)}") from error


class FrameFolder:
    """A folder with one image per frame, as published for Charades and others."""

    def __init__(self, path: Path, rate: float) -> None:
        self.paths = sorted(file for file in path.iterdir() if file.suffix.lower() in IMG_EXTENSIONS)
        self.rate = rate
        if not self.paths:
            raise CorruptVideoError("a folder without images")

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self, numbers: Sequence[int]) -> Frames:
        check_numbers(numbers, len(self))
        found = {number: np.asarray(read_image(str(self.paths[number]))) for number in set(numbers)}
        if len({frame.shape for frame in found.values()}) > 1:
            raise CorruptVideoError("frames of different sizes")
        return np.stack([found[number] for number in numbers])


class VideoFile:
    """The first video stream of an open container; its frames are upright even if a phone recorded them rotated.

    Frames are numbered in the order of presentation. Opening the file reads the times of all packets without decoding
    them, so that a frame is found by its time. Where times are unreliable, as in AVI files with B-frames, frames are
    counted from the start.
    """

    def __init__(self, container: Any) -> None:
        if not container.streams.video:
            raise CorruptVideoError("no video stream")
        self.container, self.stream = container, container.streams.video[0]
        self.stream.thread_type = "NONE"  # the workers of the data loader run in parallel already
        self.rate = float(self.stream.average_rate or 0) or 25.0
        stored, first, truncated = [], None, False  # only pts and dts: packets would keep the file in memory
        for packet in container.demux():
            if packet.size:
                truncated = packet.is_corrupt  # if the last one is, the file ends in the middle of it
                if packet.stream_index == self.stream.index:
                    first = packet.pts if first is None and packet.is_keyframe else first
                    if not packet.is_discard:
                        stored.append((packet.pts, packet.dts))
        if not stored:
            raise CorruptVideoError("no frames")
        self.turn: tuple[bool, int, int] | None = None  # read from the first frame
        self.times, self.begin = self._times(stored, first), stored[0][1] or 0
        self.count = len(self.times or stored)
        if truncated:
            self.count = max(self.count, self.stream.frames)  # according to the index, if the file has one
            if self.times:  # frames presented after the last packet's dts may have been stored after it, and be lost
                self.times = [time for time in self.times if time < (stored[-1][1] or 0)]

    def _times(self, stored: list[tuple[int | None, int | None]], first: int | None) -> list[int] | None:
        """The sorted presentation times from the first keyframe on; None if the file does not have them all."""
        times = [pts for pts, _ in stored if pts is not None]
        if len(set(times)) < len(stored):
            return None
        # These formats do not store every pts. FFmpeg guesses them, and is right only if there is no reordering.
        if self.container.format.name in ("avi", "mpeg") and times != [dts for _, dts in stored]:
            return None
        # A video cut from another one may begin with frames that depend on lost ones.
        return sorted(time for time in times if first is None or time >= first)

    def __len__(self) -> int:
        return self.count

    def frames(self, numbers: Sequence[int]) -> Frames:
        check_numbers(numbers, self.count)
        requested, found = set(numbers), {}
        if self.times is None:
            found = self._by_count(requested)
        elif max(requested) < len(self.times):
            found = self._by_time(requested, self.times, self.times[min(requested)])
            if len(found) < len(requested):  # seeking failed: frames depend on earlier ones, or the keyframe is later
                found = self._by_time(requested, self.times, self.begin)
        missing = requested - found.keys()
        if missing:
            raise CorruptVideoError(f"frame {max(missing)} of {self.count} is missing")
        return np.stack([found[number] for number in numbers])

    def _by_time(self, requested: set[int], times: list[int], start: int) -> dict[int, Frames]:
        """Decode from the last keyframe before the time `start`, until a frame does not have the expected time."""
        found: dict[int, Frames] = {}
        self.container.seek(start, stream=self.stream)
        number = None
        for frame in self.container.decode(self.stream):
            if number is None and start != self.begin and not frame.key_frame:
                continue  # presented before the keyframe, and depends on frames before it
            if frame.pts is None:
                break
            if frame.pts < times[0]:
                continue
            number = bisect_left(times, frame.pts) if number is None else number + 1
            if number > max(requested) or number >= len(times) or times[number] != frame.pts:
                break
            check_intact(frame)
            if number in requested:
                found[number] = self._pixels(frame)
            if len(found) == len(requested):
                break
        return found

    def _by_count(self, requested: set[int]) -> dict[int, Frames]:
        """Decode from the start and count."""
        self.container.seek(0, stream=self.stream)
        found: dict[int, Frames] = {}
        for number, frame in enumerate(self.container.decode(self.stream)):
            check_intact(frame)
            if number in requested:
                found[number] = self._pixels(frame)
            if len(found) == len(requested):
                break
        return found

    def _pixels(self, frame: Any) -> Frames:
        """RGB (H, W, 3), upright."""
        if self.turn is None:  # of one frame only: accessing side data creates a cycle that keeps the frame alive
            self.turn = turn(frame)
        swapped, down, across = self.turn
        # one thread: a forked worker does not have the threads of its parent, and would wait for them forever
        pixels: Frames = frame.to_ndarray(format="rgb24", threads=1)
        return (pixels.swapaxes(0, 1) if swapped else pixels)[::down, ::across]


def check_intact(frame: Any) -> None:
    """Raise for a damaged frame, requested or not: FFmpeg does not mark the frames that depend on it."""
    if frame.is_corrupt:
        when = "" if frame.time is None else f" at {frame.time:.2f} s"
        raise CorruptVideoError(f"frame{when} is damaged")


def turn(frame: Any) -> tuple[bool, int, int]:
    """How to turn a frame upright: phones store what the sensor records, and a matrix for the player to apply.

    As FFmpeg's autorotation, for quarter turns and mirrors; other angles are rounded to the nearest of these.

    Returns:
        Whether to swap rows and columns, and then the steps, 1 or -1, through rows and columns.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")  # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = (1, 0, 0, 0, 1) if matrix is None else np.frombuffer(matrix, np.int32)[:5].tolist()
    swapped = abs(b) > abs(a)
    across, down = (c, b) if swapped else (a, d)
    return swapped, -1 if down < 0 else 1, -1 if across < 0 else 1


def write_video(path: str | Path, frames: Frames, rate: int = 25, codec: str = "libx264") -> None:
    """Write frames, uint8 (T, H, W, 3), as a video file, with little loss; used by `fake`."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10"} if codec == "libx264" else QUANTISER_2
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def plain_frames(count: int, label: int, k: int) -> Frames:
    """Frames for `fake`, uint8 (T, 32, 48, 3), whose colour shows the class, with a moving bar."""
    frames = np.full((count, 32, 48, 3), 20 * k, np.uint8)
    frames[..., label % 3] = 200
    for t in range(count):
        frames[t, :, 2 * t : 2 * t + 4] = 255
    return frames
