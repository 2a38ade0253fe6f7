"""Runs that are told to end, or killed, whenever it may be, and go on: the weights are those of a run left in peace."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from nonlocal_nets.run.cli import main
from nonlocal_nets.run.folder import RUN_ID, shared_id
from nonlocal_nets.run.signals import SIGNALS
from tests.run.conftest import SMALL

CONFIG = str(Path(__file__).parents[2] / "configs" / "image" / "cued_digits.yaml")
WORDS = [
    "fit",
    "--config",
    CONFIG,
    "--data.batch_size=4",
    "--data.train_samples=24",
    "--model.mixup=0.3",
    "--trainer.max_epochs=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
FOLDER = Path("runs/cued_digits")
# 20 children of a process that has imported everything, each killed at a random moment; the disk is slow.
KILLED_OFTEN = """
import os, random, signal, sys, time
import torch
from nonlocal_nets.run import cli
from nonlocal_nets.run import checkpoints

torch.set_num_threads(1)
save = torch.save

def slowly(checkpoint, file):
    save(checkpoint, file)
    whole = file.tell()
    file.truncate(whole // 2)
    file.flush()
    time.sleep(0.2)  # half of it is on the disk
    file.seek(0)
    save(checkpoint, file)

import timm.data.mixup  # as mixup does, at once

part = "runs/cued_digits/killed/checkpoints/last.ckpt.part"
random.seed(0)
torn = 0
for attempt in range(20):
    if os.path.exists(part):
        os.remove(part)
    child = os.fork()
    if child == 0:
        checkpoints.torch.save = slowly
        cli.main(sys.argv[1:])
        os._exit(1)
    while not os.path.exists(part):  # it begins to train
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn += os.path.exists(part)
print("torn", torn)
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in handlers} == handlers, "a run restores them"


@pytest.fixture(scope="module")
def folder_of_a_whole_run(tmp_path_factory):
    here, folder = Path.cwd(), tmp_path_factory.mktemp("whole")
    os.chdir(folder)
    try:
        main([*WORDS, "--id=whole"])
        return folder / FOLDER / "whole"
    finally:
        os.chdir(here)


@pytest.fixture
def undisturbed(folder_of_a_whole_run):
    """The weights of a whole run, of which a copy is here."""
    shutil.copytree(folder_of_a_whole_run, FOLDER / "whole")
    return weights("whole")


def differences(one, other):
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def weights(run):
    return torch.load(FOLDER / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


class Signal(pl.Callback):
    """Sends this process a signal in the middle of a step."""

    number, step, children = signal.SIGTERM, 8, False

    def on_before_zero_grad(self, trainer, module, optimizer):
        if trainer.global_step == self.step:
            for child in multiprocessing.active_children() if self.children else []:
                os.kill(child.pid, self.number)
            os.kill(os.getpid(), self.number)


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A stand-in that writes down its arguments, and shows a job (a real one: tests/run/test_slurm.py)."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ $1 = requeue ] || echo "$SHOWN"\n')
    command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


def begin_in_a_job(monkeypatch, number, *words):
    """Start a run as SLURM's job 12, which is told to end in its ninth step."""
    monkeypatch.setattr(Signal, "number", number)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # interactive to Lightning, which else wants SLURM's tasks
    with pytest.raises(SystemExit) as stop:
        main([*WORDS, *words, "--id=told", "--trainer.callbacks+=tests.run.test_survival.Signal"])
    assert stop.value.code == 128 + number


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")  # exactly
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it should, on a resume
def test_told_to_end_it_saves_after_the_step_and_goes_on_bit_for_bit(monkeypatch, scontrol, undisturbed):
    """At the time limit of its job; its checkpoints are elsewhere."""
    monkeypatch.setenv("SHOWN", "")
    begin_in_a_job(monkeypatch, signal.SIGUSR1, "--checkpoint.dirpath=far")
    saved = torch.load("far/last.ckpt", weights_only=True)
    assert saved["global_step"] == 9, "the step in progress is finished; 6 are an epoch"
    assert scontrol.read_text().splitlines() == ["requeue 12"]
    main([*WORDS, "--checkpoint.dirpath=far", "--id=told", "--ckpt_path=last"])
    ended = torch.load("far/last.ckpt", weights_only=True)
    assert differences(undisturbed, ended["state_dict"]) == []
    assert [path.name for path in Path().glob("**/config.yaml") if "told" in path.parts] == ["config.yaml"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("JobState=CANCELLED PreemptTime=None", ["show job 12"]),  # scancel
        ("JobState=RUNNING PreemptTime=2026-11-23T04:12:58", ["show job 12", "requeue 12"]),
    ],
    ids=["cancelled", "pre-empted"],
)
def test_a_job_that_is_pre_empted_comes_back_and_one_that_is_cancelled_does_not(monkeypatch, scontrol, shown, expected):
    monkeypatch.setenv("SHOWN", shown)
    begin_in_a_job(monkeypatch, signal.SIGTERM)
    saved = torch.load(FOLDER / "told" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 9
    assert scontrol.read_text().splitlines() == expected


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_told_to_end_with_workers_which_get_the_signal_too(monkeypatch, caplog, undisturbed):
    """As a terminal sends Ctrl-C, and SLURM SIGTERM, to all processes: one start gets the one, the next the other."""
    words = [*WORDS, "--data.num_workers=2", "--id=told", "--ckpt_path=last"]
    monkeypatch.setattr(Signal, "children", True)
    command = "python -m nonlocal_nets fit --config runs/cued_digits/told/config.yaml --ckpt_path=last"
    for number, step in ((signal.SIGINT, 8), (signal.SIGTERM, 10)):
        caplog.clear()
        monkeypatch.setattr(Signal, "number", number)
        monkeypatch.setattr(Signal, "step", step)
        with pytest.raises(SystemExit) as stop:
            main([*words, "--trainer.callbacks+=tests.run.test_survival.Signal"])
        assert stop.value.code == 128 + number
        assert f"{number.name}: saved runs/cued_digits/told/checkpoints/last.ckpt after step {step + 1}" in caplog.text
        assert f"to go on: {command}" in caplog.text
    main(words)
    assert differences(undisturbed, weights("told")) == []


class SignalBefore(pl.Callback):
    """Sends this process a signal where nothing is trained."""

    number = signal.SIGTERM

    def _send(self, *_):
        os.kill(os.getpid(), self.number)

    on_sanity_check_start = on_test_batch_end = on_predict_batch_end = _send


@pytest.mark.parametrize(
    ("number", "verb"), [(signal.SIGUSR1, "test"), (signal.SIGTERM, "fit"), (signal.SIGINT, "test")]
)
def test_told_to_end_where_nothing_is_trained_it_ends_at_once_and_leaves_no_file(number, verb, monkeypatch):
    monkeypatch.setattr(SignalBefore, "number", number)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    more = ["--id=told", "--trainer.callbacks+=tests.run.test_survival.SignalBefore"]
    with pytest.raises(SystemExit) as stop:
        main([verb, *WORDS[1:], *more, *(["--ckpt_path=initial"] if verb == "test" else [])])
    assert stop.value.code == 128 + number
    assert not list(Path().rglob("*.ckpt"))


def test_a_checkpoint_of_lightning_s_slurm_handler_is_not_loaded(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    folder = FOLDER / "new"
    for place in (folder, Path()):
        place.mkdir(parents=True, exist_ok=True)
        (place / "hpc_ckpt_1.ckpt").write_bytes(b"another run's")
    assert main([*WORDS, "--id=new", "--trainer.max_epochs=1"]).trainer.global_step == 6


def test_told_to_end_by_wandbs_agent_it_has_not_failed(monkeypatch):
    """The agent takes any code but 0 for a failure, and ends after five."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    with pytest.raises(SystemExit) as stop:
        main([*WORDS, "--id=told", "--trainer.callbacks+=tests.run.test_survival.Signal"])
    assert stop.value.code == 0
    assert (FOLDER / "told" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    "often",
    [
        pytest.param(
            "every_n_train_steps=5", marks=pytest.mark.slow
        ),  # fast: test_cli.py, "as often as the user wants"
        "train_time_interval=01:00:00",
        pytest.param("every_n_epochs=5", marks=pytest.mark.slow),  # fast: test_checkpoints.py
    ],
)
def test_the_last_checkpoint_of_a_whole_run_is_its_end(often):
    cli = main([*WORDS, "--id=whole", f"--checkpoint.{often}"])
    saved = torch.load(FOLDER / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == cli.trainer.global_step == 12
    assert differences(saved["state_dict"], cli.model.state_dict()) == []


class StopError(Exception):
    """As if the process had been killed."""


class StopsAfterFourBatches(pl.Callback):
    def __init__(self):
        self.left = 5

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.left -= 1
        if not self.left:
            raise StopError


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=pytest.mark.slow),  # fast: test_drill.py, "killed again and again"
        pytest.param(["--trainer.max_steps=11"], marks=pytest.mark.slow),
        pytest.param(["--trainer.accumulate_grad_batches=2"], marks=pytest.mark.slow),
        pytest.param(["--trainer.val_check_interval=0.5"], marks=pytest.mark.slow),
    ],
)
def test_interrupted_again_and_again(more):
    words = [*WORDS, "--checkpoint.every_n_train_steps=1", *more]
    whole = main([*words, "--id=whole"])
    starts, ended = 0, None
    while ended is None:
        starts += 1
        try:
            stop = "--trainer.callbacks+=tests.run.test_survival.StopsAfterFourBatches"
            ended = main([*words, "--id=stopped", "--ckpt_path=last", stop])
        except StopError:
            pass
    assert starts in (3, 4)
    assert ended.trainer.global_step == whole.trainer.global_step
    assert differences(weights("whole"), weights("stopped")) == []


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a copy of a run
def test_a_torn_last_checkpoint_is_passed_over(undisturbed, caplog):
    folder = FOLDER / "whole" / "checkpoints"
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"'{last}' is not a checkpoint: .*; taking the one before it"):
        cli_again = main([*WORDS, "--id=whole", "--ckpt_path=last"])
    (best,) = folder.glob("epoch=*.ckpt")
    assert f"--ckpt_path=last: {best}" in caplog.text
    assert cli_again.trainer.global_step == 12
    assert differences(undisturbed, weights("whole")) == []


def test_the_first_start_with_last_begins(caplog):
    main([*WORDS, "--id=new", "--ckpt_path=last", "--trainer.max_epochs=1"])
    assert "none in runs/cued_digits/new/checkpoints yet, starting the run" in caplog.text


def test_a_full_disk_ends_the_run_with_one_line(monkeypatch, capsys):
    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nonlocal_nets.run.checkpoints.os.fsync", full)
    with pytest.raises(SystemExit) as stop:
        main([*WORDS, "--id=full"])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: cannot write the checkpoint" in line
    assert "No space left on device" in line


class DiskFails(pl.Callback):
    """In the second batch the disk is full, the folder of the run is deleted, or files cannot grow beyond a size."""

    how: str | int = "full"

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            self.fail(trainer)

    on_predict_batch_start = on_train_batch_start

    def fail(self, trainer):
        folder = Path(trainer.default_root_dir)
        if self.how == "deleted":
            shutil.rmtree(folder)
        elif self.how == "full":
            (folder / "metrics.csv").unlink()
            (folder / "metrics.csv").symlink_to("/dev/full")
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.how, resource.RLIM_INFINITY))


@pytest.fixture
def disk_fails():
    yield DiskFails
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("how", "reason", "files"),
    [
        ("full", "No space left on device", "metrics.csv"),
        (20_000, "File too large", "last.ckpt"),
        ("deleted", "No such file or directory", "metrics.csv|events"),
    ],
)
def test_a_full_disk_or_a_deleted_folder_ends_training_with_one_line(
    monkeypatch, disk_fails, capsys, how, reason, files
):
    monkeypatch.setattr(disk_fails, "how", how)
    logger = ["--trainer.logger=false"] if "ckpt" in files else []
    often = ["--checkpoint.every_n_train_steps=1", "--trainer.callbacks+=tests.run.test_survival.DiskFails"]
    with pytest.raises(SystemExit) as stop:
        main([*WORDS, *logger, *often, "--id=full"])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "error" in line.lower()]
    assert reason in line
    assert re.search(f"{FOLDER}/full/.*({files})", line)
    folder = FOLDER / "full" / "checkpoints"
    assert ["last.ckpt"] * folder.exists() == [path.name for path in folder.glob("*")], "no part of a file"
    if folder.exists():
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1, "the one of before is whole"


@pytest.mark.parametrize(("how", "left"), [(1000, {"predictions.csv"}), ("deleted", set())])
def test_a_full_disk_or_a_deleted_folder_in_predict(monkeypatch, disk_fails, capsys, small_images, how, left):
    monkeypatch.setattr(disk_fails, "how", how)
    path = Path("runs/default/full/predictions.csv")
    path.parent.mkdir(parents=True)
    path.write_text("of before")
    more = ["--data.path=data", "--ckpt_path=initial", "--trainer.callbacks+=tests.run.test_survival.DiskFails"]
    with pytest.raises(SystemExit) as stop:
        main(["predict", *SMALL, "--id=full", *more])
    assert stop.value.code == 2
    assert str(path) in capsys.readouterr().err.splitlines()[-1]
    assert {file.name for file in path.parent.glob("*")} == left
    assert not left or path.read_text() == "of before"


def test_without_checkpoints_it_trains_and_a_signal_saves_nothing(monkeypatch, scontrol, caplog, capsys):
    words = [*WORDS, "--id=told", "--trainer.enable_checkpointing=false"]
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    monkeypatch.setattr(Signal, "number", signal.SIGUSR1)
    with pytest.raises(SystemExit) as stop:
        main([*words, "--trainer.callbacks+=tests.run.test_survival.Signal"])
    assert stop.value.code == 128 + signal.SIGUSR1
    assert "SIGUSR1: nothing saved after step 9, as enable_checkpointing=false" in caplog.text
    assert "to go on" not in caplog.text
    assert not scontrol.exists(), "a requeued job would begin again, for ever"
    assert not list(Path().rglob("*.ckpt"))
    assert (FOLDER / "told" / "metrics.csv").is_file()
    with pytest.raises(SystemExit):
        main(words)
    assert "runs/cued_digits/told holds a run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_killed_twenty_times_at_any_moment_also_while_it_writes(tmp_path):
    words = [*WORDS, "--checkpoint.every_n_train_steps=1", "--trainer.max_epochs=20"]
    main([*words, "--id=whole"])
    command = [sys.executable, "-c", KILLED_OFTEN, *words, "--id=killed", "--ckpt_path=last"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 0, "some were killed while they wrote"
    main([*words, "--id=killed", "--ckpt_path=last"])
    assert differences(weights("whole"), weights("killed")) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"WANDB_RUN_ID": "sweep", "SLURM_JOB_ID": "3"}, "sweep"),
        ({"SLURM_JOB_ID": "3"}, "3"),
        ({"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "job", RUN_ID: "parent"}, "job"),
        ({"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none", RUN_ID: "parent"}, "parent"),
        ({RUN_ID: "an earlier run of this process"}, None),
    ],
)
def test_all_processes_of_a_run_find_the_same_id(monkeypatch, given, expected):
    for name in ("WANDB_RUN_ID", "SLURM_JOB_ID", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", RUN_ID):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert shared_id() == expected
