"""The rows of the map that are asked for, of every block of a model."""

import pytest
import torch
from torch import nn

import nonlocal_nets as nln
from nonlocal_nets.attention.rows import extent, rows_at
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


# --- rows of one sample -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairwise", nln.PAIRWISE)
@pytest.mark.parametrize("pool_position", ["input", "embedding"])
@torch.no_grad()
def test_rows_at_points_of_a_pooled_grid(pairwise, pool_position):
    """A grid (5, 8) with pool (2, 3): keys (2, 2), which leave the last row and the last two columns out."""
    torch.manual_seed(0)
    block = nln.NonLocalBlock(4, pairwise=pairwise, pool=(2, 3), pool_position=pool_position).eval()
    x = torch.randn(4, 5, 8)
    rows = rows_at(block, x, [(0.7, 0.7), (0.0, 0.99), (0.99, 0.0)])
    whole = block.weights(x[None])[0].view(5, 8, 2, 2)
    for row, query in zip(rows, [(3, 5), (0, 7), (4, 0)], strict=True):
        torch.testing.assert_close(row.weights, whole[query])
        assert (row.query, row.size, row.pool) == (query, (5, 8), (2, 3))
        assert row.middle == ((query[0] + 0.5) / 5, (query[1] + 0.5) / 8)
        assert row.covered == (4 / 5, 6 / 8)
    assert whole[3, 5, 0, 1] != whole[3, 5, 1, 0], "the keys' grid is not symmetric"


def test_a_fraction_is_in_the_position_of_the_same_integer():
    """29 / 100 * 100 is 28.999999999999996 in floating point."""
    block = nln.NonLocalBlock(2).eval()
    x = torch.randn(2, 100)
    rows = rows_at(block, x, [(k / 100,) for k in range(100)])
    assert [row.query for row in rows] == [(k,) for k in range(100)]
    (by_integer,) = nln.attention(block, x[None], at=[(k,) for k in range(100)]).values()
    torch.testing.assert_close(by_integer[0], torch.stack([row.weights for row in rows]))


@torch.no_grad()
def test_a_mask_is_as_no_padding():
    torch.manual_seed(0)
    block = nln.NonLocalBlock(3, pairwise="dot_product", pool=2).eval()
    x, mask = torch.randn(3, 11), torch.arange(11) < 7
    x[:, 7:] = torch.nan
    points = [(0.0,), (0.5,), (0.99,)]
    padded, alone = rows_at(block, x, points, mask), rows_at(block, x[:, :7], points)
    for with_padding, without in zip(padded, alone, strict=True):
        torch.testing.assert_close(with_padding.weights[:3], without.weights)
        assert not with_padding.weights[3:].any()
        assert (with_padding.query, with_padding.size) == (without.query, without.size)
    assert [row.query for row in padded] == [(0,), (3,), (6,)]


@torch.no_grad()
def test_autocast_narrows_the_input_and_not_the_weights():
    torch.manual_seed(0)
    block, x = nln.NonLocalBlock(8).eval(), torch.randn(8, 30)
    with torch.autocast("cpu", torch.bfloat16):
        (row,) = rows_at(block, x.bfloat16(), [(0.5,)])
    torch.testing.assert_close(row.weights, block.weights(x.bfloat16().float()[None], [15])[0, 0], rtol=0, atol=0)


def test_the_extent_of_a_mask():
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:3, :2] = mask[1, 3] = True
    assert extent((4, 6), mask) == (3, 4)
    assert extent((4, 6), None) == (4, 6)
    assert extent((4, 6), torch.zeros(4, 6, dtype=torch.bool)) == (0, 0)


@pytest.mark.parametrize("point", [(0.5,), (0.5, 0.5, 0.5), (1.0, 0.5), (0.5, -0.1)])
def test_points_outside_are_refused(point):
    with pytest.raises(ValueError, match=r"2 fractions in \[0, 1\), one for each axis of \(4, 5\), got \(.*\)"):
        rows_at(nln.NonLocalBlock(3), torch.zeros(3, 4, 5), [point])


# --- padded batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2)])
def test_positions_of_a_padded_batch_are_of_each_sample(strides):
    """As of the sample alone, for all of its positions, from both ends, in blocks with coarser grids."""
    torch.manual_seed(0)
    net = SequenceResNet(2, 3, widths=(4, 6), stem_stride=strides[0], stage_stride=strides[1])
    nln.insert(net, {"layer2": 1}, example=torch.zeros(1, 3, 40), pool=2)
    net = awake(net).double()
    lengths = (37, 22, 40)
    x, mask = torch.randn(3, 3, 40, dtype=torch.double), torch.arange(40) < torch.tensor(lengths)[:, None]
    at = [(k,) for k in range(22)] + [(-k,) for k in range(1, 23)]
    (rows,) = nln.attention(net, x, at=at, mask=mask).values()
    for k, length in enumerate(lengths):
        (alone,) = nln.attention(net, x[k : k + 1, :, :length], at=at).values()
        torch.testing.assert_close(rows[k, :, : alone.shape[2]], alone[0])
        assert not rows[k, :, alone.shape[2] :].any()
    with pytest.raises(ValueError, match=r"a position of sample 1 .* of \(22,\), got \(30,\)"):
        nln.attention(net, x, at=[(30,)], mask=mask)


# --- how often a block runs -------------------------------------------------------------------------------------------


class Parts(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.block, self.parts = nln.NonLocalBlock(4), parts

    def forward(self, x):
        return torch.cat([self.block(x[part]) for part in self.parts])


def test_a_batch_in_parts():
    x = torch.randn(3, 4, 8)
    model = Parts(slice(0, 2), slice(2, 3))
    rows = nln.attention(model, x, at=[(5,), (0,)])["block"]
    torch.testing.assert_close(rows, model.block.weights(x, [5, 0]).detach())


@pytest.mark.parametrize("parts", [(slice(3), slice(3)), (slice(2),)])
def test_a_block_that_does_not_see_each_sample_once(parts):
    with pytest.raises(ValueError, match=r"each of the 3 samples once, got {'block': (6|2)}"):
        nln.attention(Parts(*parts), torch.randn(3, 4, 8), at=[(5,)])
