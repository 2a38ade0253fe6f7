"""Results are written completely or not at all."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end of the block.

    Whenever the process is killed or the block fails, `path` is what it was before.
    """
    part = beside(path)
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """Where a file is written before it takes the place of `path`; it has the same ending."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the disk names the file; that of a disk that is full does not by itself."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def try_lock(file: int | IO[str]) -> bool:
    """Lock an open file or folder; False where another process has locked it.

    The lock ends with this process, however it ends, or when it closes the file. A file system without locks: True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not supported
        pass
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file or folder is still the one with this path: another process may have moved or removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
