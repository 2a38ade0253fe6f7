"""A folder belongs to one run: names, two runs at once, and a folder that holds a run."""

import fcntl
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from nonlocal_nets.run import claim
from nonlocal_nets.run.folder import RunFolder

OTHER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    claim.release()


@pytest.fixture
def locked_by_another():
    """Lock a folder in another process until the end of the test."""
    processes = []

    def lock(path):
        path.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", OTHER, str(path)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "locked\n"
        return processes[-1]

    yield lock
    for process in processes:
        process.communicate()


def folder(run_id="a", dirpath=None):
    return RunFolder(Path("runs"), "digits", run_id, dirpath)


def begin(run_id):
    """Leave what a run has left after some steps."""
    metrics = folder(run_id).metrics
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.touch()


@pytest.mark.parametrize("name", ["a", "_", "25921e05", "1e5", "lr=0.1,wd=1e-4", "ä b", "20260101-120000-2", "x" * 100])
def test_names(name):
    claim.check_name("--id", name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "a/b",
        "/a",
        "a\\b",
        "../a",
        ".a",
        "-a",
        "a\n",
        "a\0",
        "a ",
        "a.",
        "~a",
        "*",
        "[a]",
        "x" * 101,
        "C:",
    ],
)
def test_names_of_no_folder(name):
    with pytest.raises(ValueError, match=r"^--project must ") as error:
        claim.check_name("--project", name)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def test_a_folder_that_holds_a_run_is_taken_only_to_go_on_with_it():
    claim.claim(folder(), resume=False)
    folder().config.touch()
    claim.claim(folder(), resume=False)  # it ended before its first step
    begin("a")
    claim.release()
    with pytest.raises(ValueError, match=r"^runs/digits/a holds a run: "):
        claim.claim(folder(), resume=False)
    claim.release()
    claim.claim(folder(), resume=True)
    claim.claim(folder("b"), resume=False)


def test_so_is_the_folder_of_its_checkpoints():
    shared = Path("far")
    shared.mkdir()
    (shared / "last.ckpt").touch()
    with pytest.raises(ValueError, match=r"^far holds another run's checkpoints: "):
        claim.claim(folder("b", shared), resume=False)
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        claim.claim(folder("b", shared), resume=True)


def test_a_run_without_an_id_whose_checkpoints_would_be_another_s(locked_by_another):
    """Another number does not help: the folder of the checkpoints is the same."""
    shared = Path("far")
    shared.mkdir()
    other = locked_by_another(shared)

    def unused(lock=True, same=lambda _folder: False):
        return claim.unused("now", lambda name: folder(name, shared), same, lock)

    with pytest.raises(ValueError, match=r"^another process trains into far: "):
        unused()
    other.kill()
    other.wait()
    assert unused() == "now"
    claim.release()
    (shared / "last.ckpt").touch()
    for lock in (True, False):
        with pytest.raises(ValueError, match=r"^far holds another run's checkpoints: "):
            unused(lock)
    begin("now")
    folder("now").config.touch()
    assert unused(same=lambda f: f.id == "now") == "now", "it goes on"
    claim.release()
    with pytest.raises(ValueError, match=r"^far holds another run's checkpoints: "):
        unused()


@pytest.mark.parametrize("dirpath", [None, Path("far")])
def test_the_second_of_two_processes_ends(locked_by_another, dirpath):
    path = folder(dirpath=dirpath).path if dirpath is None else dirpath
    other = locked_by_another(path)
    for resume in (False, True):
        with pytest.raises(ValueError, match=rf"^another process trains into {path}: wait for its end, or"):
            claim.claim(folder(dirpath=dirpath), resume)
    other.kill()
    other.wait()
    claim.claim(folder(dirpath=dirpath), resume=False)


def test_the_lock_is_not_inherited_by_workers_and_ends_with_the_command():
    claim.claim(folder(), resume=False)
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, b"it runs")
        time.sleep(60)
    os.read(reading, 1)
    try:
        descriptor = os.open(folder().path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder().path / "file").touch()
        claim.release()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_what_was_never_written_into_leaves_no_folder():
    with claim.released():
        claim.claim(folder(dirpath=Path("far")), resume=False)
        assert folder().path.is_dir()
    assert list(Path().iterdir()) == []
    with claim.released():
        claim.claim(folder(), resume=False)
        folder().config.touch()
    assert folder().config.is_file()


def test_an_id_that_is_not_given_is_that_of_no_other_run(locked_by_another):
    unused = partial(claim.unused, folder_of=folder, same=lambda _folder: False, lock=True)
    locked_by_another(folder("now").path)
    begin("now-2")
    folder("now-3").path.mkdir()  # a run that failed before it began
    assert unused("now") == "now-3"
    assert claim.unused("now", folder, lambda _folder: False, lock=False) == "now", "one that waits for nobody"
    begin("now-3")
    claim.release()
    assert claim.unused("now", folder, lambda f: f.id == "now-3", lock=True) == "now-3", "it goes on"
