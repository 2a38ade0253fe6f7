"""What callbacks need of a task, whatever its class."""

from typing import Any


def require(callback: object, pl_module: Any, *names: str) -> None:
    """Refuse a LightningModule without attributes or methods of these names."""
    if missing := [name for name in names if not hasattr(pl_module, name)]:
        raise ValueError(
            f"{type(callback).__name__} needs a LightningModule with {', '.join(names)}, as a Task has them; "
            f"{type(pl_module).__name__} has no {', '.join(missing)}"
        )
