"""Table "allocator": why the time per position grows above some N, and which settings of the allocator prevent it.

glibc returns tensors of more than 32 MiB to the system when they are freed, and every page of the next one is a page
fault. An allocator reads its settings when it starts, so that each one is measured in a new process.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.contestants import make_block
from benchmarks.measure import MODES, Target, markdown, note

SETTINGS = {
    "default": {},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},  # torch's own switch, which train.py sets
    "memory kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}
SIZES = (65_536, 262_144)


def table(_target: Target, rounds: int = 3) -> str:
    """Time and page faults per position, forward + backward, C = 64, with three settings of the allocator."""
    rows = []
    for name in ("dot_product", "concatenation"):
        measured: dict[str, list[dict[str, list[float]]]] = {setting: [] for setting in SETTINGS}
        for _ in range(rounds):
            for setting, variables in SETTINGS.items():
                note(f"allocator: {name} {setting}")
                child = [sys.executable, "-m", "benchmarks.allocator", name]
                done = subprocess.run(child, env=os.environ | variables, capture_output=True, check=True, text=True)
                measured[setting].append(json.loads(done.stdout))
        base = _median(measured["default"], SIZES[1], 0)
        for setting, runs in measured.items():
            small, large = (_median(runs, n, 0) for n in SIZES)
            faults = " and ".join(f"{_median(runs, n, 1):.2f}" for n in SIZES)
            peak = f"{_median(runs, SIZES[1], 2):.0f}"
            rows.append([name, setting, f"{large / small:.2f}", faults, f"{large / base:.2f}", peak])
    few, many = (f"{n:,}" for n in SIZES)
    head = ["function", "memory", f"time per position at {many} over {few}", "page faults per position there"]
    return markdown([*head, f"time at {many} over the default's", "peak, MiB"], rows)


def _median(runs: list[dict[str, list[float]]], n: int, column: int) -> float:
    return statistics.median(run[str(n)][column] for run in runs)


def child(name: str) -> dict[int, list[float]]:
    """Seconds and page faults per position, and the peak of the process so far in MiB, for each N."""
    call = MODES["forward + backward"](make_block(64, {"pairwise": name}))
    found = {}
    for n in SIZES:
        call(Target().random((1, 64, n)))
        before, times = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
        for _ in range(7):
            x = Target().random((1, 64, n))
            started = time.perf_counter()
            call(x)
            times.append(time.perf_counter() - started)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        found[n] = [statistics.median(times) / n, (usage.ru_minflt - before) / 7 / n, usage.ru_maxrss / 1024]
    return found


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1])))
