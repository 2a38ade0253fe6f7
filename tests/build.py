"""A task from the arguments of a resolved config, without the command line."""

from typing import Any

from nonlocal_nets.tasks import Blocks, Loss, Optimizer, Schedule, Task

OPTIONS = {"blocks": Blocks, "loss": Loss, "optimizer": Optimizer, "schedule": Schedule}


def build(task: type[Task], arguments: dict[str, Any]) -> Task:
    return task(**arguments | {name: kind(**arguments[name]) for name, kind in OPTIONS.items()})
