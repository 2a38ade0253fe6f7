"""Worker processes that share jobs and end with the process that started them."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_all(function: Callable[[Job], Result], jobs: list[Job], processes: int) -> Iterator[Result]:
    """The results of all jobs as they come: from this process if `processes` is 1, from that many workers otherwise.

    The workers divide the cores among them. If a job fails, no other is started, the running ones are terminated, and
    the exception of the job is raised.
    """
    if processes == 1:
        yield from map(function, jobs)
        return
    threads = max((os.cpu_count() or 1) // processes, 1)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=initialize, initargs=(threads,)) as pool:
        try:
            for future in as_completed([pool.submit(function, job) for job in jobs]):
                yield future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)  # waits for the workers
            raise


def initialize(threads: int) -> None:
    """Prepare a worker."""
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Without this a worker whose parent was killed would go on to the end of its job, and then wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only in a worker"
    parent.join()
    os._exit(1)
