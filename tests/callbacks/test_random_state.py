"""The random state travels through a checkpoint file. (That a resumed run repeats: tests/test_resume.py.)"""

import random

import numpy as np
import torch

from nonlocal_nets.callbacks import RandomState


def draw():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]  # noqa: NPY002


def test_the_same_numbers_after_loading(tmp_path):
    torch.save(RandomState().state_dict(), tmp_path / "state.pt")
    expected = draw()
    assert draw() != expected
    RandomState().load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected
