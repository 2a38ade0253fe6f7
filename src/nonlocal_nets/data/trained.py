"""What a checkpoint says of the data that its network was trained on, for data modules that are constructed with it.

`predict` needs no training data. Where they are gone, the classes are those in the checkpoint.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


class MissingDataError(ValueError):
    """A folder or a file of a data set is not there. The message is one line and names what was expected."""


@dataclass(frozen=True)
class Trained:
    """The data of a trained network.

    Args:
        meaning: `DataModule.meaning` of the data that it was trained on.
        predicting: whether it is to predict, so that the training data are not needed.
    """

    meaning: Mapping[str, Any]
    predicting: bool


NONE = Trained({}, predicting=False)
_current: ContextVar[Trained] = ContextVar("trained", default=NONE)


@contextmanager
def trained_on(meaning: Mapping[str, Any], predicting: bool) -> Iterator[None]:
    """Data modules constructed inside belong to a trained network, see `Trained`."""
    token = _current.set(Trained(meaning, predicting))
    try:
        yield
    finally:
        _current.reset(token)


def known() -> Mapping[str, Any]:
    """The meaning of the data of the trained network; empty where there is none."""
    return _current.get().meaning


def classes_alone(trained: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """For `training_data`: the classes of the checkpoint, and no samples of any part."""
    return trained["class_names"], {}


def training_data(read: Callable[[], T], nothing: Callable[[Mapping[str, Any]], T]) -> T:
    """What `read` returns; in `predict`, where the data are gone, what `nothing` makes of the checkpoint's meaning.

    Raises:
        MissingDataError: the data are gone, and they are needed or no checkpoint knows the classes.
    """
    try:
        return read()
    except (MissingDataError, ModuleNotFoundError) as error:
        trained = _current.get()
        if not trained.predicting or not trained.meaning.get("class_names"):
            raise
        log.warning("%s; the classes are those of the checkpoint", error)
        return nothing(trained.meaning)
