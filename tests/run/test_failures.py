"""Which errors are one line on stderr, and what is in it."""

import shutil
import sys
import threading

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.run.errors import RunError, fail
from nonlocal_nets.run.failures import Failures


def line_of(capsys, error, begun=False):
    failures = Failures()
    if begun:
        failures.on_train_batch_start()
    with pytest.raises(SystemExit, match="2"), failures.one_line():
        raise error
    (line,) = capsys.readouterr().err.splitlines()
    return line.partition(": error: ")[2]


def test_before_the_first_batch_every_error_is_one_line(capsys):
    assert line_of(capsys, ValueError("no such value")) == "no such value"
    shown = "KeyError: 'a' (JSONARGPARSE_DEBUG=true shows where)"
    assert line_of(capsys, KeyError("a")) == shown, "not written for users"


@pytest.mark.parametrize("error", [CorruptFileError("a.png"), RunError("a"), OSError("full")], ids=repr)
def test_in_training_those_are_that_need_no_mistake_in_the_code(error, capsys):
    assert line_of(capsys, error, begun=True) == str(error)


def test_a_mistake_in_the_code_of_a_task_keeps_its_traceback(monkeypatch):
    failures = Failures()
    failures.on_train_batch_start()
    with pytest.raises(KeyError), failures.one_line():
        raise KeyError("a")
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(ValueError, match="no such value"), Failures().one_line():
        raise ValueError("no such value")


def test_a_full_disk_has_a_name_and_bytes_are_no_part_of_it(capsys, tmp_path):
    failures = Failures()
    failures.folder = tmp_path
    with pytest.raises(SystemExit, match="2"), failures.one_line(), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"a")
    assert f"No space left on device, in {tmp_path}\n" in capsys.readouterr().err
    shown = line_of(capsys, FileNotFoundError(2, "No such file or directory", b"runs/a/events"))
    assert shown == "[Errno 2] No such file or directory: 'runs/a/events'"


def test_the_error_of_tensorboards_writer_is_not_also_a_traceback(capsys, tmp_path):
    writer = EventFileWriter(str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")

    def write():
        for _ in range(100):
            writer.add_event(Event(step=1))
            writer.flush()

    before = threading.excepthook
    with pytest.raises(SystemExit, match="2"), Failures().one_line():
        write()
    assert threading.excepthook is before
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "error: [Errno 2] No such file or directory" in printed


@pytest.mark.parametrize("program", ["train.py", "a/nonlocal_nets/__main__.py", ""])
def test_a_line_has_less_than_300_characters_its_start_and_its_end(program, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit):
        fail("begin " + 500 * "x" + " end")
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 300
    assert ": error: begin x" in line
    assert line.endswith("x end")


@pytest.mark.parametrize(
    "secret",
    [
        "s3://key:secret@host/a",
        "https://me:secret@host/a",
        "https://host/a?token=secret&b=1",
        "https://host/a?api_key=secret",
        "https://me:with/secret@host/a",
        "https://host/a?sig=secret",
        "{'class_path': 'WandbLogger', 'init_args': {'api_key': 'secret'}}",
        "{api_key: secret, foo: 1}",
    ],
)
def test_credentials_are_not_shown(secret, capsys):
    with pytest.raises(SystemExit):
        fail(f"cannot open {secret!r}")
    assert "secret" not in capsys.readouterr().err
