"""cluster/train.sbatch on a real SLURM: a job that loses its nodes comes back and ends as if undisturbed."""

import re
import subprocess
import sys

import pytest

from tests import disturbed
from tests.disturbed import (
    ENVIRONMENT,
    HOLD,
    INTERVAL,
    WORDS,
    checkout,
    held,
    hold,
    is_as_undisturbed,
    repeated,
    wait,
)
from tests.slurm import Slurm, Unavailable

pytestmark = pytest.mark.slow
CONFIGS = ["fit", "--config", "configs/image/cued_digits.yaml", "--config", "configs/trainer/ddp.yaml"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    try:
        cluster = Slurm(tmp_path_factory.mktemp("slurm"), ENVIRONMENT | {"MASTER_ADDR": "127.0.0.1"})
    except Unavailable as reason:
        pytest.skip(f"no SLURM: {reason}")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The weights of a run without SLURM, of two processes that Lightning starts."""
    folder = checkout(tmp_path_factory.mktemp("local"))
    command = [sys.executable, "train.py", *CONFIGS, *WORDS, "--trainer.devices=2", "--id=local"]
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, timeout=200)
    return disturbed.weights(folder, "local")


@pytest.fixture
def folder(tmp_path):
    return checkout(tmp_path)


@pytest.fixture
def submit(slurm, folder):
    """Gives the job's id; at the end of the test the job is over, and its log printed."""
    jobs = []

    def submitted(*words, options=("--time=60",)):
        jobs.append(slurm.run("sbatch", "--parsable", *options, "cluster/train.sbatch", *CONFIGS, *words, cwd=folder))
        return jobs[-1]

    yield submitted
    for job in jobs:
        slurm.run("scancel", job)
        wait(lambda job=job: slurm.job(job)["JobState"] != "COMPLETING", 60, "its processes have left")
        print((folder / f"slurm-{job}.out").read_text())


def finished(slurm, job, restarts):
    wait(lambda: slurm.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), 200, "its end")
    shown = slurm.job(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", str(restarts))


def preempt(slurm, folder):
    """Submits another job that needs both nodes and goes before."""
    words = ["--partition=high", "--nodes=2", "--exclusive", "--output=high.out", "--wrap=true"]
    return slurm.run("sbatch", "--parsable", *words, cwd=folder)


def test_two_nodes_give_the_weights_of_two_local_processes(slurm, submit, folder, expected):
    job = submit(*WORDS)
    finished(slurm, job, restarts=0)
    assert is_as_undisturbed(folder, job, expected)


def test_told_by_usr1_and_by_its_time_limit_it_saves_and_requeues(slurm, submit, folder, expected):
    job = submit(*WORDS, hold(4, HOLD), options=("--time=60", "--signal=USR1@150"))
    held(folder, 4)
    slurm.run("scancel", "--signal=USR1", job)
    held(folder, HOLD)
    slurm.run("scontrol", "update", f"job={job}", "TimeLimit=3")  # minutes; the signal is due after 30 s
    wait(lambda: slurm.job(job)["Restarts"] == "2", 90, "it is back in the queue")
    slurm.run("scontrol", "update", f"job={job}", "TimeLimit=60")  # else the last turn gets it too, after its end
    finished(slurm, job, restarts=2)
    log = (folder / f"slurm-{job}.out").read_text()
    assert re.findall(r"(SIG\w+): saved .* after step (\d+)", log) == [("SIGUSR1", "4"), ("SIGUSR1", str(HOLD))]
    assert repeated(folder, 0) == repeated(folder, 1) == 0
    assert is_as_undisturbed(folder, job, expected)


def test_preempted_before_training_began_and_in_it_it_requeues(slurm, submit, folder, expected):
    job = submit(*WORDS, hold(HOLD))
    wait(lambda: f"{job}.0" in slurm.run("squeue", "--steps", "--noheader"), 60, "its processes")
    preempt(slurm, folder)
    held(folder, HOLD)
    assert slurm.job(job)["Restarts"] == "1"
    other = preempt(slurm, folder)
    finished(slurm, job, restarts=2)
    assert slurm.job(other)["EndTime"] <= slurm.job(job)["StartTime"]
    assert repeated(folder, 0) == repeated(folder, 1) == 0
    assert is_as_undisturbed(folder, job, expected)


def test_a_node_killed_in_an_epoch_loses_no_more_than_the_interval(slurm, submit, folder, expected):
    job = submit(*WORDS, hold(HOLD))
    _, second = held(folder, HOLD)
    slurm.kill_node("n2", second)
    wait(lambda: slurm.job(job)["Restarts"] == "1", 90, "SLURM finds the node dead")
    slurm.start_node("n2")
    finished(slurm, job, restarts=1)
    assert 0 < repeated(folder, 0) <= INTERVAL
    assert 0 < repeated(folder, 1) <= INTERVAL
    assert is_as_undisturbed(folder, job, expected)


def test_cancelled_it_saves_and_stays_away_and_another_job_goes_on(slurm, submit, folder, expected):
    job = submit(*WORDS, hold(HOLD))
    held(folder, HOLD)
    slurm.run("scancel", job)
    wait(lambda: slurm.job(job)["JobState"] not in ("RUNNING", "COMPLETING"), 60, "its end")
    ended = slurm.job(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    finished(slurm, submit(*WORDS, f"--id={job}"), restarts=0)
    assert repeated(folder, 0) == repeated(folder, 1) == 0
    assert is_as_undisturbed(folder, job, expected)
