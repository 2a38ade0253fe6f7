"""What blocks see is kept sample by sample, however the batch comes through them."""

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


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@torch.no_grad()
def test_the_chosen_samples_in_whatever_parts(parts):
    torch.manual_seed(0)
    net, x = Net(parts), torch.randn(6, 3, 5)
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]
    with capture(net, {1, 4}) as captured:
        outputs = net(x, mask)
    assert captured.keys() == {"inner.non_local"}
    seen = captured["inner.non_local"]
    assert seen.keys() == {1, 4}
    for k in (1, 4):
        torch.testing.assert_close(seen[k].x, net.before(x)[k])
        torch.testing.assert_close(seen[k].z, outputs[k])
        assert not torch.allclose(seen[k].x, seen[k].z)
        assert torch.equal(seen[k].mask, mask[k])
    net(x)
    assert seen.keys() == {1, 4}, "nothing is kept after `with`"
    assert not net.inner.non_local._forward_hooks


@torch.no_grad()
def test_a_second_pass_over_the_batch_does_not_replace_the_first():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 5)
    with capture(net, {0, 1}) as captured:
        net(x)
        net(x.flip(2))
    torch.testing.assert_close(captured["inner.non_local"][0].x, net.before(x)[0])


@pytest.mark.parametrize(
    "call", [lambda b, x, m: b(x, m), lambda b, x, m: b(x=x, mask=m), lambda b, x, m: b(x, mask=m)]
)
def test_masks_by_position_and_by_name(call):
    block, x, mask = nln.NonLocalBlock(2), torch.randn(1, 2, 4), torch.tensor([[True, True, False, False]])
    with capture(block, {0}) as captured:
        call(block, x, mask)
    assert torch.equal(captured[""][0].mask, mask[0])
    assert torch.equal(captured[""][0].x, x[0])


def test_hooks_go_where_the_pass_fails():
    net = Net()
    with pytest.raises(RuntimeError), capture(net, {0}):
        net(torch.zeros(1, 7, 5))
    assert not net.inner.non_local._forward_hooks
