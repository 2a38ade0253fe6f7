"""Jobs for test_workers.py. A worker imports this module: it is small, so that a worker starts soon."""

import os
import time

from nonlocal_nets.experiments.workers import run_all


def process_and_threads(job):
    import torch

    if job == "wrong":
        raise ValueError("this job is wrong")
    if job == "long":
        time.sleep(100)
    return job, os.getpid(), torch.get_num_threads()


def note_and_wait(path):
    import torch

    part = path.with_suffix(".part")
    part.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    part.rename(path)
    time.sleep(600)


def wait_for_a_worker(path):
    list(run_all(note_and_wait, [path], 2))
