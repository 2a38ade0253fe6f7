"""Jobs in worker processes: their results, their errors, and their end."""

import multiprocessing
import os
import time

import pytest

from nonlocal_nets.experiments.workers import run_all
from tests.disturbed import alive, wait
from tests.experiments.jobs import process_and_threads, wait_for_a_worker

FORK = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12


def test_one_process_is_this_one():
    found = list(run_all(process_and_threads, ["a", "b"], 1))
    assert found == [("a", os.getpid(), 1), ("b", os.getpid(), 1)]


@pytest.mark.slow
def test_workers_divide_the_cores_and_a_job_that_fails_ends_all(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    results = run_all(process_and_threads, ["a", "wrong", *["long"] * 5], 2)
    job, pid, threads = next(results)
    assert (job, threads) == ("a", 3)
    assert pid != os.getpid()
    started = time.monotonic()
    with pytest.raises(ValueError, match="this job is wrong"):
        next(results)
    assert multiprocessing.active_children() == []
    assert time.monotonic() < started + 60, "the long jobs take 100 s"


@FORK
def test_the_running_jobs_end_with_one_that_fails(monkeypatch):
    fork = multiprocessing.get_context("fork")  # imports nothing again
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)
    started = time.monotonic()
    with pytest.raises(ValueError, match="must be non-negative"):
        list(run_all(time.sleep, [20, -1], 2))
    assert multiprocessing.active_children() == []
    assert time.monotonic() < started + 10


@FORK
def test_a_worker_has_its_share_of_the_cores_and_ends_with_the_process_that_started_it(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    path = tmp_path / "pid and threads"
    parent = multiprocessing.get_context("fork").Process(
        target=wait_for_a_worker, args=(path,)
    )  # imports nothing again
    parent.start()
    pid, threads = map(int, wait(lambda: path.exists() and path.read_text(), 150, "a worker").split())
    assert threads == 3
    assert alive(pid)
    parent.kill()
    parent.join()
    wait(lambda: not alive(pid), 30, "the end of the worker")
