"""A pointwise layer gives the same whatever the layout of its input, and keeps no copy of it."""

import pytest
import torch
from torch.testing import assert_close

from nonlocal_nets.nn import pointwise
from nonlocal_nets.nn.pointwise import Pointwise, linear


def first_and_last(batch, size):
    """The same tensor (B, *S, C) twice: as a view of channels first, and contiguous."""
    x = torch.randn(batch, 6, *size, dtype=torch.float64)
    return x.movedim(1, -1).requires_grad_(), x.movedim(1, -1).contiguous().requires_grad_()


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("gradients", [2**20, 48, 1])
@pytest.mark.parametrize("size", [(7,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_equals_linear_in_all_layouts(batch, size, gradients, channels_first, monkeypatch):
    """Of input and output, however many samples the weight's gradient takes at a time."""
    monkeypatch.setattr(pointwise, "GRADIENTS", gradients)
    layer = Pointwise(6, 4).double()
    linear = torch.nn.Linear(6, 4).double()
    linear.load_state_dict(layer.state_dict())
    for x in first_and_last(batch, size):
        expected = linear(x)
        upstream = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, [x, *linear.parameters()], upstream)
        y = layer(x, channels_first)
        assert (y.movedim(-1, 1) if channels_first else y).is_contiguous()
        assert_close(y, expected)
        assert_close(torch.autograd.grad(y, [x, *layer.parameters()], upstream), wanted)


@pytest.mark.parametrize("channels_first", [False, True])
def test_keeps_the_input_itself(channels_first):
    layer = Pointwise(6, 4).double()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        inputs = first_and_last(2, (3, 5))
        for x in inputs:
            layer(x, channels_first)
    assert set(kept) == {x.data_ptr() for x in [*inputs, layer.weight]}


@pytest.mark.parametrize("channels_first", [False, True])
def test_second_derivatives(channels_first):
    layer = Pointwise(6, 4).double()
    for x in first_and_last(2, (3,)):
        inputs = x, layer.weight, layer.bias
        assert torch.autograd.gradgradcheck(lambda *args: linear(*args, channels_first), inputs)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    layer, x = Pointwise(6, 4).double(), first_and_last(2, (3,))[0].detach()
    getattr(layer, frozen).requires_grad_(False)
    layer(x).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"weight", "bias"} - {frozen}


def test_gradients_of_each_sample_by_vmap():
    layer, x = Pointwise(6, 4).double(), first_and_last(3, (5,))[0].detach()

    def loss(weight, sample):
        return linear(sample[None], weight, layer.bias).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight, x)
    for grad, sample in zip(each, x, strict=True):
        assert_close(grad, torch.autograd.grad(loss(layer.weight, sample), layer.weight)[0])


@pytest.mark.parametrize("channels_first", [False, True])
def test_autocast(channels_first):
    """As F.linear: the output in bfloat16, the gradients in the dtypes of what they are gradients of."""
    layer = Pointwise(6, 4)
    grads = []
    for x in first_and_last(2, (3, 5)):
        x = x.detach().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x, channels_first)
        assert y.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(y.float().sum(), [x, *layer.parameters()]))
    assert [grad.dtype for grad in grads[0]] == [torch.float32] * 3
    for first, last in zip(*grads, strict=True):
        assert_close(first, last, rtol=2e-2, atol=2e-2)
