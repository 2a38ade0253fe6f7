"""Table "choice": the time of every form of Eq. 1, and which one `functional.choose_form` returns."""

import statistics

import torch
from torch import Tensor, nn

from benchmarks.measure import MODES, Target, in_turn, markdown, note, ratio
from nonlocal_nets import PAIRWISE, functional

FORMS = ("fused", "tiled", "rows", "associative", "sorted", "materialised")
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


class Operation(nn.Module):
    """Eq. 1 in a given form, as a module: keys (None: the queries) and values are its parameters."""

    def __init__(self, query: Tensor, name: str, m: int | None, v: int, form: str) -> None:
        super().__init__()
        self.name, self.form = name, form
        self.key = None if m is None else nn.Parameter(torch.randn_like(query[:, :1].expand(-1, m, -1)))
        self.value = nn.Parameter(torch.randn_like(query[:, :1, :1].expand(-1, m or query.shape[1], v)))

    def forward(self, query: Tensor) -> Tensor:
        scale = query.shape[2] ** -0.5 if "gaussian" in self.name else 1.0
        key = query if self.key is None else self.key
        return functional.nonlocal_operation(self.name, query, key, self.value, scale=scale, form=self.form)


def table(target: Target, seconds: float = 0.5) -> str:
    """The time of each form over that of the fastest; the chosen one in bold."""
    rows, losses = [], []
    for name, symmetric in (("gaussian", True), *((name, False) for name in PAIRWISE)):
        for mode in MODES if "gaussian" in name else ["forward + backward"]:
            for size in GRID:
                if symmetric and size[1] != size[2]:
                    continue
                row, loss = _row(name, symmetric, mode, size, seconds, target)
                rows.append(row)
                losses.append(loss)
    rule = (
        f"The rule loses more than 0.05 in {sum(loss > 0.05 for loss in losses)} of {len(losses)} rows, at most "
        f"{max(losses):.2f}, in the mean {statistics.mean(losses):.3f}."
    )
    head = ["function", "mode", "batch", "N", "M", "width of q, k", "width of v", *FORMS]
    return f"{markdown(head, rows)}\n\n{rule}"


def _row(
    name: str, symmetric: bool, mode: str, size: tuple[int, int, int, int], seconds: float, target: Target
) -> tuple[list[object], float]:
    """A row of the table, and what the choice loses in it."""
    note(f"choice: {name} {symmetric} {mode} {size}")
    batch, n, m, d = size
    width = 1 if name == "concatenation" else 2 * d if name == "gaussian" else d
    query = target.random((batch, n, width)).requires_grad_(mode != "forward")
    calls = {
        form: MODES[mode](Operation(query.detach(), name, None if symmetric else m, d, form))
        for form in functional.FORMS[name]
    }
    times = in_turn(calls, tuple(query.shape), seconds, target=target)
    medians = {form: statistics.median(times[form]) for form in calls}
    best = min(medians, key=medians.__getitem__)
    chosen = functional.choose_form(name, n, m, width, d, batch, query, symmetric)
    cells = {form: f"{ratio(times[form], times[best]).median:.2f}" for form in calls}
    loss = round(float(cells[chosen]) - 1, 2)  # of the printed figures
    cells[chosen] = f"**{cells[chosen]}**"
    function = f"{name}, keys are the queries" if symmetric else name
    return [function, mode, batch, n, m, width, d, *(cells.get(form, "") for form in FORMS)], loss
