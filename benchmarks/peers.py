"""Table "peers": how much longer each peer takes than we do, and its peak memory."""

import math
from typing import Any

import torch
from torch import nn

from benchmarks.cases import CASES, Case
from benchmarks.contestants import contestants, make_block, map_bytes
from benchmarks.measure import MODES, Call, Target, in_turn, markdown, note, peak_memory, ratio
from nonlocal_nets import PAIRWISE, NonLocalBlock

LARGEST_MAP = 4 * 2**30  # bytes; a peer with a larger map is not measured
LONGEST = 8e10  # multiply-adds of a call on the CPU; a case with more is left out
LONGEST_PEER = 2e11  # the same for a peer, whose cell then says so
PEERS = ("equation", "plain", "timm", "mmcv", "attention")


def table(target: Target, seconds: float = 0.3) -> str:
    """A row per case, block and mode; 2.00 means twice our time."""
    head = ["function", "case", "batch", "mode", *(f"{name}, time" for name in PEERS)]
    head += ["ours, MiB", *(f"{name}, MiB" for name in PEERS)]
    rows = []
    for case in CASES:
        for arguments in variants(case):
            for mode in MODES:
                rows.append(compare(case, arguments, mode, seconds, target))
                note(" | ".join(rows[-1]))  # the table is printed at the end, after an hour
    return markdown(head, [row for row in rows if row])


def variants(case: Case) -> list[dict[str, Any]]:
    """The arguments of the blocks that a case is measured with: the four functions, and what torch's attention does."""
    pools = {"pool": case.pool}
    rows = [{"pairwise": name, **pools} for name in PAIRWISE]
    if case.pool is not None:  # mmcv pools after phi and g
        rows += [{"pairwise": name, **pools, "pool_position": "embedding"} for name in PAIRWISE if name != "gaussian"]
    return [*rows, {"pairwise": "embedded_gaussian", **pools, "scale": True, "inner_channels": case.channels}]


def compare(case: Case, arguments: dict[str, Any], mode: str, seconds: float, target: Target) -> list[str]:
    """One row, empty if the case takes too long."""
    block = make_block(case.channels, arguments)
    note(f"{case} {arguments} {mode}")
    multiply_adds = case.batch * block.multiply_adds(case.size) * (3 if mode != "forward" else 1)
    if target.device == "cpu" and multiply_adds > LONGEST:
        return []
    calls, cells = _calls(case, block, mode, target)
    block.to(*target)  # `check_equal` left it in float32 on the CPU
    times = in_turn(calls, (case.batch, case.channels, *case.size), seconds * len(calls), least=3, target=target)
    cells |= {name: str(ratio(times[name], times["ours"])) for name in calls if name != "ours"}
    memory = {}
    if mode != "forward":  # which takes less
        memory = {name: peak_memory(_peer_call, case, arguments, mode, name, target=target) for name in calls}
    what = arguments["pairwise"] + (", d = C, scaled" if "scale" in arguments else "")
    where = case.name + (" after phi and g" if "pool_position" in arguments else "")
    numbers = [f"{memory[name]:.0f}" if name in memory else "" for name in ("ours", *PEERS)]
    return [what, where, str(case.batch), mode, *(cells.get(name, "") for name in PEERS), *numbers]


def _calls(case: Case, block: NonLocalBlock, mode: str, target: Target) -> tuple[dict[str, Call], dict[str, str]]:
    """The contestants that can be measured, and what the table says of the others."""
    calls: dict[str, Call] = {}
    cells: dict[str, str] = {}
    for name, module in contestants(block, case.size).items():
        size = map_bytes(name, block, case.batch, case.size)
        if size > LARGEST_MAP:
            cells[name] = f"needs {size / 2**30:.0f} GiB"
            continue
        longest = LONGEST_PEER if target.device == "cpu" and name != "ours" else math.inf
        if case.batch * peer_multiply_adds(block, case.size, mode) > longest:
            cells[name] = "not measured"
            continue
        check_equal(module, block, case)
        call = MODES[mode](module.to(*target))
        try:
            call(target.random((case.batch, case.channels, *case.size)))
        except RuntimeError as error:
            cells[name] = "fails"
            note(f"{name} fails: {str(error).splitlines()[0]}")
            continue
        calls[name] = call
    return calls, cells


def check_equal(module: nn.Module, block: nn.Module, case: Case) -> None:
    """Equal outputs for a small input, in float64: a norm of nearly equal values amplifies the rounding of float32."""
    x = torch.randn(2, case.channels, *(min(8, size) for size in case.size), dtype=torch.float64)
    with torch.no_grad():
        expected = block.to("cpu", torch.float64)(x)
        torch.testing.assert_close(module.to("cpu", torch.float64)(x), expected, rtol=1e-7, atol=1e-7)
    block.to(torch.float32)
    module.to(torch.float32)


def peer_multiply_adds(block: NonLocalBlock, size: tuple[int, ...], mode: str) -> int:
    """Multiply-adds of the map and of its product with g."""
    n, m = math.prod(size), math.prod(block.key_size(size))
    return n * m * (block.pairwise.width + block.inner_channels) * (3 if mode != "forward" else 1)


def _peer_call(
    case: Case, arguments: dict[str, Any], mode: str, name: str, target: Target
) -> tuple[Call, tuple[int, ...]]:
    module = contestants(make_block(case.channels, arguments), case.size)[name].to(target.device, target.dtype)
    return MODES[mode](module), (case.batch, case.channels, *case.size)
