"""What the runs of a sweep came to: their histories, one csv, a table of means over the seeds, a picture."""

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUNS = Path("runs")
SEED = "seed_everything"


@dataclass
class Run:
    """A run of a sweep."""

    id: str
    parameters: dict[str, Any]
    state: str = "running"  # then "finished", "stopped" (by early_terminate) or "failed"
    seconds: float = 0.0  # of all its starts
    values: list[float] = field(default_factory=list)  # of the metric, validation by validation

    def best(self, maximise: bool) -> float:
        """Of its values; NaN if there is none."""
        finite = [value for value in self.values if math.isfinite(value)]
        return (max if maximise else min)(finite, default=math.nan)


def history(run: str, metric: str) -> tuple[list[float], list[str]]:
    """The values of a metric in a run's CSV logs, of which each start has one, and the names of all that is there.

    A resumed run may repeat a step: the last one counts.
    """
    values: dict[int, float] = {}
    names: dict[str, None] = {}
    paths = RUNS.glob(f"*/{run}/csv/version_*/metrics.csv")
    for path in sorted(paths, key=lambda path: int(path.parent.name.rpartition("_")[2])):
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]  # the last row may be on its way to the disk
        reader = csv.DictReader(whole.splitlines())
        values |= {int(row["step"]): float(row[metric]) for row in reader if row.get(metric)}
        names |= dict.fromkeys(reader.fieldnames or ())
    return [values[step] for step in sorted(values)], [name for name in names if name not in ("step", "epoch")]


def save_csv(runs: list[Run], metric: str, maximise: bool, path: Path) -> None:
    """One row a run."""
    names = list(dict.fromkeys(name for run in runs for name in run.parameters))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["run", *names, f"{metric}, best", f"{metric}, last", "validations", "state", "seconds", "folder"]
        )
        for run in runs:
            last = run.values[-1] if run.values else math.nan
            folder = next((str(path) for path in RUNS.glob(f"*/{run.id}")), "")
            figures = [run.best(maximise), last, len(run.values), run.state, round(run.seconds, 1), folder]
            writer.writerow([run.id, *(run.parameters.get(name, "") for name in names), *figures])


def swept(runs: Iterable[Run]) -> list[str]:
    """The parameters that differ between the runs, but for the seed."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.parameters.items():
            seen.setdefault(name, set()).add(str(value))
    return [name for name, values in seen.items() if len(values) > 1 and name != SEED]


def groups(runs: list[Run], names: list[str], maximise: bool) -> dict[str, list[float]]:
    """The best values of the runs with the same parameters: those of different seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if not math.isnan(best := run.best(maximise)):
            values = [f"{v:.4g}" if isinstance(v := run.parameters[name], float) else v for name in names]
            label = ", ".join(f"{name.rpartition('.')[2]}={v}" for name, v in zip(names, values, strict=True))
            found.setdefault(label or "all", []).append(best)
    return found


def table(runs: list[Run], metric: str, maximise: bool) -> str:
    """A Markdown table, the best first: mean, standard deviation and range over the runs with the same parameters."""
    lines = [f"| {metric}, best of each run | mean ± std | lowest to highest | runs |", "|---|---|---|---|"]
    found = groups(runs, swept(runs), maximise)
    for label, values in sorted(found.items(), key=lambda item: statistics.mean(item[1]), reverse=maximise):
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        mean = f"{statistics.mean(values):.3f}{spread}"
        lines.append(f"| {label} | {mean} | {min(values):.3f} to {max(values):.3f} | {len(values)} |")
    return "\n".join(lines)


def picture(config: dict[str, Any], runs: list[Run], maximise: bool, path: Path) -> None:
    """The best value of each run: over each parameter that has a range, and over the combinations of the others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without a display
    from matplotlib.figure import Figure

    names, metric = swept(runs), config["metric"]["name"]
    ranges = [name for name in names if "values" not in config["parameters"].get(name, {})]
    found = groups(runs, [name for name in names if name not in ranges], maximise)
    panels = len(ranges) + (len(found) > 1 or not ranges)
    figure = Figure(figsize=(max(5.0 * panels, 1.2 * len(found)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, name in zip(axes, ranges, strict=False):
        axis.scatter([run.parameters[name] for run in runs], [run.best(maximise) for run in runs])
        axis.set_xscale("log" if "log" in config["parameters"][name].get("distribution", "") else "linear")
        axis.set(xlabel=name, ylabel=f"{metric}, best")
    if panels > len(ranges):
        for x, values in enumerate(found.values()):
            axes[-1].scatter([x] * len(values), values, alpha=0.5)
            axes[-1].hlines(statistics.mean(values), x - 0.3, x + 0.3, colors="black")
        axes[-1].set_xticks(range(len(found)), [label.replace(", ", "\n") for label in found], rotation=30, ha="right")
        axes[-1].set(ylabel=f"{metric}, best; a line for the mean")
    figure.savefig(path, dpi=120)
