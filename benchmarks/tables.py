"""The tables of `make bench`, each a function that measures and gives Markdown."""

import math
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nonlocal_nets as nln
from benchmarks.cases import CASES, PAPER, Case
from benchmarks.measure import MODES, Call, in_turn, peak_memory, ratio, table
from benchmarks.peers import contestants, make_block, map_bytes
from nonlocal_nets.nn import functional

FUNCTIONS = tuple(nln.PAIRWISE)
LARGEST_MAP = 4 * 2**30  # bytes; a larger one is not tried
LONGEST = 6e11  # multiply-adds of a call that is not tried


def note(text: str) -> None:
    """Say on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


def variants(case: Case) -> list[dict[str, Any]]:
    """The blocks that a case is measured with: the four functions, and what torch's attention can do."""
    pools = {"pool": case.pool}
    rows = [{"pairwise": name, **pools} for name in FUNCTIONS]
    if case.pool is not None:  # mmcv pools after phi and g
        rows += [{"pairwise": name, **pools, "pool_position": "embedding"} for name in FUNCTIONS if name != "gaussian"]
    return [*rows, {"pairwise": "embedded_gaussian", **pools, "scale": True, "inner_channels": case.channels}]


def peers(seconds: float = 1.0) -> str:
    """How much longer each peer takes than we do, and its peak memory; 2.00 means twice our time."""
    names = ("equation", "timm", "mmcv", "attention")
    head = [
        "function",
        "case",
        "batch",
        "mode",
        *(f"{name}, time" for name in names),
        "ours, MiB",
        *(f"{n}, MiB" for n in names),
    ]
    rows = []
    for case in CASES:
        for arguments in variants(case):
            for mode in MODES:
                rows.append(compare(case, arguments, mode, names, seconds))
    return table(head, [row for row in rows if row])


def compare(case: Case, arguments: dict[str, Any], mode: str, names: tuple[str, ...], seconds: float) -> list[str]:
    """One row of `peers`."""
    block = make_block(case.channels, arguments)
    shape = (case.batch, case.channels, *case.size)
    note(f"{case} {arguments} {mode}")
    if case.batch * block.multiply_adds(case.size) * (3 if mode != "forward" else 1) > LONGEST:
        return []
    cells: dict[str, str] = {}
    calls: dict[str, Call] = {}
    for name, module in contestants(block, case.size).items():
        size = map_bytes(name, block, case.batch, case.size)
        if size > LARGEST_MAP:
            cells[name] = f"needs {size / 2**30:.0f} GiB"
            continue
        call = MODES[mode](module)
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(module(x), block(x), rtol=1e-3, atol=1e-3)
        try:
            call(x)
        except RuntimeError as error:
            cells[name] = "fails"
            note(f"{name} fails: {str(error).splitlines()[0]}")
            continue
        calls[name] = call
    times = in_turn(calls, shape, seconds * len(calls), least=3)
    cells |= {name: str(ratio(times[name], times["ours"])) for name in calls if name != "ours"}
    memory = {name: peak_memory(_peer_call, case, arguments, mode, name) for name in calls}
    what = arguments["pairwise"] + (", d = C, scaled" if "scale" in arguments else "")
    where = case.name + (" after phi and g" if "pool_position" in arguments else "")
    numbers = [f"{memory[name]:.0f}" if name in memory else "" for name in ("ours", *names)]
    return [what, where, str(case.batch), mode, *(cells.get(name, "") for name in names), *numbers]


def _peer_call(case: Case, arguments: dict[str, Any], mode: str, name: str) -> tuple[Call, tuple[int, ...]]:
    block = make_block(case.channels, arguments)
    return MODES[mode](contestants(block, case.size)[name]), (case.batch, case.channels, *case.size)


def limit(seconds: float = 2.0) -> str:
    """The share of the machine's matrix-product rate that the block reaches, counting what it must compute."""
    side = 2048
    matrix = torch.randn(side, side)
    rows = []
    for case in PAPER:
        for name in FUNCTIONS:
            note(f"limit: {case} {name}")
            block = make_block(case.channels, {"pairwise": name, "pool": case.pool})
            must = case.batch * block.multiply_adds(case.size)
            cells = []
            for mode, factor in (("forward", 1), ("forward + backward", 3)):
                calls = {"block": MODES[mode](block), "product": lambda _x: matrix @ matrix}
                times = in_turn(calls, (case.batch, case.channels, *case.size), seconds)
                shares = ratio([t * factor * must / side**3 for t in times["product"]], times["block"])
                cells.append(str(shares))
            rows.append([name, case.name, case.batch, *cells])
    return table(["function", "case", "batch", "forward", "forward + backward"], rows)


def growth(rounds: int = 3) -> str:
    """Log-log slopes of time and peak memory, forward + backward, against N from 4,096 to 65,536; C = 64."""
    sizes = [4096 * 2**k for k in range(5)]
    rows = []
    for name in FUNCTIONS:
        calls, shapes = {}, {}
        for n in sizes:
            shapes[n] = (1, 64, n)
        block = make_block(64, {"pairwise": name})
        step = MODES["forward + backward"](block)
        times: dict[int, list[float]] = {n: [] for n in sizes}
        for _ in range(rounds):  # the sizes in turn
            for n in sizes:
                note(f"growth: {name} {n}")
                calls = {"ours": step}
                times[n] += in_turn(calls, shapes[n], 0, least=1)["ours"]
        medians = [statistics.median(times[n]) for n in sizes]
        memory = [peak_memory(_block_call, name, 64, (n,), "forward + backward") for n in sizes]
        cells = [f"{m * 1e3:.0f} ms, {mib:.0f} MiB" for m, mib in zip(medians, memory, strict=True)]
        rows.append([name, *cells, f"{slope(sizes, medians):.2f}", f"{slope(sizes, memory):.2f}"])
    return table(["function", *(f"N = {n:,}" for n in sizes), "slope of time", "slope of memory"], rows)


def _block_call(name: str, channels: int, size: tuple[int, ...], mode: str) -> tuple[Call, tuple[int, ...]]:
    return MODES[mode](make_block(channels, {"pairwise": name})), (1, channels, *size)


def slope(x: list[int], y: list[float]) -> float:
    """Of the straight line through log y against log x."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def choice(seconds: float = 0.5) -> str:
    """Both forms of each function, forward + backward, and which one `choose_form` takes."""
    rows = []
    for name in FUNCTIONS:
        for n, m, d, v in GRID:
            note(f"choice: {name} {n} {m} {d} {v}")
            width = 1 if name == "concatenation" else 2 * d if name == "gaussian" else d
            exact, materialised = (_Operation(name, n, m, width, v, form) for form in functional.FORMS[name])
            calls = {"exact": MODES["forward + backward"](exact), "map": MODES["forward + backward"](materialised)}
            times = in_turn(calls, (1, n, width), seconds)
            taken = functional.choose_form(name, n, m, width, v)
            gain = ratio(times["map"], times["exact"])
            loss = min(gain.median, 1) if taken == functional.FORMS[name][0] else min(1 / gain.median, 1)
            rows.append([name, n, m, width, v, gain, taken, f"{loss:.2f}"])
    head = ["function", "N", "M", "width of q, k", "width of v", "map / exact, time", "taken", "best / taken"]
    return table(head, rows)


GRID = [
    (n, m, d, d)
    for n, m in ((49, 49), (196, 49), (196, 196), (784, 196), (784, 784), (3136, 784), (3136, 3136), (4096, 4096))
    for d in (32, 256, 512)
]


class _Operation(nn.Module):
    """Eq. 1 in one form, of a query that is given; keys and values are its parameters."""

    def __init__(self, name: str, n: int, m: int, width: int, v: int, form: str) -> None:
        super().__init__()
        self.name, self.form = name, form
        self.key = nn.Parameter(torch.randn(1, m, width))
        self.value = nn.Parameter(torch.randn(1, m, v))

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        scale = query.shape[2] ** -0.5 if "gaussian" in self.name else 1.0
        return functional.nonlocal_operation(self.name, query, self.key, self.value, scale=scale, form=self.form)


def networks(seconds: float = 20.0) -> str:
    """What five blocks add to a ResNet-50: time over multiply-adds, forward + backward, batch 2 of 224 x 224."""
    plain = timm.create_model("resnet50").train()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(torch.randn(2, 3, 224, 224))
    multiply_adds = counter.get_total_flops() / 2 / 2  # a flop counter counts both, and two images
    rows = []
    for name in FUNCTIONS:
        note(f"networks: {name}")
        model = timm.create_model("resnet50").train()
        report = nln.insert(model, "paper-5", example=torch.zeros(1, 3, 224, 224), pairwise=name)
        added = sum(row.multiply_adds for row in report.rows)
        calls = {"plain": MODES["forward + backward"](plain), "blocks": MODES["forward + backward"](model)}
        times = in_turn(calls, (2, 3, 224, 224), seconds)
        gained = ratio(times["blocks"], times["plain"])
        share = added / multiply_adds
        rows.append([name, f"{share:.3f}", gained, f"{(gained.median - 1) / share:.2f}"])
    return table(["function", "multiply-adds added", "time, times", "added time / added multiply-adds"], rows)


def startup(rounds: int = 4) -> str:
    """How long train.py takes to say something, beside the imports that it cannot do without."""
    commands = {
        "imports": ["-c", "import torch, pytorch_lightning, timm"],
        "fit --print_config": [*TRAIN, "--print_config"],
        "fit --help": [*TRAIN, "--help"],
        "an error": [*TRAIN, "--model.lr=-1"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name in random.sample(sorted(commands), len(commands)):
            started = time.perf_counter()
            subprocess.run([sys.executable, *commands[name]], capture_output=True, check=name != "an error")
            times[name].append(time.perf_counter() - started)
    rows = []
    for name, mine in times.items():
        rows.append([name, f"{statistics.median(mine):.1f} s", ratio(mine, times["imports"])])
    return table(["command", "median", "over `import torch, pytorch_lightning, timm`"], rows)


TRAIN = ["train.py", "fit", "--config", "configs/image/cued_digits.yaml"]
TABLES = {"startup": startup, "peers": peers, "limit": limit, "growth": growth, "choice": choice, "networks": networks}
