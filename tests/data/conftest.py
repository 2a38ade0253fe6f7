"""What the tests of corrupt files share."""

import logging

import pytest

from nonlocal_nets.data import CorruptFileError


@pytest.fixture
def failure():
    """How many batches of a loader came before the error, and its message."""

    def run(loader):
        batches, seen, message = iter(loader), 0, "no error"
        try:
            for _ in batches:
                seen += 1
        except CorruptFileError as error:
            message = str(error)
        if loader.num_workers:  # torch 2.15 waits 5 s a worker when it collects an iterator that raised
            batches._shutdown_workers()
        return seen, message

    return run


@pytest.fixture
def warnings_of_all_processes(tmp_path):
    """The lines that the main process and its workers log; each appends to one file."""
    handler = logging.FileHandler(tmp_path / "log.txt")
    logger = logging.getLogger("nonlocal_nets.data.base")
    logger.addHandler(handler)
    yield lambda: (tmp_path / "log.txt").read_text().splitlines()
    logger.removeHandler(handler)
    handler.close()
