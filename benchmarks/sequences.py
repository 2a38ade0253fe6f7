"""Table "sequences": training the 1-D network with a block on 16,384 positions without pooling."""

from torch import Tensor, nn

import nonlocal_nets as nln
from benchmarks.measure import MODES, Call, Target, in_turn, markdown, peak_memory, ratio
from nonlocal_nets.nn.backbones.sequence import SequenceResNet

SIGNAL = (1, 1, 16_384)
FUNCTIONS = ("none", *nln.PAIRWISE)


def table(target: Target, seconds: float = 60.0) -> str:
    """Forward + backward of one signal: time over that without a block, and peak memory."""
    calls: dict[str, Call] = {name: _step(name, target)[0] for name in FUNCTIONS}
    times = in_turn(calls, SIGNAL, seconds, least=3, target=target)
    rows = []
    for name, mine in times.items():
        memory = f"{peak_memory(_step, name, target=target):.0f}"
        rows.append([name, f"{len(mine) / sum(mine):.2f}", ratio(mine, times["none"]), memory])
    return markdown(["block", "signals per second", "time, times without a block", "MiB"], rows)


def _step(name: str, target: Target) -> tuple[Call, tuple[int, ...]]:
    network: nn.Module = SequenceResNet(num_classes=10, in_chans=1)
    if name != "none":
        example: Tensor = Target().random((1, 1, 64))
        nln.insert(network, {"layer2": 1}, example=example, pairwise=name)
    return MODES["forward + backward"](network.to(target.device, target.dtype).train()), SIGNAL
