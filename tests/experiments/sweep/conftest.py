"""Each test of a sweep is in an empty folder, and leaves the random numbers as they were."""

import random

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nonlocal_nets.experiments.sweep.runner.POLL", 0.02)
    state, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # the engine uses them
    yield
    random.setstate(state)
    np.random.set_state(numpys)  # noqa: NPY002
