"""metrics.csv: one row for each logging of a run, also where the run was resumed."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from nonlocal_nets.files import naming, replacing
from nonlocal_nets.run.folder import METRICS


class Curve(Logger):
    """Appends rows to `metrics.csv` in a run's folder; a resumed run first drops those that it will log again.

    The columns are "step", "epoch" and the names of what is logged. Lightning's CSVLogger begins another file at each
    start, in a folder of its own.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path, self.columns, self.begun = folder / METRICS, list[str](), False

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def log_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, "epoch": None, **metrics}
        if not self.begun or row.keys() - set(self.columns):
            logged = rows(self.path)
            self._replace(logged if self.begun else before(logged, row), row)
            self.begun = True
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def _replace(self, kept: list[dict[str, str]], row: dict[str, Any]) -> None:
        """Write the rows that stay, with the columns of the next one."""
        self.columns = list(dict.fromkeys([*(kept[0] if kept else ()), *row]))
        with replacing(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)


def rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a file, of which the last may be half written; none where there is no file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def before(logged: list[dict[str, str]], row: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of earlier starts up to where a resumed run goes on, which is the place of its first row.

    Rows are in the order of time. Those of one step, of training and of validation, have no name in common.
    """
    names, step = row.keys() - {"step", "epoch"}, int(row["step"] or 0)
    for k, old in enumerate(logged):
        at = int(old["step"] or 0)
        if at > step or (at == step and any(old.get(name) for name in names)):
            return logged[:k]
    return logged
