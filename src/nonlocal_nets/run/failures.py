"""Which errors end a command with one line, and which with a traceback."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.run.errors import RunError, debug, fail, readable

EXPLAINED = (ValueError, OSError, ModuleNotFoundError, MisconfigurationException)  # their messages are for users
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # some errors of these kinds name no file
NOT_BUGS = (CorruptFileError, RunError, MisconfigurationException, OSError, MemoryError, torch.OutOfMemoryError)


class Failures(pl.Callback):
    """Until its first batch every error of a command is one line: it is about what was given.

    After that only those are which a run can meet without a mistake in any code, such as a disk that is full. Others
    keep their traceback, which is for the author of a data set or a task.
    """

    def __init__(self) -> None:
        self.begun = False
        self.folder: Path | None = None  # of the run, once it is known

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Ends the process with exit code 2 and one line, unless the user asked for tracebacks."""
        try:
            with _raised_once():
                yield
        except Exception as error:
            known = isinstance(error, NOT_BUGS) or "can't allocate memory" in str(error)
            if debug() or (self.begun and not known):
                raise
            unnamed = isinstance(error, OSError) and error.filename is None and error.errno in DISK
            where = f", in {self.folder}" if unnamed and self.folder else ""
            fail(describe(error) + where)

    def _begin(self, *args: Any) -> None:
        self.begun = True

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _begin  # type: ignore[assignment]


@contextmanager
def _raised_once() -> Iterator[None]:
    """TensorBoard's writer raises its error in its thread, which prints a traceback, and again in the main thread."""
    before = threading.excepthook

    def print_others(args: threading.ExceptHookArgs) -> None:
        if debug() or not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = print_others
    try:
        yield
    finally:
        threading.excepthook = before


def describe(error: Exception) -> str:
    """What an error says, in one line; of those that are not meant for users, also their name."""
    message = str(error)
    if isinstance(error, OSError) and isinstance(error.filename, bytes):  # TensorBoard's
        message = message.replace(repr(error.filename), repr(os.fsdecode(error.filename)))
    if "Original Traceback" in message:  # a worker's: the traceback, and last "path.of.TheError: what it says"
        message = message.splitlines()[-1].partition(": ")[2]
    elif not isinstance(error, EXPLAINED):
        first = message.strip().partition("\n")[0]
        message = f"{type(error).__name__}: {first} (JSONARGPARSE_DEBUG=true shows where)"
    return readable(message)
