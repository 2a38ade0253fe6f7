"""A folder belongs to one run: names of runs, and who may write into a folder."""

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nonlocal_nets.files import is_at, try_lock
from nonlocal_nets.run.folder import RunFolder

NAME = re.compile(r"\w([\w .+=,@~-]*[\w+=,@~-])?")
LONGEST = 100  # letters of a name: a file system's limit is 255 bytes, and other names are made of it

_held: dict[Path, tuple[int, list[Path]]] = {}  # what this process has locked: a descriptor, and the folders it made


def check_name(option: str, name: str) -> None:
    """Raise a ValueError for a project or an id that is not the name of one folder on any system."""
    if len(name) > LONGEST:
        raise ValueError(f"{option} must have at most {LONGEST} letters, got {len(name)}: {name[:20]}...")
    if not NAME.fullmatch(name):
        accepted = "letters, digits, spaces and any of _.+=,@~-, beginning with a letter, a digit or _"
        raise ValueError(f"{option} must be the name of a folder ({accepted}), got {name!r}")


def claim(folder: RunFolder, resume: bool) -> None:
    """Reserve a run's folder, and that of its checkpoints, for this process, until `release`.

    Raises:
        ValueError: another process trains into it; or it holds a run, and this one is not to go on with it.
    """
    for path in _folders(folder):
        _check_lock(path)
    _check_checkpoints(folder)
    if holds_a_run(folder) and not resume:
        advice = "--ckpt_path=last goes on with it; or choose another --id, or delete the folder first"
        raise ValueError(f"{folder.path} holds a run: {advice}")


def _check_lock(path: Path) -> None:
    if not _lock(path):
        raise ValueError(f"another process trains into {path}: wait for its end, or choose another --id")


def _check_checkpoints(folder: RunFolder) -> None:
    """Raise a ValueError for a --checkpoint.dirpath that holds the checkpoints of another id."""
    if folder.checkpoint_dir is not None and not folder.config.is_file() and holds_a_run(folder):
        raise ValueError(f"{folder.checkpoints} holds another run's checkpoints: choose another --checkpoint.dirpath")


def holds_a_run(folder: RunFolder) -> bool:
    """Whether there is something to lose; not where a run ended before its first step."""
    return any(folder.checkpoints.glob("*.ckpt")) or folder.metrics.is_file()


def unused(stem: str, folder_of: Callable[[str], RunFolder], same: Callable[[RunFolder], bool], lock: bool) -> str:
    """An id for a run: stem, stem-2, ..., the first whose folder is free, or holds the same run, to go on with.

    Args:
        stem: such as the number of a SLURM job, in which there may be several runs.
        folder_of: the folder of an id.
        same: whether a folder holds the run that is to go on.
        lock: whether to reserve the folder; else it is only looked for, by the other processes of a run.

    Raises:
        ValueError: a --checkpoint.dirpath, which is the same for all of them, that is in use or holds another run's.
    """
    for name in _numbered(stem):
        folder = folder_of(name)
        if lock and not _lock(folder.path):
            continue
        if lock and folder.checkpoint_dir is not None:
            _check_lock(folder.checkpoint_dir)
        _check_checkpoints(folder)
        if not (holds_a_run(folder) or folder.config.is_file()) or same(folder):
            return name
        release(folder)
    raise AssertionError("there is always another number")


@contextmanager
def released() -> Iterator[None]:
    """Gives up all folders at the end of a command."""
    try:
        yield
    finally:
        release()


def stamp() -> str:
    """The time, as an id."""
    return time.strftime("%Y%m%d-%H%M%S")


def release(folder: RunFolder | None = None) -> None:
    """Give up a folder, by default all of this process, and remove what was made for it if nothing is in it."""
    for path in list(_held) if folder is None else [path.absolute() for path in _folders(folder)]:
        descriptor, made = _held.pop(path, (None, []))
        for empty in made:
            with suppress(OSError):  # it has files, or is another's
                empty.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def _folders(folder: RunFolder) -> list[Path]:
    return [folder.path, *([] if folder.checkpoint_dir is None else [folder.checkpoint_dir])]


def _numbered(stem: str) -> Iterator[str]:
    return (stem if k == 1 else f"{stem}-{k}" for k in itertools.count(1))


def _lock(path: Path) -> bool:
    """Create and lock a folder; False where another process has it."""
    path = path.absolute()
    while path not in _held:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
        if not try_lock(descriptor):
            os.close(descriptor)
            return False
        if is_at(path, descriptor):
            _held[path] = descriptor, made
        else:  # another process has just removed it
            os.close(descriptor)
    return True


def _forget() -> None:
    """In a forked child, such as a worker of a loader, which may outlive a process that was killed."""
    for descriptor, _made in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
