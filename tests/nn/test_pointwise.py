"""A pointwise layer gives the same in all ways and all layouts, keeps its layout, and keeps no copy of its input."""

import pytest
import torch
from torch.testing import assert_close

from nonlocal_nets.nn import pointwise
from nonlocal_nets.nn.pointwise import Pointwise, columns, convolution, is_channels_last, linear, rows

WAYS = [convolution, rows, columns]


def first_and_last(batch, size, dtype=torch.float64):
    """The same tensor (B, C, *S) twice: channels first and channels last in memory."""
    x = torch.randn(batch, 6, *size, dtype=dtype)
    return x.clone().requires_grad_(), x.movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(7,), (3, 5), (2, 3, 5), (2, 3, 2, 2), (1,)])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_equals_linear_in_all_layouts(batch, size, way, monkeypatch):
    layer, plain = Pointwise(6, 4).double(), torch.nn.Linear(6, 4).double()
    plain.load_state_dict(layer.state_dict())
    monkeypatch.setattr(pointwise, "_fastest", lambda *_: way)
    for x in first_and_last(batch, size):
        expected = plain(x.movedim(1, -1))
        upstream = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, [x, *plain.parameters()], upstream)
        y = layer(x.movedim(1, -1))
        assert_close(y, expected)
        assert_close(torch.autograd.grad(y, [x, *layer.parameters()], upstream), wanted)
        assert_close(linear(x.movedim(1, -1), layer.weight), expected - layer.bias)


@pytest.mark.parametrize("avx512", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(7,), (3, 5), (2, 3, 5)])
def test_layout_and_gradients_are_those_of_the_input(size, batch, avx512, monkeypatch):
    monkeypatch.setattr(pointwise, "AVX512", avx512)
    first, last = first_and_last(batch, size, torch.float32)
    for x in (first, last):
        y = Pointwise(6, 4)(x.movedim(1, -1)).movedim(-1, 1)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        assert is_channels_last(x) == is_channels_last(y) == is_channels_last(dx) == (x is last)


@pytest.mark.parametrize("way", WAYS)
def test_keeps_the_input_itself(way):
    """But for a product of the other layout, which is not taken there."""
    first, last = first_and_last(2, (15,))
    weight, bias = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)
    inputs = {convolution: [first, last], rows: [last], columns: [first]}[way]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        for x in inputs:
            way(x, weight, bias)
    assert set(kept) == {x.data_ptr() for x in [*inputs, weight]}


def test_the_way_is_that_of_the_layout_and_the_machine(monkeypatch):
    """Of the layout, the device, the processor, and of how many positions there are for the width of the result."""
    first, last = (x.flatten(2) for x in first_and_last(2, (3, 5)))
    narrow, wide = torch.zeros(3, 6), torch.zeros(4, 6)
    for avx512, ways in ((False, [columns, convolution, rows, rows]), (True, [convolution] * 4)):
        monkeypatch.setattr(pointwise, "AVX512", avx512)
        assert [pointwise._fastest(x, weight) for x in (first, last) for weight in (narrow, wide)] == ways
        assert [pointwise._fastest(x.to("meta"), wide) for x in (first, last)] == [columns, rows]


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives(way):
    layer = Pointwise(6, 4).double()
    for x in first_and_last(2, (3,)):
        assert torch.autograd.gradgradcheck(way, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    layer, x = Pointwise(6, 4).double(), first_and_last(2, (3,))[0].detach()
    getattr(layer, frozen).requires_grad_(False)
    layer(x.movedim(1, -1)).sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == {"weight", "bias"} - {frozen}


def test_gradients_of_each_sample_by_vmap():
    layer, x = Pointwise(6, 4).double(), first_and_last(3, (5,))[0].detach()

    def loss(weight, sample):
        return linear(sample[None].mT, weight, layer.bias).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(layer.weight, x)
    for grad, sample in zip(each, x, strict=True):
        assert_close(grad, torch.autograd.grad(loss(layer.weight, sample), layer.weight)[0])


@pytest.mark.parametrize("way", WAYS)
def test_autocast(way, monkeypatch):
    """As F.linear: the output in bfloat16, the gradients in the dtypes of what they are gradients of."""
    monkeypatch.setattr(pointwise, "_fastest", lambda *_: way)
    layer = Pointwise(6, 4)
    grads = []
    for x in first_and_last(2, (3, 5), torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x.movedim(1, -1))
        assert y.dtype == torch.bfloat16
        grads.append(torch.autograd.grad(y.float().sum(), [x, *layer.parameters()]))
    assert [grad.dtype for grad in grads[0]] == [torch.float32] * 3
    for first, last in zip(*grads, strict=True):
        assert_close(first, last, rtol=2e-2, atol=2e-2)
