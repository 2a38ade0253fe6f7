"""The results of a sweep: the rows of its csv, a table of means over the seeds, a picture."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nonlocal_nets.experiments.sweep.state import Run
from nonlocal_nets.experiments.table import Outcome, table
from nonlocal_nets.run.folder import find

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEED = "seed_everything"


def csv_rows(runs: list[Run], metric: str, mode: str, root: Path) -> list[dict[str, Any]]:
    return [
        {"run": run.id}
        | run.parameters
        | {
            f"{metric}, best": run.best(mode),
            f"{metric}, last": run.values[-1] if run.values else math.nan,
            "validations": len(run.values),
            "state": run.state,
            "seconds": round(run.seconds, 1),
            "folder": find(root, run.id) or "",
        }
        for run in runs
    ]


def swept(runs: Iterable[Run]) -> list[str]:
    """The parameters that differ between the runs, without the seed."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.parameters.items():
            seen.setdefault(name, set()).add(str(value))
    return [name for name, values in seen.items() if len(values) > 1 and name != SEED]


def outcomes(runs: list[Run], names: list[str], mode: str) -> list[Outcome]:
    """The best value of each run that has one, labelled by the parameters that are named."""
    return [Outcome(label(run, names), best, run.seconds) for run in runs if not math.isnan(best := run.best(mode))]


def label(run: Run, names: list[str]) -> str:
    values = {name.removeprefix("model."): run.parameters[name] for name in names}
    texts = [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()]
    return ", ".join(texts) or "all"


def markdown(runs: list[Run], metric: str, mode: str) -> str:
    """The table, the best first. Runs that differ only in the seed share a line."""
    return table(outcomes(runs, swept(runs), mode), "parameters", f"{metric}, best of each run", mode)


def figure(config: dict[str, Any], runs: list[Run], mode: str) -> "Figure":
    """The best value of each run over each parameter that has a range, and over the combinations of the others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without a display
    from matplotlib.figure import Figure

    names = swept(runs)
    ranges = [name for name in names if "values" not in config["parameters"].get(name, {})]
    groups: dict[str, list[float]] = {}
    for outcome in outcomes(runs, [name for name in names if name not in ranges], mode):
        groups.setdefault(outcome.label, []).append(outcome.value)
    panels = len(ranges) + (len(groups) > 1 or not ranges)
    result = Figure(figsize=(max(5.0 * panels, 1.2 * len(groups)), 4.5), layout="constrained")
    FigureCanvasAgg(result)
    axes = list(result.subplots(1, panels, squeeze=False)[0])
    for axis, name in zip(axes, ranges, strict=False):
        draw_range(axis, name, config["parameters"][name], runs, mode)
    if panels > len(ranges):
        draw_groups(axes[-1], groups)
    for axis in axes:
        axis.set_ylabel(f"{config['metric']['name']}, best of each run")
    return result


def draw_range(axis: "Axes", name: str, parameter: dict[str, Any], runs: list[Run], mode: str) -> None:
    axis.scatter([run.parameters[name] for run in runs], [run.best(mode) for run in runs])
    axis.set_xscale("log" if "log" in parameter.get("distribution", "") else "linear")
    axis.set_xlabel(name)


def draw_groups(axis: "Axes", groups: dict[str, list[float]]) -> None:
    """A point for each run, a line for the mean."""
    for x, values in enumerate(groups.values()):
        axis.scatter([x] * len(values), values, alpha=0.5)
        axis.hlines(statistics.mean(values), x - 0.3, x + 0.3, colors="black")
    axis.set_xticks(range(len(groups)), [text.replace(", ", "\n") for text in groups], rotation=30, ha="right")
    axis.set_title("points: runs; lines: means", fontsize="small")
