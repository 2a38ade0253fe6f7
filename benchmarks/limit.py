"""Table "limit": how near the block comes to the machine's rate of matrix products."""

import math

from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import PAPER, Case
from benchmarks.contestants import make_block
from benchmarks.measure import MODES, Call, Target, in_turn, markdown, note, ratio
from nonlocal_nets import PAIRWISE

PRODUCTS = ("mm", "attention", "gemm")  # in the names of operators and kernels


def table(target: Target, seconds: float = 1.0) -> str:
    """The achieved share of the matrix-product rate, counting necessary multiply-adds only.

    "bytes" is the time that a copy of as many bytes as the input and output (and their gradients) have would take, as a
    share of the block's time.
    """
    side = 2048 if target.device == "cpu" else 8192
    matrix, much = target.random((side, side)), target.random((64 * 2**20 // target.dtype.itemsize,))
    others: dict[str, Call] = {"product": lambda _x: matrix @ matrix, "copy": lambda _x: much.clone()}
    head = ["function", "case", "batch", "forward", "bytes", "forward + backward", "bytes", "in products", "launches"]
    rows = [_row(case, name, others, side, much.nbytes, seconds, target) for case in PAPER for name in PAIRWISE]
    return markdown(head, rows)


def _row(
    case: Case, name: str, others: dict[str, Call], side: int, copied: int, seconds: float, target: Target
) -> list[object]:
    note(f"limit: {case} {name}")
    block = make_block(case.channels, {"pairwise": name, "pool": case.pool}).to(target.device, target.dtype)
    shape = (case.batch, case.channels, *case.size)
    multiply_adds = case.batch * block.multiply_adds(case.size)
    moved = 2 * math.prod(shape) * target.dtype.itemsize
    cells: list[object] = []
    for mode, factor in (("forward", 1), ("forward + backward", 3)):
        times = in_turn({"block": MODES[mode](block), **others}, shape, seconds, target=target)
        cells.append(ratio([t * factor * multiply_adds / side**3 for t in times["product"]], times["block"]))
        copies = [t * factor * moved / (2 * copied) for t in times["copy"]]  # a copy reads and writes
        cells.append(f"{ratio(copies, times['block']).median:.3f}")
    step = MODES["forward + backward"](block)
    return [name, case.name, case.batch, *cells, *where(step, target.random(shape), target)]


def where(call: Call, x: Tensor, target: Target) -> tuple[str, int]:
    """The share of a call's operator time that matrix products take, and the number of operators."""
    activity = ProfilerActivity.CPU if target.device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler:
        call(x)
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU or target.device != "cpu"]
    field = "self_cpu_time_total" if target.device == "cpu" else "self_device_time_total"
    times = {e.key: (getattr(e, field), e.count) for e in events if getattr(e, field)}
    products = sum(t for name, (t, _) in times.items() if any(part in name for part in PRODUCTS))
    launches = sum(count for name, (_, count) in times.items() if name.startswith("aten::") or target.device != "cpu")
    return f"{products / sum(t for t, _ in times.values()):.2f}", launches
