"""Table "video": training non-local C2D and I3D beside torchvision's r3d_18."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import r3d_18

import nonlocal_nets as nln
from benchmarks.measure import MODES, Call, Target, in_turn, markdown, peak_memory, ratio

FRAMES = 8
CLIP = (2, 3, FRAMES, 112, 112)
SWITCHES: dict[str, str] = {"checkpointing": "checkpointing", "channels_last_3d": "layout", "bfloat16": ""}


def table(target: Target, seconds: float = 30.0) -> str:
    """Forward + backward of two clips of 8 frames of 112 x 112: multiply-adds per second over r3d_18's."""
    networks: dict[str, nn.Module] = {"r3d_18 (torchvision)": r3d_18(num_classes=400)}
    for arch in ("c2d", "i3d"):
        networks[f"NL {arch.upper()} R50"] = nln.video_resnet(arch, 50, "paper-5", "8x8")
    for name, arguments in SWITCHES.items():
        networks[f"NL I3D R50, {name}"] = switched(arguments)
    work = {name: _multiply_adds(network) for name, network in networks.items()}
    calls = {}
    for name, network in networks.items():
        dtype = torch.bfloat16 if "bfloat16" in name else None
        calls[name] = MODES["forward + backward"](_Autocast(network.to(target.device).train(), dtype))
    times = in_turn(calls, CLIP, seconds, least=3, target=target)
    base, ours = times["r3d_18 (torchvision)"], times["NL I3D R50"]
    rows = []
    for name, mine in times.items():
        share = work[name] / work["r3d_18 (torchvision)"]
        switch = str(ratio(mine, ours)) if "," in name else ""
        memory = f"{peak_memory(_step, name, target=target):.0f}"
        rate = ratio([share * t for t in base], mine)
        rows.append([name, f"{work[name] / 1e9:.1f}", f"{CLIP[0] * len(mine) / sum(mine):.2f}", rate, switch, memory])
    head = ["network", "10^9 multiply-adds per clip", "clips per second", "multiply-adds per second, times r3d_18's"]
    return markdown([*head, "time, times without the switch", "MiB"], rows)


def switched(switch: str) -> nn.Module:
    network = nln.video_resnet("i3d", 50, "paper-5", "8x8")
    network.checkpointing = switch == "checkpointing"
    return network.to(memory_format=torch.channels_last_3d) if switch == "layout" else network


def _step(name: str, target: Target) -> tuple[Call, tuple[int, ...]]:
    if name.startswith("r3d_18"):
        network: nn.Module = r3d_18(num_classes=400)
    elif name == "NL C2D R50":
        network = nln.video_resnet("c2d", 50, "paper-5", "8x8")
    else:
        network = switched(SWITCHES.get(name.partition(", ")[2], ""))
    dtype = torch.bfloat16 if "bfloat16" in name else None
    small = _Autocast(network.to(target.device).train(), dtype)
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
