"""One thread: the tests are small, and two threads that wait for each other on a busy machine are slower than one."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

LEFT_BY_MAIN = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "NONLOCAL_NETS_RUN_ID", "WANDB_MODE")

torch.set_num_threads(1)

# the same examples in every run, and no limits on time, which a busy machine would exceed
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--device", help="where the layer computes in the tests marked oracle, such as cuda")


def pytest_configure(config):
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no CUDA device here")


@pytest.fixture(autouse=True)
def without_what_other_commands_left():
    """The order of the tests does not decide: cli.main leaves these behind, for the processes of its run."""
    for name in LEFT_BY_MAIN:
        os.environ.pop(name, None)
