"""When a signal is acted on, by one process or several, and what SLURM is asked. (Whole runs: test_survival.py.)"""

import signal
import subprocess
from types import SimpleNamespace

import pytest

from nonlocal_nets.run import signals
from nonlocal_nets.run.checkpoints import LastCheckpoint
from nonlocal_nets.run.signals import SIGNALS, SaveOnSignal

OFTEN = ("every_n_train_steps", "train_time_interval", "every_n_epochs")


class Strategy:
    """Two processes, of which this is one; `other` is what the other one answers."""

    def __init__(self, other=False):
        self.other, self.waited = other, 0

    def reduce_boolean_decision(self, decision, all):
        return (decision and self.other) if all else (decision or self.other)

    def barrier(self):
        self.waited += 1


@pytest.fixture(autouse=True)
def outside_of_jobs(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def trainer(tmp_path):
    return SimpleNamespace(
        global_step=3,
        is_global_zero=True,
        strategy=Strategy(),
        callbacks=[LastCheckpoint(tmp_path / "elsewhere", dict.fromkeys(OFTEN))],
        saved=[],
    )


def ends(trainer, received):
    """The exit code, or None where training goes on."""
    callback = SaveOnSignal()
    callback.received = received
    trainer.save_checkpoint = trainer.saved.append
    try:
        callback.after_step(trainer)
    except SystemExit as stop:
        return stop.code
    return None


def test_a_signal_after_the_last_step_is_named(trainer, caplog):
    callback = SaveOnSignal()
    callback.on_train_end(trainer, None)
    assert not caplog.text
    callback.received = signal.SIGTERM
    callback.on_train_end(trainer, None)
    assert "SIGTERM: after the last step; the run is at its end" in caplog.text


def test_without_a_signal_it_goes_on(trainer):
    assert ends(trainer, None) is None
    assert trainer.saved == []


@pytest.mark.parametrize("number", SIGNALS)
def test_it_saves_once_waits_for_the_others_and_ends(trainer, tmp_path, number):
    assert ends(trainer, number) == 128 + number
    assert trainer.saved == [tmp_path / "elsewhere" / "last.ckpt"]
    assert trainer.strategy.waited == 1


def test_a_signal_of_another_process_is_enough(trainer):
    trainer.strategy = Strategy(other=True)
    assert ends(trainer, None) is not None
    assert len(trainer.saved) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 128 + signal.SIGUSR1)])
def test_in_a_sweep_only_a_run_that_was_told_to_end_has_not_failed(trainer, monkeypatch, number, code):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert ends(trainer, number) == code


@pytest.mark.parametrize("first", [True, False])
def test_one_process_puts_the_job_back_into_the_queue(trainer, monkeypatch, first):
    requeued = []
    monkeypatch.setattr(signals, "requeue_job", lambda: requeued.append(True))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    trainer.is_global_zero = first
    ends(trainer, signal.SIGUSR1)
    assert requeued == [True] * first


def test_each_fit_begins_without_the_signals_of_the_one_before():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    callback = SaveOnSignal()
    try:
        callback.on_train_start(None, None)
        for number in SIGNALS:
            signal.raise_signal(number)
            assert callback.received == number
            callback.on_train_start(None, None)
            assert callback.received is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("JobState=RUNNING PreemptTime=2026-11-23T04:12:58", True),
        ("JobState=CANCELLED PreemptTime=2026-11-23T04:12:58", False),
        ("JobState=RUNNING PreemptTime=None", False),
    ],
)
def test_a_job_is_preempted_while_it_runs_and_has_a_time_for_it(monkeypatch, shown, expected):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(signals, "scontrol", lambda *_: SimpleNamespace(stdout=shown))
    assert signals.preempted() == expected


def test_a_task_of_an_array_is_requeued_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(
        signals.subprocess, "run", lambda args, **_: asked.append(args) or SimpleNamespace(returncode=0)
    )
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    signals.requeue_job()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    signals.requeue_job()
    assert asked == [["scontrol", "requeue", "14"], ["scontrol", "requeue", "12_3"]]


def test_a_job_that_cannot_be_requeued_says_what_to_do(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    failed = subprocess.CompletedProcess([], 1, "", "Requested operation is presently disabled\n")
    monkeypatch.setattr(signals, "scontrol", lambda *_: failed)
    message = (
        "scontrol requeue 12 failed, submit again with --ckpt_path=last: Requested operation is presently disabled$"
    )
    with pytest.warns(UserWarning, match=message):
        signals.requeue_job()


def test_without_scontrol_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.warns(UserWarning, match="scontrol requeue 12 failed.*No such file or directory: 'scontrol'"):
        signals.requeue_job()
