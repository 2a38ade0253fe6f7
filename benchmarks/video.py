"""Videos: decoders beside each other, and training beside torchvision's r3d_18."""

import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import r3d_18
from torchvision.transforms import v2

import nonlocal_nets as nln
from benchmarks.measure import MODES, Call, Place, in_turn, peak_memory, ratio, table
from nonlocal_nets.data.decoding import open_video, write_video

FRAMES, STRIDE = 8, 8
CLIP = (2, 3, FRAMES, 112, 112)


def decoders(_place: Place, seconds: float = 20.0) -> str:
    """Clips a second, of 8 frames with stride 8 at random places, decoded and augmented: over ours, one thread each."""
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
                print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            apart = np.abs(got.astype(int) - expected).mean()
            assert apart < 3, f"{name} gives other frames: {apart}"  # converters round differently
            calls[name] = _clip_of(read, str(path))
        times = in_turn(calls, (1,), seconds, place=Place())
    torch.set_num_threads(threads)
    base = times["PyAV (ours)"]
    rows = [[name, f"{len(mine) / sum(mine):.0f}", ratio(base, mine)] for name, mine in times.items()]
    return table(["decoder", "clips a second", "times ours"], rows)


def _frames(count: int, height: int, width: int) -> np.ndarray:
    """Something that moves, with texture."""
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


def video(place: Place, seconds: float = 30.0) -> str:
    """Training on two clips of 8 frames of 112 x 112: multiply-adds a second over r3d_18's, and what switches do."""
    networks: dict[str, nn.Module] = {"r3d_18 (torchvision)": r3d_18(num_classes=400)}
    for arch in ("c2d", "i3d"):
        networks[f"NL {arch.upper()} R50"] = nln.video_resnet(arch, 50, "paper-5", "8x8")
    for name, arguments in SWITCHES.items():
        networks[f"NL I3D R50, {name}"] = switched(arguments)
    work = {name: _multiply_adds(network) for name, network in networks.items()}
    calls = {}
    for name, network in networks.items():
        dtype = torch.bfloat16 if "bfloat16" in name else None
        calls[name] = MODES["forward + backward"](_Autocast(network.to(place.device).train(), dtype))
    times = in_turn(calls, CLIP, seconds, least=3, place=place)
    base, ours = times["r3d_18 (torchvision)"], times["NL I3D R50"]
    rows = []
    for name, mine in times.items():
        share = work[name] / work["r3d_18 (torchvision)"]
        switch = str(ratio(mine, ours)) if "," in name else ""
        memory = f"{peak_memory(_step, name, place=place):.0f}"
        rate = ratio([share * t for t in base], mine)
        rows.append([name, f"{work[name] / 1e9:.1f}", f"{CLIP[0] * len(mine) / sum(mine):.2f}", rate, switch, memory])
    head = ["network", "10^9 multiply-adds a clip", "clips a second", "multiply-adds a second, times r3d_18's"]
    return table([*head, "time, times without the switch", "MiB"], rows)


SWITCHES: dict[str, str] = {"checkpointing": "checkpointing", "channels_last_3d": "layout", "bfloat16": ""}


def switched(switch: str) -> nn.Module:
    network = nln.video_resnet("i3d", 50, "paper-5", "8x8")
    network.checkpointing = switch == "checkpointing"
    return network.to(memory_format=torch.channels_last_3d) if switch == "layout" else network


def _step(name: str, place: Place) -> tuple[Call, tuple[int, ...]]:
    if name.startswith("r3d_18"):
        network: nn.Module = r3d_18(num_classes=400)
    elif name == "NL C2D R50":
        network = nln.video_resnet("c2d", 50, "paper-5", "8x8")
    else:
        network = switched(SWITCHES.get(name.partition(", ")[2], ""))
    dtype = torch.bfloat16 if "bfloat16" in name else None
    small = _Autocast(network.to(place.device).train(), dtype)
    return MODES["forward + backward"](small), CLIP


class _Autocast(nn.Module):
    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < FRAMES:  # the small call that peak_memory makes first
            x = x.repeat(1, 1, 2, 8, 8)
        context: Any = torch.autocast(x.device.type, self.dtype) if self.dtype else nullcontext()
        with context:
            y: Tensor = self.network(x)
        return y.float()


def _multiply_adds(network: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *CLIP[1:]))
    return counter.get_total_flops() // 2
