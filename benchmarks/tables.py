"""The tables of `make bench`, each a function that measures and gives Markdown."""

import math
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import nonlocal_nets as nln
from benchmarks.allocator import allocator
from benchmarks.cases import CASES, PAPER, Case
from benchmarks.measure import MODES, Call, Place, in_turn, peak_memory, ratio, table
from benchmarks.peers import contestants, make_block, map_bytes
from benchmarks.sequences import sequences
from nonlocal_nets import NonLocalBlock
from nonlocal_nets.nn import functional

FUNCTIONS = tuple(nln.PAIRWISE)
LARGEST_MAP = 4 * 2**30  # bytes; a larger one is not tried
LONGEST = 8e10  # multiply-adds of a call on the CPU; a longer one is not tried
LONGEST_PEER = 2e11  # of a peer's


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


def peers(place: Place, seconds: float = 0.3) -> str:
    """How much longer each peer takes than we do, and its peak memory; 2.00 means twice our time."""
    names = ("equation", "timm", "mmcv", "attention")
    head = ["function", "case", "batch", "mode", *(f"{name}, time" for name in names)]
    head += ["ours, MiB", *(f"{name}, MiB" for name in names)]
    rows = []
    for case in CASES:
        for arguments in variants(case):
            for mode in MODES:
                rows.append(compare(case, arguments, mode, names, seconds, place))
                note(" | ".join(rows[-1]))  # the table is printed at the end, in an hour
    return table(head, [row for row in rows if row])


def compare(
    case: Case, arguments: dict[str, Any], mode: str, names: tuple[str, ...], seconds: float, place: Place
) -> list[str]:
    """One row of `peers`."""
    block = make_block(case.channels, arguments)
    shape = (case.batch, case.channels, *case.size)
    note(f"{case} {arguments} {mode}")
    multiply_adds = case.batch * block.multiply_adds(case.size) * (3 if mode != "forward" else 1)
    if place.device == "cpu" and multiply_adds > LONGEST:
        return []
    cells: dict[str, str] = {}
    calls: dict[str, Call] = {}
    for name, module in contestants(block, case.size).items():
        size = map_bytes(name, block, case.batch, case.size)
        if size > LARGEST_MAP:
            cells[name] = f"needs {size / 2**30:.0f} GiB"
            continue
        longest = LONGEST_PEER if place.device == "cpu" and name != "ours" else math.inf
        if case.batch * peer_multiply_adds(block, case.size, mode) > longest:
            cells[name] = "not tried"
            continue
        check_equal(module, block, case)
        call = MODES[mode](module.to(*place))
        try:
            call(place.random(shape))
        except RuntimeError as error:
            cells[name] = "fails"
            note(f"{name} fails: {str(error).splitlines()[0]}")
            continue
        calls[name] = call
    block.to(*place)  # the last comparison left it in float32
    times = in_turn(calls, shape, seconds * len(calls), least=3, place=place)
    cells |= {name: str(ratio(times[name], times["ours"])) for name in calls if name != "ours"}
    memory = {}
    if mode != "forward":  # which takes less
        memory = {name: peak_memory(_peer_call, case, arguments, mode, name, place=place) for name in calls}
    what = arguments["pairwise"] + (", d = C, scaled" if "scale" in arguments else "")
    where = case.name + (" after phi and g" if "pool_position" in arguments else "")
    numbers = [f"{memory[name]:.0f}" if name in memory else "" for name in ("ours", *names)]
    return [what, where, str(case.batch), mode, *(cells.get(name, "") for name in names), *numbers]


def check_equal(module: nn.Module, block: nn.Module, case: Case) -> None:
    """In float64, on a small input: a norm after nearly equal values would make much of the rounding of float32."""
    x = torch.randn(2, case.channels, *(min(8, size) for size in case.size), dtype=torch.float64)
    with torch.no_grad():
        expected = block.to("cpu", torch.float64)(x)
        torch.testing.assert_close(module.to("cpu", torch.float64)(x), expected, rtol=1e-7, atol=1e-7)
    block.to(torch.float32)
    module.to(torch.float32)


def peer_multiply_adds(block: NonLocalBlock, size: tuple[int, ...], mode: str) -> int:
    """Of the map and its product with g."""
    n, m = math.prod(size), math.prod(block.key_size(size))
    return n * m * (block.pairwise.width + block.inner_channels) * (3 if mode != "forward" else 1)


def _peer_call(
    case: Case, arguments: dict[str, Any], mode: str, name: str, place: Place
) -> tuple[Call, tuple[int, ...]]:
    module = contestants(make_block(case.channels, arguments), case.size)[name].to(place.device, place.dtype)
    return MODES[mode](module), (case.batch, case.channels, *case.size)


def limit(place: Place, seconds: float = 1.0) -> str:
    """The share of the matrix-product rate that the block reaches, counting what it must compute, and the bytes of its
    input and output (and of their gradients) over the rate of a copy, as shares of the time."""
    side = 2048 if place.device == "cpu" else 8192
    matrix, much = place.random((side, side)), place.random((64 * 2**20 // place.dtype.itemsize,))
    others = {"product": lambda _x: matrix @ matrix, "copy": lambda _x: much.clone()}
    rows = []
    for case in PAPER:
        for name in FUNCTIONS:
            note(f"limit: {case} {name}")
            block = make_block(case.channels, {"pairwise": name, "pool": case.pool}).to(place.device, place.dtype)
            must = case.batch * block.multiply_adds(case.size)
            moved = 2 * case.batch * case.channels * math.prod(case.size) * place.dtype.itemsize
            cells = []
            for mode, factor in (("forward", 1), ("forward + backward", 3)):
                calls = {"block": MODES[mode](block), **others}
                times = in_turn(calls, (case.batch, case.channels, *case.size), seconds, place=place)
                cells.append(ratio([t * factor * must / side**3 for t in times["product"]], times["block"]))
                bytes_copied = 2 * much.nbytes  # read and written
                copied = [t * factor * moved / bytes_copied for t in times["copy"]]
                cells.append(f"{ratio(copied, times['block']).median:.3f}")
            x = place.random((case.batch, case.channels, *case.size))
            rows.append([name, case.name, case.batch, *cells, *where(MODES["forward + backward"](block), x, place)])
    head = ["function", "case", "batch", "forward", "bytes", "forward + backward", "bytes", "in products", "launches"]
    return table(head, rows)


def where(call: Call, x: Tensor, place: Place) -> tuple[str, int]:
    """The share of its operators' time that a call spends in matrix products, and how many operators it runs."""
    activity = ProfilerActivity.CPU if place.device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler:
        call(x)
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU or place.device != "cpu"]
    field = "self_cpu_time_total" if place.device == "cpu" else "self_device_time_total"
    times = {e.key: (getattr(e, field), e.count) for e in events if getattr(e, field)}
    products = sum(t for name, (t, _) in times.items() if any(word in name for word in PRODUCTS))
    launches = sum(count for name, (_, count) in times.items() if name.startswith("aten::") or place.device != "cpu")
    return f"{products / sum(t for t, _ in times.values()):.2f}", launches


PRODUCTS = ("mm", "attention", "gemm")  # in the names of operators and kernels


def growth(place: Place, rounds: int = 3) -> str:
    """Log-log slopes of time and peak memory, forward + backward, against N from 4,096 to 65,536; C = 64."""
    sizes = [4096 * 2**k for k in range(5)]
    mode = "forward + backward"
    rows = []
    for name in FUNCTIONS:
        call, _ = _block_call(name, 64, (1,), mode, place)
        linear = name in ("dot_product", "concatenation")  # a softmax is so in memory only
        times: dict[int, list[float]] = {n: [] for n in (sizes if linear else sizes[:-1])}
        for _ in range(rounds if linear else 1):  # the sizes in turn
            for n in times:
                note(f"growth: {name} {n}")
                times[n] += in_turn({"ours": call}, (1, 64, n), 0, least=5 if linear else 1, place=place)["ours"]
        medians = {n: statistics.median(times[n]) for n in times}
        memory = [peak_memory(_block_call, name, 64, (n,), mode, place=place) for n in sizes]
        milliseconds = [f"{medians[n] * 1e3:.0f} ms, " if n in medians else "" for n in sizes]
        cells = [f"{ms}{mib:.0f} MiB" for ms, mib in zip(milliseconds, memory, strict=True)]
        slopes = slope(list(medians), list(medians.values())), slope(sizes, memory)
        rows.append([name, *cells, *(f"{value:.2f}" for value in slopes)])
    return table(["function", *(f"N = {n:,}" for n in sizes), "slope of time", "slope of memory"], rows)


def _block_call(
    name: str, channels: int, size: tuple[int, ...], mode: str, place: Place
) -> tuple[Call, tuple[int, ...]]:
    block = make_block(channels, {"pairwise": name}).to(place.device, place.dtype)
    return MODES[mode](block), (1, channels, *size)


def slope(x: list[int], y: list[float]) -> float:
    """Of the straight line through log y against log x."""
    return statistics.linear_regression([math.log(v) for v in x], [math.log(v) for v in y]).slope


def choice(place: Place, seconds: float = 0.5) -> str:
    """The time of each form over the fastest's, and (bold) the one that `choose_form` takes."""
    names = ("fused", "tiled", "rows", "associative", "sorted", "materialised")
    rows, losses = [], []
    for name, symmetric in (("gaussian", True), *((name, False) for name in FUNCTIONS)):
        for mode in MODES if "gaussian" in name else ["forward + backward"]:
            for batch, n, m, d in GRID:
                if symmetric and n != m:
                    continue
                note(f"choice: {name} {symmetric} {mode} {batch} {n} {m} {d}")
                width = 1 if name == "concatenation" else 2 * d if name == "gaussian" else d
                query = place.random((batch, n, width)).requires_grad_(mode != "forward")
                forms = functional.FORMS[name]
                calls = {
                    form: MODES[mode](_Operation(query.detach(), name, None if symmetric else m, d, form))
                    for form in forms
                }
                times = in_turn(calls, tuple(query.shape), seconds, place=place)
                medians = {form: statistics.median(times[form]) for form in calls}
                best = min(medians, key=medians.__getitem__)
                taken = functional.choose_form(name, n, m, width, d, batch, query, symmetric)
                cells = {form: f"{ratio(times[form], times[best]).median:.2f}" for form in forms}
                losses.append(round(float(cells[taken]) - 1, 2))  # of what is printed
                cells[taken] = f"**{cells[taken]}**"
                function = f"{name}, keys are the queries" if symmetric else name
                rows.append([function, mode, batch, n, m, width, d, *(cells.get(form, "") for form in names)])
    rule = (
        f"The rule loses more than 0.05 in {sum(loss > 0.05 for loss in losses)} of {len(losses)} rows, at most "
        f"{max(losses):.2f}, in the mean {statistics.mean(losses):.3f}."
    )
    head = ["function", "mode", "batch", "N", "M", "width of q, k", "width of v", *names]
    return f"{table(head, rows)}\n\n{rule}"


GRID = [
    (batch, n, m, d)
    for batch, n, m in (
        (1, 196, 49),
        (1, 196, 196),
        (1, 784, 196),
        (1, 784, 784),
        (8, 784, 196),
        (8, 784, 784),
        (1, 3136, 784),
        (8, 3136, 784),
        (1, 3136, 3136),
        (1, 4096, 4096),
    )
    for d in (32, 64, 128, 256, 512)
]


class _Operation(nn.Module):
    """Eq. 1 in one form, of a query that is given; m keys (None: the queries) and the values are its parameters."""

    def __init__(self, query: Tensor, name: str, m: int | None, v: int, form: str) -> None:
        super().__init__()
        self.name, self.form = name, form
        self.key = None if m is None else nn.Parameter(torch.randn_like(query[:, :1].expand(-1, m, -1)))
        self.value = nn.Parameter(torch.randn_like(query[:, :1, :1].expand(-1, m or query.shape[1], v)))

    def forward(self, query: Tensor) -> Tensor:
        scale = query.shape[2] ** -0.5 if "gaussian" in self.name else 1.0
        key = query if self.key is None else self.key
        return functional.nonlocal_operation(self.name, query, key, self.value, scale=scale, form=self.form)


def kernels(place: Place, seconds: float = 0.5) -> str:
    """Which kernel scaled_dot_product_attention runs at each width, forward + backward, and what each takes over it."""
    n = 1024 if place.device == "cpu" else 8192
    backends = [] if place.device == "cpu" else [b for b in SDPBackend.__members__.values() if b.value >= 0]
    rows = []
    for d in WIDTHS:
        for v in (d, d // 2):
            note(f"kernels: {d} {v}")
            query = place.random((1, n, d))
            forms = {
                form: _Operation(query, "embedded_gaussian", n, v, form)
                for form in functional.FORMS["embedded_gaussian"]
            }
            with _Kernels() as seen:
                forms["fused"](query)
            step = MODES["forward + backward"]
            fused = forms.pop("fused")
            calls = {"torch's choice": step(fused)} | {form: step(module) for form, module in forms.items()}
            refused = []
            for backend in backends:
                call = sdpa_kernel(backend)(step(fused))
                try:
                    call(place.random((1, n, d)))
                except RuntimeError:
                    refused.append(backend.name)
                else:
                    calls[backend.name] = call
            times = in_turn(calls, (1, n, d), seconds, place=place)
            over = {name: ratio(mine, times["torch's choice"]).median for name, mine in times.items()}
            cells = "; ".join(f"{name} {value:.2f}" for name, value in over.items() if name != "torch's choice")
            rows.append([d, v, seen.name, cells, ", ".join(refused)])
    return table(["width of q, k", "width of v", "runs", "over its time", "refuse"], rows)


WIDTHS = (32, 64, 128, 256, 512, 1024)


class _Kernels(TorchDispatchMode):
    """The name of the attention kernel that runs within."""

    name = "products and softmax (the map)"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in func.__name__:
            self.name = func.__name__.partition(".")[0].strip("_")
        return func(*args, **(kwargs or {}))


def networks(place: Place, seconds: float = 20.0) -> str:
    """What five blocks add to a ResNet-50: time over multiply-adds, forward + backward, batch 2 of 224 x 224."""
    import timm

    shape = (2 if place.device == "cpu" else 32, 3, 224, 224)
    plain = timm.create_model("resnet50").train()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(torch.randn(2, *shape[1:]))
    multiply_adds = counter.get_total_flops() / 2 / 2  # a flop counter counts both, and two images
    step = MODES["forward + backward"]
    rows = []
    for name in FUNCTIONS:
        note(f"networks: {name}")
        model = timm.create_model("resnet50").train()
        report = nln.insert(model, "paper-5", example=torch.zeros(1, *shape[1:]), pairwise=name)
        added = sum(row.multiply_adds for row in report.rows)
        calls = {"plain": step(plain.to(*place)), "blocks": step(model.to(*place))}
        times = in_turn(calls, shape, seconds, place=place)
        gained = ratio(times["blocks"], times["plain"])
        share = added / multiply_adds
        rows.append([name, f"{share:.3f}", gained, f"{(gained.median - 1) / share:.2f}"])
    return table(["function", "multiply-adds added", "time, times", "added time / added multiply-adds"], rows)


def compiled(place: Place, seconds: float = 10.0) -> str:
    """The time of eager over that of torch.compile(fullgraph=True), forward + backward, outputs equal first."""
    rows = []
    for what, shape, functions in (
        ("res3 block, pooled", (1, 512, 4, 28, 28), FUNCTIONS),
        ("ResNet-50, paper-5", (2, 3, 224, 224), ("embedded_gaussian",)),
    ):
        for name in functions:
            note(f"compiled: {what} {name}")
            if what == "ResNet-50, paper-5":
                import timm

                model = timm.create_model("resnet50").train()
                nln.insert(model, "paper-5", example=torch.zeros(1, *shape[1:]), pairwise=name)
            else:
                model = make_block(shape[1], {"pairwise": name, "pool": (1, 2, 2)})
            model = model.to(*place)
            fast = torch.compile(model, fullgraph=True)
            x = place.random(shape)
            with torch.no_grad():
                torch.testing.assert_close(fast(x), model(x), rtol=1e-2, atol=1e-2)
            step = MODES["forward + backward"]
            times = in_turn({"eager": step(model), "compiled": step(fast)}, shape, seconds, place=place)
            rows.append([what, name, ratio(times["eager"], times["compiled"])])
            torch.compiler.reset()
    return table(["what", "function", "eager / compiled, time"], rows)


def startup(_place: Place, rounds: int = 4) -> str:
    """How long train.py takes to say something, beside the imports that it cannot do without."""
    commands = {
        "imports": ["-c", "import torch, pytorch_lightning, timm"],
        "fit --print_config": [*TRAIN, "--print_config"],
        "fit --help": [*TRAIN, "--help"],
        "an error": [*TRAIN, "--model.optimizer.lr=-1"],
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


def decoders(place: Place) -> str:
    """See benchmarks/video.py, which needs what is installed with this package; the other tables need torch alone."""
    from benchmarks import video

    return video.decoders(place)


def video(place: Place) -> str:
    """See benchmarks/video.py."""
    from benchmarks import video

    return video.video(place)


def scaling(place: Place) -> str:
    """See benchmarks/scaling.py."""
    from benchmarks import scaling

    return scaling.scaling(place)


TRAIN = ["train.py", "fit", "--config", "configs/image/cued_digits.yaml"]
TABLES = {
    "startup": startup,
    "peers": peers,
    "limit": limit,
    "growth": growth,
    "allocator": allocator,
    "choice": choice,
    "kernels": kernels,
    "networks": networks,
    "compiled": compiled,
    "decoders": decoders,
    "video": video,
    "sequences": sequences,
    "scaling": scaling,
}
