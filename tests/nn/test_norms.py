"""The norm of the valid positions; oracle: the formulas of batch and layer norm on the valid positions alone."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nonlocal_nets.nn import blocks, freeze_batch_norms, insert
from nonlocal_nets.nn.norms import FrozenBatchNorm, norm_valid
from tests.nn.oracle import randomise

CHANNELS = 3


@st.composite
def padded(draw):
    """Values (B, N, C) in float64, and which are valid: any positions, at least two."""
    size, positions = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    flags = draw(st.lists(st.booleans(), min_size=size * positions, max_size=size * positions))
    valid = torch.tensor(flags).view(size, positions)
    valid[0, :2] = True
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randn(size, positions, CHANNELS, generator=generator, dtype=torch.float64), valid


def batch_norm(**kwargs):
    norm = nn.BatchNorm1d(CHANNELS, **kwargs).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def normed(u, mean, variance, norm):
    return (u - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


@given(padded())
def test_batch_norm_in_training_has_the_statistics_of_the_valid(given_values):
    u, valid = given_values
    norm = batch_norm(momentum=0.3)
    result = norm_valid(norm, u, valid)
    values = u[valid]
    count, mean = len(values), values.sum(0) / len(values)
    squares = (values - mean).square().sum(0)
    assert torch.allclose(result[valid], normed(values, mean, squares / count, norm), atol=1e-10)
    assert not result[~valid].any()
    assert torch.allclose(norm.running_mean, 0.3 * mean)
    assert torch.allclose(norm.running_var, 0.7 + 0.3 * squares / (count - 1))


@given(padded())
def test_batch_norm_in_evaluation_has_its_running_statistics(given_values):
    u, valid = given_values
    norm = batch_norm().eval()
    norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    result = norm_valid(norm, u, valid)
    assert torch.allclose(result[valid], normed(u[valid], norm.running_mean, norm.running_var, norm))
    assert not result[~valid].any()


@given(padded())
def test_batch_norm_without_running_statistics_has_those_of_the_valid_in_evaluation_too(given_values):
    u, valid = given_values
    norm = batch_norm(track_running_stats=False).eval()
    values = u[valid]
    expected = normed(values, values.mean(0), values.var(0, unbiased=False), norm)
    assert torch.allclose(norm_valid(norm, u, valid)[valid], expected, atol=1e-10)


@given(padded())
def test_a_norm_of_each_position_by_itself(given_values):
    u, valid = given_values
    norm = nn.LayerNorm(CHANNELS).double()
    result = norm_valid(norm, u, valid)
    values = u[valid]
    mean, variance = values.mean(1, keepdim=True), values.var(1, unbiased=False, keepdim=True)
    assert torch.allclose(result[valid], normed(values, mean, variance, norm))
    assert not result[~valid].any()


@pytest.mark.parametrize("training", [True, False])
@given(padded(), st.integers(1, 5))
def test_more_padding_changes_nothing(training, given_values, more):
    u, valid = given_values
    seen = []
    for extra in (0, more):
        norm = nn.BatchNorm1d(CHANNELS).double().train(training)
        x = nn.functional.pad(u, (0, 0, 0, extra), value=9.0).requires_grad_()
        result = norm_valid(norm, x, nn.functional.pad(valid, (0, extra)))
        (result[:, : u.shape[1]] ** 3).sum().backward()
        assert not result[:, u.shape[1] :].any()
        assert not x.grad[:, u.shape[1] :].any()
        seen.append([result[:, : u.shape[1]], x.grad[:, : u.shape[1]], norm.weight.grad, *norm.buffers()])
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*seen, strict=True))


def test_nothing_valid_gives_zeros_and_gradients_of_zero():
    norm, u = batch_norm(), torch.randn(2, 4, CHANNELS, dtype=torch.float64, requires_grad=True)
    before = [buffer.clone() for buffer in norm.buffers()]
    result = norm_valid(norm, u, torch.zeros(2, 4, dtype=torch.bool))
    result.sum().backward()
    assert not result.any()
    for parameter in (norm.weight, norm.bias, u):  # DDP waits for a gradient of every parameter
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_frozen_batch_norms_stay_as_they_are(masked, channels_last):
    """Those of a host and of its blocks, in training, with any layout and mask."""
    host = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.ReLU())
    x = torch.randn(2, 3, 4, 5)
    insert(host, "0", example=x)
    randomise(host)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    mask = (torch.arange(5) < torch.tensor([5, 3])[:, None])[:, None].expand(-1, 4, -1) if masked else None
    block, frozen = blocks(host)["0.1.non_local"], freeze_batch_norms(copy.deepcopy(host)).train()
    host.eval()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in frozen.modules())
    assert {name: tuple(value.shape) for name, value in before.items()} == {
        name: tuple(value.shape) for name, value in host.state_dict().items() if "num_batches" not in name
    }
    torch.testing.assert_close(frozen(x), host(x))
    u = torch.randn(2, 4, 4, 5)
    u = u.contiguous(memory_format=torch.channels_last) if channels_last else u
    torch.testing.assert_close(blocks(frozen)["0.1.non_local"](u, mask), block(u, mask))
    frozen(x).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert not [name for name, _ in frozen.named_parameters() if "norm" in name or name.startswith("0.1.w")]
    frozen.load_state_dict(host.state_dict())


def test_a_norm_that_cannot_be_frozen():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="'1' cannot be frozen: BatchNorm2d, track_running_stats=False; timm"):
        freeze_batch_norms(model)
    assert isinstance(model[0], nn.BatchNorm2d)
    assert isinstance(freeze_batch_norms(model[0]), FrozenBatchNorm)


def test_a_norm_with_two_names_is_frozen_once_and_keeps_its_hooks():
    norm, seen = nn.BatchNorm2d(3), []
    norm.register_forward_pre_hook(lambda module, args, kwargs: seen.append(1), with_kwargs=True)
    norm.register_full_backward_hook(lambda *_: seen.append(2))
    model = freeze_batch_norms(nn.ModuleDict({"a": norm, "b": norm}))
    assert model["a"] is model["b"]
    assert isinstance(model["a"], FrozenBatchNorm)
    model["a"](torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
    assert seen == [1, 2]
