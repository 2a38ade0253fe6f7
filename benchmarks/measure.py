"""Time of contestants, which take turns in one process, and peak memory of each in a process of its own.

The speed of a shared machine changes within minutes. So each ratio is that of two calls of the same round; printed are
the median over the rounds and the first and third quartile.
"""

import ctypes
import multiprocessing
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Call = Callable[[Tensor], Any]


class Ratio(NamedTuple):
    """Quartiles of the ratio of two contestants' times in the same round."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def forward(module: Call) -> Call:
    """The forward pass without a gradient."""
    return torch.no_grad()(module)


def training(module: Call) -> Call:
    """The forward pass and the backward pass to the input and all parameters."""

    def step(x: Tensor) -> None:
        for parameter in getattr(module, "parameters", list)():
            parameter.grad = None
        y = module(x.requires_grad_())
        y.backward(torch.ones_like(y))  # a gradient in memory, as of a next layer; that of y.sum() has strides of 0

    return step


MODES = {"forward": forward, "forward + backward": training}


class Target(NamedTuple):
    """The device and dtype that are measured."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device != "cpu":
            torch.accelerator.synchronize()


CPU = Target()


def in_turn(
    calls: dict[str, Call], shape: tuple[int, ...], seconds: float, least: int = 5, target: Target = CPU
) -> dict[str, list[float]]:
    """Times in seconds of each call on new random inputs, in rounds of a random order.

    After a first round for warm-up there are rounds until `seconds` have passed, and at least `least`.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in _rounds(seconds, least):
        for name in random.sample(sorted(calls), len(calls)):
            x = target.random(shape)
            target.wait()
            started = time.perf_counter()
            calls[name](x)
            target.wait()
            if number:  # not of the warm-up
                times[name].append(time.perf_counter() - started)
    return times


def _rounds(seconds: float, least: int) -> Iterator[int]:
    started, number = time.perf_counter(), 0
    while number <= least or time.perf_counter() - started < seconds:
        yield number
        number += 1


def ratio(numerator: list[float], denominator: list[float]) -> Ratio:
    """Quartiles of the ratio of two contestants' times in the same round."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(numerator, denominator, strict=True)], n=4)
    return Ratio(low, median, high)


Make = Callable[..., tuple[Call, tuple[int, ...]]]


def peak_memory(make: Make, *arguments: Any, target: Target = CPU) -> float:
    """Peak memory of a call in MiB, above the peak of a small call: of the device, or on a CPU of a new process.

    On a CPU the median of three processes, which differ by up to a third in when freed pages are returned.

    Args:
        make: `make(*arguments, target)` returns a call and the shape of its input. It and its arguments are sent to the
            process, so that it must be a function of a module.
    """
    if target.device != "cpu":
        return _peak_of_device(make, *arguments, target)
    return statistics.median(_peak_alone(make, *arguments, target) for _ in range(3))


def _peak_alone(make: Make, *arguments: Any) -> float:
    context = multiprocessing.get_context("forkserver")  # a server that imports torch once and computes nothing
    context.set_forkserver_preload(["benchmarks.peers", "timm.layers", "mmcv.cnn"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_peak_of_process, args=(send, torch.get_num_threads(), make, *arguments))
    process.start()
    send.close()
    try:
        mebibytes: float = receive.recv()
    except EOFError as error:
        raise RuntimeError(f"the process that measures {arguments} ended without a result") from error
    finally:
        process.join()
    return mebibytes


def _peak_of_process(send: Any, threads: int, make: Make, *arguments: Any) -> None:
    torch.set_num_threads(threads)
    call, shape = make(*arguments)
    small = (1, *shape[1:2], *(min(4, size) for size in shape[2:]))
    call(arguments[-1].random(small))  # loads code, allocates workspaces
    x = arguments[-1].random(shape)
    before = _reset_peak()
    call(x)
    send.send((_peak() - before) / 1024)


def _reset_peak() -> int:
    """Reset the peak to the memory that the process holds now, in KiB, after freed pages have been returned.

    A forked process starts with a higher peak, which would hide a small call. Only Linux can do this.
    """
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")
    return _peak()


def _peak() -> int:
    """Peak memory of this process in KiB; since its last reset on Linux, since its start elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _peak_of_device(make: Make, *arguments: Any) -> float:
    call, shape = make(*arguments)
    x = arguments[-1].random(shape)
    call(x)  # allocates workspaces
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    call(x)
    mebibytes: float = (torch.accelerator.max_memory_allocated() - before) / 2**20
    return mebibytes


def note(text: str) -> None:
    """Print to stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
