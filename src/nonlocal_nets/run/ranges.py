"""What the parser accepts, and a class then fails with or misunderstands: numbers out of range, and nulls."""

import math
import pydoc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from nonlocal_nets.run.arguments import FROM_DATA

SHARES = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")
NEEDED = {"fit": "limit_train", "validate": "limit_val", "test": "limit_test", "predict": "limit_predict"}


def _at_least(lowest: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: lowest <= value < math.inf, f"at least {lowest}"


def _count_or_share(lowest: int) -> tuple[Callable[[Any], bool], str]:
    def fits(value: Any) -> bool:
        return lowest <= value if isinstance(value, int) else 0 < value <= 1 or value == lowest

    return fits, f"a number of batches of at least {lowest}, or a share {'in [0' if lowest == 0 else 'in (0'}, 1]"


RANGES = {
    "accumulate_grad_batches": _at_least(1),
    "check_val_every_n_epoch": _at_least(1),
    "num_sanity_val_steps": _at_least(-1),
    "log_every_n_steps": _at_least(0),
    "gradient_clip_val": _at_least(0),
    "min_epochs": _at_least(0),
    "min_steps": _at_least(0),
    "max_epochs": _at_least(-1),
    "max_steps": _at_least(-1),
    "num_nodes": _at_least(1),
    "reload_dataloaders_every_n_epochs": _at_least(0),
    "fast_dev_run": _at_least(0),
    "val_check_interval": _count_or_share(1),
    **{name: _count_or_share(0) for name in SHARES},
}


def check_ranges(trainer: Any, verb: str) -> None:
    """Raise a ValueError for a number that does not fit.

    Args:
        trainer: the arguments of the Trainer, by name; None, texts and lists are left to it.
        verb: "fit", "validate", "test" or "predict".
    """
    for name, (fits, accepted) in RANGES.items():
        value = trainer.get(name)
        if isinstance(value, (int, float)) and not fits(value):
            raise ValueError(f"trainer.{name} must be {accepted}, got {value}")
    needed = f"{NEEDED[verb]}_batches"
    if trainer.get(needed) == 0:
        raise ValueError(f"trainer.{needed} must be above 0 for {verb}, got {trainer.get(needed)}")


def check_nulls(given: Any, group: str) -> None:
    """Raise a ValueError for a null of a class that takes none there; jsonargparse lets it pass.

    Args:
        given: class_path and init_args of a model or of data.
        group: "model" or "data".
    """
    if given is not None and given.get("init_args") is not None:
        kind: Any = pydoc.locate(given.class_path)
        arguments = {name: value for name, value in vars(given["init_args"]).items() if name not in FROM_DATA}
        with suppress(NameError):  # types that are imported for a type checker only
            _check_nulls(arguments, get_type_hints(kind.__init__), group)


def _check_nulls(given: dict[str, Any], types: dict[str, Any], group: str) -> None:
    for name, value in given.items():
        kind = types.get(name, Any)
        if value is None and kind is not Any and kind is not None and type(None) not in get_args(kind):
            raise ValueError(f"{group}.{name} must not be null, or empty")
        if isinstance(value, Namespace) and is_dataclass(kind):
            _check_nulls(vars(value), get_type_hints(kind), f"{group}.{name}")
