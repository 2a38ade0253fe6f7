"""Jobs for test_workers.py. A worker imports this module: it is small, so that a worker starts soon."""

import os
import time
from pathlib import Path

from nonlocal_nets.experiments.workers import run_all


def process_and_threads(job):
    import torch

    if job == "wrong":
        raise ValueError("this job is wrong")
    if job == "long":
        time.sleep(100)
    return job, os.getpid(), torch.get_num_threads()


def note_pid_and_wait(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def wait_for_a_worker(path):
    list(run_all(note_pid_and_wait, [path], 2))
