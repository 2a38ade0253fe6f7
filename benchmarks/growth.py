"""Table "growth": log-log slopes of time and peak memory against N."""

import math
import statistics

from benchmarks.contestants import make_block
from benchmarks.measure import MODES, Call, Target, in_turn, markdown, note, peak_memory
from nonlocal_nets import PAIRWISE

SIZES = [4096 * 2**k for k in range(5)]


def table(target: Target, rounds: int = 3) -> str:
    """Forward + backward with C = 64, N from 4,096 to 65,536; a softmax is linear in memory only."""
    rows = []
    for name in PAIRWISE:
        call, _ = _block_call(name, 1, target)
        linear = name in ("dot_product", "concatenation")
        times: dict[int, list[float]] = {n: [] for n in (SIZES if linear else SIZES[:-1])}
        for _ in range(rounds if linear else 1):  # the sizes in turn
            for n in times:
                note(f"growth: {name} {n}")
                times[n] += in_turn({"ours": call}, (1, 64, n), 0, least=5 if linear else 1, target=target)["ours"]
        medians = {n: statistics.median(times[n]) for n in times}
        memory = [peak_memory(_block_call, name, n, target=target) for n in SIZES]
        milliseconds = [f"{medians[n] * 1e3:.0f} ms, " if n in medians else "" for n in SIZES]
        cells = [f"{ms}{mib:.0f} MiB" for ms, mib in zip(milliseconds, memory, strict=True)]
        slopes = slope(list(medians), list(medians.values())), slope(SIZES, memory)
        rows.append([name, *cells, *(f"{value:.2f}" for value in slopes)])
    return markdown(["function", *(f"N = {n:,}" for n in SIZES), "slope of time", "slope of memory"], rows)


def _block_call(name: str, n: int, target: Target) -> tuple[Call, tuple[int, ...]]:
    block = make_block(64, {"pairwise": name}).to(target.device, target.dtype)
    return MODES["forward + backward"](block), (1, 64, n)


def slope(x: list[int], y: list[float]) -> float:
    """The slope of the straight line through log y against log x."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope
