"""What a run has logged, read from its folder while it trains or afterwards."""

from pathlib import Path

from nonlocal_nets.run.curve import rows
from nonlocal_nets.run.folder import METRICS


def history(folder: Path | None, metric: str) -> tuple[list[float], list[str]]:
    """The values of a metric, ordered by step, and the names of everything logged.

    Args:
        folder: of the run; None if it does not exist yet, which gives no values.
        metric: such as "val/loss".
    """
    logged = rows(folder / METRICS) if folder else []
    values = {int(row["step"]): float(row[metric]) for row in logged if row.get(metric)}
    names = [name for name in (logged[0] if logged else ()) if name not in ("step", "epoch")]
    return [values[step] for step in sorted(values)], names
