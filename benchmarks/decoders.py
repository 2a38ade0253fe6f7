"""Table "decoders": PyAV, which we use, beside other decoders of video."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.measure import Call, Target, in_turn, markdown, note, ratio
from nonlocal_nets.data.decoding import open_video, write_video

FRAMES, STRIDE = 8, 8


def table(_target: Target, seconds: float = 20.0) -> str:
    """Clips per second of 8 frames with stride 8 from random positions, decoded and augmented by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, _frames(250, 240, 320))
        with open_video(path) as video:
            expected = video.frames([100, 108])
        calls: dict[str, Call] = {}
        for name, read in READERS.items():
            try:
                got = read(str(path), [100, 108])
            except (ImportError, RuntimeError, OSError) as error:
                note(f"{name} is left out: {str(error).splitlines()[0]}")
                continue
            apart = np.abs(got.astype(int) - expected).mean()
            assert apart < 3, f"{name} decodes other frames: {apart}"  # colour conversions round differently
            calls[name] = _clip_of(read, str(path))
        times = in_turn(calls, (1,), seconds, target=Target())
    torch.set_num_threads(threads)
    base = times["PyAV (ours)"]
    rows = [[name, f"{len(mine) / sum(mine):.0f}", ratio(base, mine)] for name, mine in times.items()]
    return markdown(["decoder", "clips per second", "times ours"], rows)


def _frames(count: int, height: int, width: int) -> np.ndarray:
    """A textured image that moves."""
    texture = np.random.default_rng(0).integers(256, size=(height // 8, width // 8 + count, 3), dtype=np.uint8)
    large = texture.repeat(8, 0).repeat(8, 1)
    return np.stack([large[:, 2 * k : 2 * k + width] for k in range(count)])


def _clip_of(read: Callable[[str, list[int]], np.ndarray], path: str) -> Call:
    jitter = [v2.RandomShortestSize(list(range(128, 161))), v2.RandomCrop(112), v2.RandomHorizontalFlip()]
    transform = v2.Compose([*jitter, v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.45] * 3, [0.225] * 3)])

    def call(_x: Tensor) -> Tensor:
        start = random.randrange(250 - (FRAMES - 1) * STRIDE)
        frames = read(path, [start + k * STRIDE for k in range(FRAMES)])
        clip: Tensor = transform(torch.from_numpy(frames).permute(0, 3, 1, 2))
        return clip

    return call


def _ours(path: str, numbers: list[int]) -> np.ndarray:
    with open_video(path) as video:
        return video.frames(numbers)


def _torchcodec(path: str, numbers: list[int]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(numbers).data.numpy()


def _decord(path: str, numbers: list[int]) -> np.ndarray:
    import decord

    return decord.VideoReader(path, num_threads=1).get_batch(numbers).asnumpy()


def _opencv(path: str, numbers: list[int]) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    video.set(cv2.CAP_PROP_POS_FRAMES, numbers[0])
    frames = []
    for number in range(numbers[0], numbers[-1] + 1):
        video.grab()
        if number in numbers:
            frames.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames)


READERS = {"PyAV (ours)": _ours, "torchcodec": _torchcodec, "decord": _decord, "OpenCV": _opencv}
