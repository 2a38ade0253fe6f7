"""Results are written completely or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
