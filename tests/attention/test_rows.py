"""The rows of the map that are asked for, of every block of a model."""

import pytest
import torch
from torch import nn

import nonlocal_nets as nln
from nonlocal_nets.nn.backbones.image import LocalConvNet
from nonlocal_nets.nn.backbones.sequence import SequenceResNet


def awake(model):
    for block in nln.blocks(model).values():
        nn.init.normal_(block.norm.weight)
    return model.eval()


def recorded(model, x, name):
    """The input of a block in a forward pass."""
    seen = []
    handle = nln.blocks(model)[name].register_forward_pre_hook(lambda _block, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("pairwise", nln.PAIRWISE)
def test_rows_of_every_block_at_a_pixel(pairwise):
    model, x = LocalConvNet(2), torch.randn(3, 3, 24, 32)
    nln.insert(model, ["layer1", "layer3"], example=x, pairwise=pairwise, pool=(2, 2))
    awake(model)
    before = model(x)
    rows = nln.attention(model, x, at=[(0, 0), (23, 31), (-1, -1), (9, 17)])
    assert {name: row.shape for name, row in rows.items()} == {
        "layer1.2.non_local": (3, 4, 6, 8),
        "layer3.2.non_local": (3, 4, 3, 4),
    }
    for name, size in (("layer1.2.non_local", (12, 16)), ("layer3.2.non_local", (6, 8))):
        whole = nln.blocks(model)[name].weights(recorded(model, x, name)).unflatten(1, size)
        row, column = 9 * size[0] // 24, 17 * size[1] // 32
        for k, expected in enumerate([whole[:, 0, 0], whole[:, -1, -1], whole[:, -1, -1], whole[:, row, column]]):
            torch.testing.assert_close(rows[name][:, k].flatten(1), expected)
    assert torch.equal(model(x), before), "no hook stays"


def test_a_clip_and_padded_tokens():
    clip = torch.randn(1, 4, 6, 5, 5)
    block = nln.NonLocalBlock(4)
    assert nln.attention(nn.Sequential(block), clip, at=[(5, 0, 4)])["0"].shape == (1, 1, 6, 5, 5)
    net = SequenceResNet(2, 9, tokens=True)
    nln.insert(net, {"layer2": 1}, example=torch.zeros(1, 20, dtype=torch.long))
    awake(net)
    tokens, mask = torch.randint(9, (2, 20)), torch.arange(20) < torch.tensor([20, 7])[:, None]
    (rows,) = nln.attention(net, tokens, at=[(3,)], mask=mask).values()
    assert rows.shape == (2, 1, 20)
    assert not rows[1, 0, 7:].any(), "nothing attends to padding"
    (alone,) = nln.attention(net, tokens[1:, :7], at=[(3,)]).values()
    torch.testing.assert_close(rows[1:, :, :7], alone)


@pytest.mark.parametrize("at", [[(24, 0)], [(0, -33)], [(1,)], [(1, 2, 3)], []])
def test_positions_outside_are_refused(at):
    model, x = LocalConvNet(2), torch.randn(1, 3, 24, 32)
    nln.insert(model, "layer3", example=x)
    with pytest.raises(ValueError, match=r"position"):
        nln.attention(model, x, at=at)


def test_a_model_without_blocks_or_that_leaves_one_out():
    x = torch.randn(1, 4, 8)
    with pytest.raises(ValueError, match="got 0 blocks"):
        nln.attention(nn.Conv1d(4, 4, 1), x, at=[(0,)])

    class LeavesOneOut(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nln.NonLocalBlock(4), nln.NonLocalBlock(4)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="the forward pass did not use unused"):
        nln.attention(LeavesOneOut(), x, at=[(0,)])


def test_a_block_on_other_axes():
    model = nn.Sequential(nn.Flatten(2), nln.NonLocalBlock(3))
    with pytest.raises(ValueError, match=r"1 sees \(16,\), positions are of \(4, 4\)"):
        nln.attention(model, torch.randn(1, 3, 4, 4), at=[(0, 0)])
