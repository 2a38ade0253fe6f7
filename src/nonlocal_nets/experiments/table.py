"""The results of many runs: a Markdown table of mean and spread, and a csv with one row per run."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nonlocal_nets.files import replacing


@dataclass(frozen=True)
class Outcome:
    """The result of one run. Runs with the same label share a line of the table."""

    label: str
    value: float
    seconds: float  # of training


def table(outcomes: Iterable[Outcome], title: str, metric: str, mode: str | None = None) -> str:
    """A Markdown table: mean ± sample standard deviation, range, number of runs, and mean training time of each label.

    Args:
        outcomes: of all runs.
        title: heading of the labels.
        metric: heading of the values.
        mode: "max" or "min" sorts by the mean, the best first and NaN last; None keeps the order of the labels.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.label, []).append(outcome)
    digits = decimals(outcome.value for group in groups.values() for outcome in group)
    lines = [f"| {title} | {metric}, mean ± std | lowest to highest | runs | training, s |", "|---|---|---|---|---|"]
    return "\n".join(lines + [line(label, groups[label], digits) for label in ordered(groups, mode)])


def line(label: str, group: list[Outcome], digits: int) -> str:
    values = np.array([outcome.value for outcome in group])
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    mean, lowest, highest = (f"{value:.{digits}f}" for value in (values.mean(), values.min(), values.max()))
    seconds = np.mean([outcome.seconds for outcome in group])
    escaped = label.replace("|", r"\|")
    return f"| {escaped} | {mean}{spread} | {lowest} to {highest} | {len(values)} | {seconds:.0f} |"


def ordered(groups: Mapping[str, list[Outcome]], mode: str | None) -> list[str]:
    """The labels, by their mean if there is a mode."""
    if mode is None:
        return list(groups)
    means = {label: float(np.mean([outcome.value for outcome in group])) for label, group in groups.items()}
    sign = -1 if mode == "max" else 1
    return sorted(groups, key=lambda label: (math.isnan(means[label]), sign * means[label]))


def decimals(values: Iterable[float]) -> int:
    """How many decimals show three digits of the largest value; at least 3."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0)
    return max(3, 2 - math.floor(math.log10(largest))) if largest else 3


def save_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """One row per run; a column for each key, in the order in which the keys appear."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())


def write(path: Path, text: str) -> None:
    """Replace a file: whenever the process is killed, it has the old text or the new one."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")
