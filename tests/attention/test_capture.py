"""What blocks see is kept sample by sample, however the batch comes through them."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import nonlocal_nets as nln
from nonlocal_nets.attention.capture import capture


class Net(nn.Module):
    """A block that changes its input, which the next layer overwrites; the batch goes through in parts."""

    def __init__(self, parts=1):
        super().__init__()
        self.parts = parts
        self.inner = nn.Module()
        self.inner.non_local = nln.NonLocalBlock(3, norm="none")
        nn.init.normal_(self.inner.non_local.out.weight)
        self.before = nn.Conv1d(3, 3, 1)

    def forward(self, x, mask=None):
        outputs = []
        for k, part in enumerate(x.chunk(self.parts)):
            here = self.before(part)
            z = self.inner.non_local(here, mask=None if mask is None else mask.chunk(self.parts)[k])
            outputs.append(z.clone())
            here.zero_()
            z.zero_()
        return torch.cat(outputs)


def copies(model, *inputs, **kwargs):
    """What a block gave and got, by its name and the index of the sample."""
    seen = {}

    def see(name, block, index, activations):
        assert nln.blocks(model)[name] is block
        assert (name, index) not in seen, "each once"
        seen[name, index] = [None if tensor is None else tensor.clone() for tensor in activations]

    with capture(model, see):
        model(*inputs, **kwargs)
    return seen


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@torch.no_grad()
def test_every_sample_in_whatever_parts(parts):
    torch.manual_seed(0)
    net, x = Net(parts), torch.randn(6, 3, 5)
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]
    seen, outputs = copies(net, x, mask), net(x, mask)
    assert list(seen) == [("inner.non_local", k) for k in range(6)]
    for (_, k), (before, after, valid) in seen.items():
        torch.testing.assert_close(before, net.before(x)[k])
        torch.testing.assert_close(after, outputs[k])
        assert not torch.allclose(before, after)
        assert torch.equal(valid, mask[k])
    assert not net.inner.non_local._forward_hooks


@torch.no_grad()
def test_a_second_pass_counts_on():
    net, x = Net(), torch.randn(2, 3, 5)
    indices = []
    with capture(net, lambda name, block, index, seen: indices.append(index)):
        net(x)
        net(x)
    assert indices == [0, 1, 2, 3]


CALLS = [lambda b, x, m: b(x, m), lambda b, x, m: b(x=x, mask=m), lambda b, x, m: b(x, mask=m)]


@pytest.mark.parametrize("call", CALLS)
def test_masks_by_position_and_by_name(call):
    block, x, mask = nln.NonLocalBlock(2), torch.randn(1, 2, 4), torch.tensor([[True, True, False, False]])
    seen = []
    with capture(block, lambda name, block, index, activations: seen.append(activations)):
        call(block, x, mask)
    assert torch.equal(seen[0].mask, mask[0])
    assert torch.equal(seen[0].x, x[0])


def test_hooks_go_where_the_pass_fails():
    net = Net()
    with pytest.raises(RuntimeError):
        copies(net, torch.zeros(1, 7, 5))
    assert not net.inner.non_local._forward_hooks


def test_a_copy_made_meanwhile_is_not_watched():
    """As Throughput makes one to count operations."""
    model, x, seen = Net(), torch.randn(2, 3, 5), []

    def see(cannot_be_copied, name, block, index, activations):
        seen.append(block)

    with capture(model, partial(see, (k for k in ()))):
        copied = copy.deepcopy(model)
        torch.testing.assert_close(copied(x), model(x))
    assert seen == [model.inner.non_local] * 2
