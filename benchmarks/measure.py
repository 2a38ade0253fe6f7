"""Side by side in one run: contestants in turn, so that only neighbours in time are compared; peak memory each alone.

A machine that is shared changes its speed within minutes. So a ratio is taken of two calls of the same round, and what
is printed is the median over the rounds, with the first and third quartile.
"""

import ctypes
import multiprocessing
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Call = Callable[[Tensor], Any]


class Ratio(NamedTuple):
    """Of the times of two contestants, round by round: quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def forward(module: Call) -> Call:
    """A call without a gradient."""
    return torch.no_grad()(module)


def training(module: Call) -> Call:
    """Forward and backward, to the input and to all parameters."""

    def step(x: Tensor) -> None:
        for parameter in getattr(module, "parameters", list)():
            parameter.grad = None
        y = module(x.requires_grad_())
        y.backward(torch.ones_like(y))  # a gradient in memory, as a layer above gives; that of a sum has strides of 0

    return step


MODES = {"forward": forward, "forward + backward": training}


class Place(NamedTuple):
    """Where and in which dtype is measured."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device != "cpu":
            torch.accelerator.synchronize()


CPU = Place()


def in_turn(
    calls: dict[str, Call], shape: tuple[int, ...], seconds: float, least: int = 5, place: Place = CPU
) -> dict[str, list[float]]:
    """Times in seconds of each call on fresh random inputs, in rounds of a random order, after one for warm-up.

    Rounds go on until `seconds` have passed, at least `least` of them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in _rounds(seconds, least):
        for name in random.sample(sorted(calls), len(calls)):
            x = place.random(shape)
            place.wait()
            started = time.perf_counter()
            calls[name](x)
            place.wait()
            if number:  # the first is for warm-up
                times[name].append(time.perf_counter() - started)
    return times


def _rounds(seconds: float, least: int) -> Iterator[int]:
    started, number = time.perf_counter(), 0
    while number <= least or time.perf_counter() - started < seconds:
        yield number
        number += 1


def ratio(numerator: list[float], denominator: list[float]) -> Ratio:
    """Quartiles of the ratios of two contestants' times of the same rounds."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(numerator, denominator, strict=True)], n=4)
    return Ratio(low, median, high)


Make = Callable[..., tuple[Call, tuple[int, ...]]]


def peak_memory(make: Make, *arguments: Any, place: Place = CPU) -> float:
    """MiB by which a call raises the peak above that of a small call: of the device, or of a process of its own.

    Of three processes the median: where freed pages go differs from one to the next, by up to a third.

    Args:
        make: a function of a module, `make(*arguments, place) -> (call, shape of its input)`; all of them are sent to
            the process.
    """
    if place.device != "cpu":
        return _peak_of_device(make, *arguments, place)
    return statistics.median(_peak_alone(make, *arguments, place) for _ in range(3))


def _peak_alone(make: Make, *arguments: Any) -> float:
    context = multiprocessing.get_context("forkserver")  # its server imports torch once, and computes nothing itself
    context.set_forkserver_preload(["benchmarks.tables", "timm.layers", "mmcv.cnn"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_peak_of_process, args=(send, torch.get_num_threads(), make, *arguments))
    process.start()
    send.close()
    try:
        mebibytes: float = receive.recv()
    except EOFError as error:
        raise RuntimeError(f"the process that measures {arguments} ended without a figure") from error
    finally:
        process.join()
    return mebibytes


def _peak_of_process(send: Any, threads: int, make: Make, *arguments: Any) -> None:
    torch.set_num_threads(threads)
    call, shape = make(*arguments)
    call(arguments[-1].random((1, *shape[1:2], *(min(4, size) for size in shape[2:]))))  # loads code, takes workspaces
    x = arguments[-1].random(shape)
    before = _reset_peak()
    call(x)
    send.send((_peak() - before) / 1024)


def _reset_peak() -> int:
    """Make what the process holds now its peak, in KiB: a forked one starts with a higher peak, below which small calls
    would stay unseen. Pages of freed tensors go back first. Linux only; elsewhere the peak stays as it is."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        ctypes.CDLL(None).malloc_trim(0)
        clear.write_text("5")
    return _peak()


def _peak() -> int:
    """KiB, of this process: Linux's own resettable figure, or the peak since its start."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _peak_of_device(make: Make, *arguments: Any) -> float:
    call, shape = make(*arguments)
    x = arguments[-1].random(shape)
    call(x)  # takes workspaces
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    call(x)
    mebibytes: float = (torch.accelerator.max_memory_allocated() - before) / 2**20
    return mebibytes


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
