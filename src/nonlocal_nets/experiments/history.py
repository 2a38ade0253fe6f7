"""What a run has logged, read from its folder while it trains or afterwards."""

import csv
from pathlib import Path


def history(folder: Path | None, metric: str) -> tuple[list[float], list[str]]:
    """The values of a metric, ordered by step, and the names of everything logged.

    Each start of a run writes a CSV log of its own. A resumed run may repeat steps: the latest value of a step counts.

    Args:
        folder: of the run; None if it does not exist yet, which gives no values.
        metric: such as "val/loss".
    """
    values: dict[int, float] = {}
    names: dict[str, None] = {}
    paths = folder.glob("csv/version_*/metrics.csv") if folder else ()
    for path in sorted(paths, key=lambda path: int(path.parent.name.removeprefix("version_"))):
        text = path.read_text()
        complete = text[: text.rfind("\n") + 1]  # the last row may be half written
        reader = csv.DictReader(complete.splitlines())
        values |= {int(row["step"]): float(row[metric]) for row in reader if row.get(metric)}
        names |= dict.fromkeys(reader.fieldnames or ())
    return [values[step] for step in sorted(values)], [name for name in names if name not in ("step", "epoch")]
