"""A pointwise layer gives the same whatever the layout of its input, and keeps no copy of it."""

import pytest
import torch
from torch.testing import assert_close

from nonlocal_nets.nn.pointwise import Pointwise


def first_and_last(batch, size):
    """The same tensor (B, *S, C) twice: as a view of channels first, and contiguous."""
    x = torch.randn(batch, 6, *size, dtype=torch.float64)
    return x.movedim(1, -1).requires_grad_(), x.movedim(1, -1).contiguous().requires_grad_()


@pytest.mark.parametrize("size", [(7,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_equals_linear_in_both_layouts(batch, size):
    layer = Pointwise(6, 4).double()
    linear = torch.nn.Linear(6, 4).double()
    linear.load_state_dict(layer.state_dict())
    for x in first_and_last(batch, size):
        expected = linear(x)
        upstream = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, [x, *linear.parameters()], upstream)
        y = layer(x)
        assert y.is_contiguous()
        assert_close(y, expected)
        assert_close(torch.autograd.grad(y, [x, *layer.parameters()], upstream), wanted)


def test_keeps_the_input_itself():
    layer = Pointwise(6, 4).double()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        inputs = first_and_last(2, (3, 5))
        for x in inputs:
            layer(x)
    assert set(kept) == {x.data_ptr() for x in [*inputs, layer.weight]}


def test_autocast():
    layer = Pointwise(6, 4)
    for x in first_and_last(2, (3, 5)):
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x.float()).dtype == torch.bfloat16
