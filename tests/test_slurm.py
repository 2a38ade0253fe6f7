"""cluster/train.sbatch on a real SLURM: a job that loses its nodes comes back and ends as if undisturbed."""

import os
import subprocess
import sys

import pytest
import torch

from tests import disturbed
from tests.disturbed import ENVIRONMENT, HELD, HOLD, INTERVAL, WORDS, checkout, held, is_as_undisturbed, repeated, wait
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
        print((folder / f"slurm-{job}.out").read_text())


def finished(slurm, job, restarts):
    wait(lambda: slurm.job(job)["JobState"] not in ("RUNNING", "PENDING", "COMPLETING", "REQUEUED"), 200, "its end")
    shown = slurm.job(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", str(restarts))


def test_two_nodes_give_the_weights_of_two_local_processes(slurm, submit, folder, expected):
    job = submit(*WORDS)
    finished(slurm, job, restarts=0)
    assert is_as_undisturbed(folder, job, expected)


def test_told_by_usr1_it_saves_and_requeues_and_repeats_no_step(slurm, submit, folder, expected):
    job = submit(*WORDS, *HELD)
    held(folder)
    slurm.run("scancel", "--signal=USR1", job)
    finished(slurm, job, restarts=1)
    assert (repeated(folder, 0), repeated(folder, 1)) == (0, 0)
    assert is_as_undisturbed(folder, job, expected)


def test_at_its_time_limit_it_saves_and_requeues_and_repeats_no_step(slurm, submit, folder, expected):
    job = submit(*WORDS, *HELD, options=("--time=60", "--signal=USR1@150"))
    held(folder)
    slurm.run("scontrol", "update", f"job={job}", "TimeLimit=3")  # minutes; the signal is due after 30 s
    finished(slurm, job, restarts=1)
    assert "SIGUSR1: saved" in (folder / f"slurm-{job}.out").read_text()
    assert (repeated(folder, 0), repeated(folder, 1)) == (0, 0)
    assert is_as_undisturbed(folder, job, expected)


def test_preempted_it_saves_and_requeues_and_repeats_no_step(slurm, submit, folder, expected):
    job = submit(*WORDS, *HELD)
    held(folder)
    first = ["--partition=high", "--nodes=2", "--exclusive", "--output=high.out", "--wrap=date +%s"]
    high = slurm.run("sbatch", "--parsable", *first, cwd=folder)
    finished(slurm, job, restarts=1)
    assert slurm.job(high)["JobState"] == "COMPLETED"
    assert slurm.job(high)["EndTime"] <= slurm.job(job)["StartTime"]
    assert (repeated(folder, 0), repeated(folder, 1)) == (0, 0)
    assert is_as_undisturbed(folder, job, expected)


def test_a_node_killed_in_an_epoch_loses_no_more_than_the_interval(slurm, submit, folder, expected):
    job = submit(*WORDS, *HELD)
    _, second = held(folder)
    slurm.kill_node("n2", second)
    wait(lambda: slurm.job(job)["Restarts"] == "1", 90, "SLURM finds the node dead")
    slurm.start_node("n2")
    finished(slurm, job, restarts=1)
    assert 0 < repeated(folder, 0) <= INTERVAL
    assert 0 < repeated(folder, 1) <= INTERVAL
    assert is_as_undisturbed(folder, job, expected)


def test_told_before_training_began_it_comes_back_and_cancelled_it_stays_away(slurm, submit, folder):
    job = submit(*WORDS, *HELD)
    wait(lambda: f"{job}.0" in slurm.run("squeue", "--steps", "--noheader"), 60, "its processes")
    slurm.run("scancel", "--signal=USR1", job)
    first, _ = held(folder)
    assert slurm.job(job)["Restarts"] == "1"
    slurm.run("scancel", job)
    wait(lambda: not os.path.exists(f"/proc/{first}"), 60, "its end")
    checkpoint = folder / f"runs/cued_digits/{job}/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == HOLD, "saved all the same"
    ended = slurm.job(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "1")
