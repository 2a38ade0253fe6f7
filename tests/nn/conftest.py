"""`--device cuda` runs every test marked `oracle` on the card: the layer computes there, the oracle does not."""

import copy
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch.func import functional_call
from torch.utils._pytree import tree_map

from nonlocal_nets.nn import NonLocalBlock, functional


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    device = item.config.getoption("--device")
    wanted = device and item.get_closest_marker("oracle")
    with computing_on(device) if wanted else nullcontext():
        return (yield)


@pytest.fixture(name="computing_on")
def _computing_on():
    return computing_on


@contextmanager
def computing_on(device):
    """Arguments and parameters go to the device, results and gradients come back, so that tests need not know."""
    inside = False

    def there(tree):
        return tree_map(lambda t: t.to(device, copy=True) if isinstance(t, torch.Tensor) else t, tree)

    def outermost(moved, unmoved):
        def call(*args, **kwargs):
            nonlocal inside
            if inside:
                return unmoved(*args, **kwargs)
            inside = True
            try:
                return moved(*args, **kwargs).to("cpu")
            finally:
                inside = False

        return call

    def function(run):
        return outermost(lambda *args, **kwargs: run(*there(args), **there(kwargs)), run)

    def forward(block, *args, **kwargs):
        state = there(dict(block.named_parameters()) | dict(block.named_buffers()))
        z = functional_call(block, state, there(args), there(kwargs))
        for name, buffer in block.named_buffers():
            buffer.copy_(state[name])
        return z

    def weights(block, *args, **kwargs):
        return rows(copy.deepcopy(block).to(device), *there(args), **there(kwargs))

    rows = NonLocalBlock.weights
    with (
        mock.patch.object(functional, "nonlocal_operation", function(functional.nonlocal_operation)),
        mock.patch.object(functional, "weights", function(functional.weights)),
        mock.patch.object(NonLocalBlock, "forward", outermost(forward, NonLocalBlock.forward)),
        mock.patch.object(NonLocalBlock, "weights", outermost(weights, rows)),
    ):
        yield
