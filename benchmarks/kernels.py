"""Table "kernels": which kernel scaled_dot_product_attention runs, and the other forms over its time."""

from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.choice import Operation
from benchmarks.measure import MODES, Call, Target, in_turn, markdown, note, ratio
from nonlocal_nets import functional

WIDTHS = (32, 64, 128, 256, 512, 1024)


def table(target: Target, seconds: float = 0.5) -> str:
    """A row per width of queries and keys, and of values; forward + backward."""
    rows = [_row(d, v, seconds, target) for d in WIDTHS for v in (d, d // 2)]
    return markdown(["width of q, k", "width of v", "runs", "over its time", "refuse"], rows)


def _row(d: int, v: int, seconds: float, target: Target) -> list[object]:
    note(f"kernels: {d} {v}")
    n = 1024 if target.device == "cpu" else 8192
    query, step = target.random((1, n, d)), MODES["forward + backward"]
    names = functional.FORMS["embedded_gaussian"]
    forms = {form: Operation(query, "embedded_gaussian", n, v, form) for form in names}
    fused = forms.pop("fused")
    with _Kernels() as seen:
        fused(query)
    calls: dict[str, Call] = {"torch's choice": step(fused)} | {form: step(module) for form, module in forms.items()}
    refused = []
    backends = [] if target.device == "cpu" else [b for b in SDPBackend.__members__.values() if b.value >= 0]
    for backend in backends:
        call = sdpa_kernel(backend)(step(fused))
        try:
            call(target.random((1, n, d)))
        except RuntimeError:
            refused.append(backend.name)
        else:
            calls[backend.name] = call
    times = in_turn(calls, (1, n, d), seconds, target=target)
    over = {name: ratio(mine, times["torch's choice"]).median for name, mine in times.items()}
    cells = "; ".join(f"{name} {value:.2f}" for name, value in over.items() if name != "torch's choice")
    return [d, v, seen.name, cells, ", ".join(refused)]


class _Kernels(TorchDispatchMode):
    """The name of the attention kernel that runs inside of the `with`."""

    name = "products and softmax (the map)"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "attention" in func.__name__:
            self.name = func.__name__.partition(".")[0].strip("_")
        return func(*args, **(kwargs or {}))
