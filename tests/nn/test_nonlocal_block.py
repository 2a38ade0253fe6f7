"""The whole block against an oracle written from Eq. 1, Eq. 6 and Sec. 3.3 (oracle.BlockOracle), and its invariants."""

import copy
import itertools
import math
import pickle
from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_nets.nn import NonLocalBlock, Pairwise, functional, pointwise
from tests.nn.oracle import PAIRWISE, SOFTMAX, BlockOracle, Operations, randomise

C = 5
NORMS = ("batch", "group", "layer", "none")
POOLS = ({}, {"pool": 2}, {"pool": 2, "pool_position": "embedding"})


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def make(pairwise="embedded_gaussian", channels=C, seed=0, dtype=torch.float64, **kwargs):
    """A block in which every parameter and running statistic is at work."""
    return randomise(NonLocalBlock(channels, pairwise=pairwise, **kwargs).to(dtype), seed)


def normal(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def forced(form):
    """Takes a form of FORMS by its index (a softmax has three, the others two), or the block's own choice (None)."""
    choice = functional.choose_form if form is None else lambda pairwise, *_: functional.FORMS[pairwise][form]
    return mock.patch.object(functional, "choose_form", choice)


def corners(batch, size, extents):
    """The mask of samples that fill a corner of the grid."""
    mask = torch.zeros(batch, *size, dtype=torch.bool)
    for sample, extent in zip(mask, extents, strict=True):
        sample[tuple(slice(e) for e in extent)] = True
    return mask


# --- against the oracle -----------------------------------------------------------------------------------------------


@st.composite
def layouts(draw, axes):
    """(size, pool, window) that fit together, of at most 36 positions."""
    rows, room = [], 36
    for _ in range(axes):
        k = draw(st.sampled_from((1, 2))) if room > 1 else 1
        if draw(st.booleans()):
            rows.append((draw(st.integers(k, max(k, min(5, room // 2)))), k, None))
        else:
            w = k * draw(st.sampled_from((1, 2))) if 2 * k <= room else k
            rows.append((w * (draw(st.sampled_from((1, 2))) if 2 * w <= room else 1), k, w))
        room //= rows[-1][0]
    size, pool, window = zip(*rows, strict=True)
    return size, draw(st.sampled_from((None, pool))), draw(st.sampled_from((None, window)))


def masks(data, size):
    kind = data.draw(st.sampled_from(("none", "corner", "holes")))
    if kind == "none":
        return None
    if kind == "corner":
        extents = [[data.draw(st.integers(1, s)) for s in size], size]
        return corners(2, size, extents)
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) < 0.6
    mask[0] |= ~mask[0].any()  # two valid positions at least: batch norm cannot train on one
    return mask


@pytest.mark.oracle
@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@pytest.mark.parametrize("pairwise", PAIRWISE)
@settings(max_examples=20)
@given(data=st.data())
def test_block_is_the_oracle(pairwise, axes, data):
    size, pool, window = data.draw(layouts(axes))
    kwargs = {
        "pool": pool,
        "pool_position": data.draw(st.sampled_from(("input", "embedding"))),
        "window": window,
        "norm": data.draw(st.sampled_from(NORMS)),
    }
    mask, training = masks(data, size), data.draw(st.booleans())
    x = normal(2, C, *size, seed=data.draw(st.integers(0, 99)))
    if (mask.sum() if mask is not None else 2 * math.prod(size)) < 2:
        training = False
    block = make(pairwise, inner_channels=3, **kwargs).train(training)
    expected = BlockOracle(block.state_dict(), pairwise, **kwargs)(x, mask, training)
    with forced(data.draw(st.sampled_from((None, 0, 1, -1)))):
        close(block(x, mask=mask), expected)


@pytest.mark.oracle
@pytest.mark.parametrize("form", [0, 1, -1])
@pytest.mark.parametrize("pool_position", ["input", "embedding"])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_block_with_everything_at_once_is_the_oracle(pairwise, pool_position, form):
    """Windows over pooled and unpooled axes, a rest that pooling drops, a padded sample and one with holes."""
    kwargs = {"pool": (1, 2, 2), "pool_position": pool_position, "window": (2, 4, None), "norm": "batch"}
    x, size = normal(2, C, 4, 4, 3), (4, 4, 3)
    mask = corners(2, size, [(3, 3, 3), size])
    mask[1] &= torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.7
    block = make(pairwise, **kwargs)
    expected = BlockOracle(block.state_dict(), pairwise, **kwargs)(x, mask, training=True)
    with forced(form):
        close(block(x, mask=mask), expected)


@pytest.mark.oracle
@pytest.mark.parametrize("pool", [None, 2])
def test_scale_divides_the_logits_by_the_root_of_the_width(pool):
    x = normal(2, C, 7)
    block = make(inner_channels=3, scale=True, pool=pool).eval()
    close(block(x), BlockOracle(block.state_dict(), "embedded_gaussian", scale=3**-0.5, pool=pool)(x))
    assert not torch.allclose(block(x), BlockOracle(block.state_dict(), "embedded_gaussian", pool=pool)(x))


@pytest.mark.oracle
@pytest.mark.parametrize(("channels", "inner"), [(1, None), (7, None), (3, 11)])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_any_widths(pairwise, channels, inner):
    x = normal(2, channels, 3, 5)
    block = make(pairwise, channels, inner_channels=inner).eval()
    assert block.g.out_features == (inner or max(channels // 2, 1))
    close(block(x), BlockOracle(block.state_dict(), pairwise)(x))


@pytest.mark.oracle
def test_running_statistics_are_those_of_the_valid_positions():
    x, mask = normal(2, C, 7), corners(2, (7,), [(3,), (5,)])
    block = make()
    before, y = copy.deepcopy(block.state_dict()), BlockOracle(block.state_dict(), "embedded_gaussian").y(x, mask)
    block(x, mask=mask)
    u = torch.from_numpy(y[mask.numpy()]) @ before["out.weight"].T + before["out.bias"]
    close(block.norm.running_mean, 0.9 * before["norm.running_mean"] + 0.1 * u.mean(0))
    close(block.norm.running_var, 0.9 * before["norm.running_var"] + 0.1 * u.var(0))


# --- symmetries -------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_one_class_serves_every_number_of_axes(pairwise, norm):
    x = normal(2, C, 24)
    flat = make(pairwise, norm=norm)(x)
    for size in ((4, 6), (2, 3, 4), (2, 3, 2, 2), (1, 24)):
        close(make(pairwise, norm=norm)(x.unflatten(2, size)).flatten(2), flat)


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_permuting_the_positions_permutes_the_output(pairwise, masked):
    x, order = normal(2, C, 13), torch.randperm(13, generator=torch.Generator().manual_seed(0))
    mask = corners(2, (13,), [(7,), (11,)]) if masked else None
    block = make(pairwise).eval()
    close(block(x[..., order], mask=None if mask is None else mask[:, order]), block(x, mask=mask)[..., order])


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_batch_is_its_samples(pairwise, masked):
    x, mask = normal(3, C, 3, 4), corners(3, (3, 4), [(3, 4), (2, 3), (3, 1)]) if masked else None
    block = make(pairwise, window=(None, 2), pool=(2, 1)).eval()
    alone = [block(x[b : b + 1], mask=None if mask is None else mask[b : b + 1]) for b in range(3)]
    close(block(x, mask=mask), torch.cat(alone))


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pool", [None, 2])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_window_that_spans_everything_is_no_window(pairwise, pool, masked):
    x, mask = normal(2, C, 3, 5), corners(2, (3, 5), [(2, 4), (3, 3)]) if masked else None
    plain = make(pairwise, pool=pool)(x, mask=mask)
    for window in ((3, 5), (None, 5), (None, None)):
        assert torch.equal(make(pairwise, pool=pool, window=window)(x, mask=mask), plain)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("window", "pool", "fold", "unfold"),
    [
        # space only: the 2-D block, frame by frame
        (
            (1, None, None),
            (1, 2, 2),
            lambda x: x.transpose(1, 2).flatten(0, 1),
            lambda z: z.unflatten(0, (2, 8)).transpose(1, 2),
        ),
        # groups of four frames
        (
            (4, None, None),
            (2, 2, 1),
            lambda x: x.unflatten(2, (2, 4)).transpose(1, 2).flatten(0, 1),
            lambda z: z.unflatten(0, (2, 2)).transpose(1, 2).flatten(2, 3),
        ),
        # time only: the 1-D block, pixel by pixel
        (
            (None, 1, 1),
            (2, 1, 1),
            lambda x: x.permute(0, 3, 4, 1, 2).flatten(0, 2),
            lambda z: z.unflatten(0, (2, 2, 3)).permute(0, 3, 4, 1, 2),
        ),
    ],
    ids=["space", "groups of 4 frames", "time"],
)
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_window_is_a_block_on_each_part(pairwise, pooled, window, pool, fold, unfold):
    """In train mode: the parts become the batch, and batch norm sees the same positions."""
    x = normal(2, C, 8, 2, 3)
    parts = fold(x)
    part_pool = tuple(k for k, w in zip(pool, window, strict=True) if w != 1) if pooled else None
    expected = unfold(make(pairwise, pool=part_pool)(parts))
    close(make(pairwise, window=window, pool=pool if pooled else None)(x), expected)


# --- the map ----------------------------------------------------------------------------------------------------------


def oracle_map(oracle, x, mask, cells):
    """The map and the values as arrays over all cells of the pooled grid: (B, N, M) and (B, M, V)."""
    size, inner = x.shape[2:], len(oracle.state["g.bias"])
    grid = list(itertools.product(*(range(c) for c in cells)))
    maps, values = np.zeros((len(x), math.prod(size), len(grid))), np.zeros((len(x), len(grid), inner))
    for b, (rows, value) in enumerate(oracle.maps(x, mask)):
        for i, position in enumerate(np.ndindex(*size)):
            for j, cell in enumerate(grid):
                maps[b, i, j] = rows[position].get(cell, 0.0)
        for j, cell in enumerate(grid):
            values[b, j] = value.get(cell, 0.0)
    return torch.from_numpy(maps), torch.from_numpy(values)


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [None, (2, None)])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_weights(pairwise, pool, window, masked):
    """Equal to the oracle's map; rows as asked; and with the oracle's g and W_z they give the block's output."""
    x, mask = normal(2, C, 4, 5), corners(2, (4, 5), [(4, 3), (4, 5)]) if masked else None
    block = make(pairwise, window=window, norm="none", **pool)
    oracle = BlockOracle(block.state_dict(), pairwise, window=window, norm="none", **pool)
    expected, values = oracle_map(oracle, x, mask, (2, 2) if pool else (4, 5))
    w = block.weights(x, mask=mask)
    close(w, expected)
    if pairwise in SOFTMAX:
        close(w.sum(-1), torch.ones(2, 20, dtype=torch.float64))
    for queries in ([7], [3, 0, 19, 3], torch.tensor([2, 5])):
        close(block.weights(x, queries=queries, mask=mask), w[:, queries], atol=1e-14)
    z = x + (w @ values @ block.out.weight.T + block.out.bias).transpose(1, 2).unflatten(2, (4, 5))
    valid = slice(None) if mask is None else mask
    close(block(x, mask=mask).movedim(1, -1)[valid], z.movedim(1, -1)[valid])


@pytest.mark.parametrize("queries", [[20], [-21], [0.5], [[1, 2]], torch.zeros(1, 1, dtype=torch.long)])
def test_weights_refuses_what_is_no_position(queries):
    with pytest.raises(ValueError, match=r"flat indices of the 20 positions \(4, 5\)"):
        make().weights(normal(2, C, 4, 5), queries=queries)


def test_weights_checks_input_and_mask_as_forward_does():
    with pytest.raises(ValueError, match=r"\(B, 5, \*S\).*\(2, 3, 4\)"):
        make().weights(normal(2, 3, 4))
    with pytest.raises(ValueError, match=r"bool \(2, 4\), got torch.bool \(2, 3\)"):
        make().weights(normal(2, C, 4), mask=torch.ones(2, 3, dtype=torch.bool))


# --- a new block ------------------------------------------------------------------------------------------------------


def test_a_new_block_whose_norm_is_made_a_synchronised_one_is_still_the_identity():
    """As `--trainer.sync_batchnorm=true` does, after construction."""
    block = torch.nn.SyncBatchNorm.convert_sync_batchnorm(NonLocalBlock(4))
    assert isinstance(block.norm, torch.nn.SyncBatchNorm)
    assert not block.norm.weight.any()
    x = torch.randn(2, 4, 3, 5)
    assert torch.equal(block.eval()(x), x)  # in training it wants a GPU


@pytest.mark.oracle
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_new_block_is_the_identity_bit_for_bit(pairwise, norm, training):
    x, mask = normal(2, C, 4, 6, dtype=torch.float32) * 100, corners(2, (4, 6), [(3, 5), (4, 2)])
    block = NonLocalBlock(C, pairwise=pairwise, norm=norm, pool=2, window=(2, None)).train(training)
    for _ in range(2):
        assert torch.equal(block(x), x)
        assert torch.equal(block(x, mask=mask), x)


def without_gradient(pairwise, norm, training):
    """The parameters whose gradient is zero by theory.

    A constant added to all keys adds a constant to all logits of a query, which a softmax does not see: phi.bias.
    Batch norm in training takes the mean away, and with it any constant added to all positions: out.bias, and g.bias
    where the rows of f / C sum to 1.
    """
    zero = {"phi.bias"} if pairwise == "embedded_gaussian" else set()
    if norm == "batch" and training:
        zero |= {"out.bias", "g.bias"} if pairwise in SOFTMAX else {"out.bias"}
    return zero


@pytest.mark.oracle
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_every_parameter_gets_a_gradient(pairwise, pool, norm, training):
    x = normal(2, C, 4, 5).requires_grad_()
    block = make(pairwise, norm=norm, **pool).train(training)
    (block(x) * normal(2, C, 4, 5, seed=1)).sum().backward()
    sizes = {name: p.grad.abs().max().item() for name, p in block.named_parameters()}  # None would raise
    zero = without_gradient(pairwise, norm, training)
    assert zero <= set(sizes) or pairwise == "gaussian"
    assert {name for name, size in sizes.items() if size < 1e-9} == zero
    assert x.grad.abs().min() > 0


@pytest.mark.oracle
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_new_block_starts_to_learn(pairwise, norm):
    """At the start the zero weight gets a gradient, and no parameter is unused; after one step all learn."""
    block, x = NonLocalBlock(C, pairwise=pairwise, norm=norm).double(), normal(2, C, 7)
    start = block.out.weight if norm == "none" else block.norm.weight
    assert (start == 0).all()
    for step in range(2):
        block.zero_grad()
        (block(x) * normal(2, C, 7, seed=1)).sum().backward()
        sizes = {name: p.grad.abs().max().item() for name, p in block.named_parameters()}
        with torch.no_grad():
            assert start.grad.abs().max() > 1e-3
            start -= 0.1 * start.grad
        if step:
            assert {name for name, size in sizes.items() if size < 1e-9} == without_gradient(pairwise, norm, True)


@pytest.mark.oracle
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_gradients_are_numerically_right(pairwise):
    x, mask = normal(2, 3, 4, 2).requires_grad_(), corners(2, (4, 2), [(3, 2), (4, 1)])
    block = make(pairwise, 3, inner_channels=2, pool=(2, 1), window=(None, 1))
    names = [name for name, _ in block.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x, mask))

    block.eval()
    assert torch.autograd.gradcheck(run, (x, *(p.detach().requires_grad_() for p in block.parameters())))


# --- masks ------------------------------------------------------------------------------------------------------------


def train_step(block, x, mask, target):
    """Valid outputs, gradients of the parameters and of the valid input, and running statistics, of one step."""
    x = x.clone().requires_grad_()
    z = block(x, mask=mask)
    valid = z.movedim(1, -1)[mask]
    (valid * target).sum().backward()
    assert (x.grad.movedim(1, -1)[~mask] == 0).all()
    padding, given = z.detach().movedim(1, -1)[~mask], x.detach().movedim(1, -1)[~mask]
    assert torch.equal(padding.nan_to_num(), given.nan_to_num())
    grads = {name: p.grad for name, p in block.named_parameters()}
    return {"z": valid.detach(), "x": x.grad.movedim(1, -1)[mask], **grads, **dict(block.named_buffers())}


def pad(x, mask, size, fill):
    padded = torch.full((*x.shape[:2], *size), fill, dtype=x.dtype)
    wider = torch.zeros(len(x), *size, dtype=torch.bool)
    part = tuple(slice(s) for s in mask.shape[1:])
    padded[:, :, *part], wider[:, *part] = x, mask
    return padded, wider


@pytest.mark.oracle
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("fill", [0.0, 1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_padding_further_changes_nothing(pairwise, pool, fill, norm):
    x, mask = normal(2, C, 4, 5), corners(2, (4, 5), [(3, 5), (4, 2)])
    x = x.masked_fill(~mask[:, None], fill)
    target = normal(int(mask.sum()), C, seed=1)
    expected = train_step(make(pairwise, norm=norm, **pool), x, mask, target)
    for size in ((4, 6), (7, 5), (7, 11)):
        got = train_step(make(pairwise, norm=norm, **pool), *pad(x, mask, size, fill), target)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.oracle
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_padded_sample_is_the_sample_alone(pairwise, pool, norm):
    """Without any mask, in train mode, also where pooling drops a rest."""
    x, target = normal(1, C, 3, 5), normal(15, C, seed=1)
    everything = torch.ones(1, 3, 5, dtype=torch.bool)
    padded, mask = pad(x, everything, (4, 7), float("nan"))
    alone, x = make(pairwise, norm=norm, **pool), x.requires_grad_()
    z = alone(x).movedim(1, -1).flatten(0, 2)
    (z * target).sum().backward()
    got_block = make(pairwise, norm=norm, **pool)
    got = train_step(got_block, padded, mask, target)
    close(got["z"], z.detach())
    close(got["x"], x.grad.movedim(1, -1).flatten(0, 2))
    for name, p in alone.named_parameters():
        close(got[name], p.grad, atol=1e-9)
    for name, statistic in alone.named_buffers():
        close(got[name], statistic)


@pytest.mark.oracle
@pytest.mark.parametrize("window", [(2, None), (None, 3)])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_padding_by_whole_windows_changes_nothing(pairwise, window):
    x, mask = normal(2, C, 4, 3), corners(2, (4, 3), [(3, 3), (4, 2)])
    target = normal(int(mask.sum()), C, seed=1)
    expected = train_step(make(pairwise, window=window), x, mask, target)
    size = (6, 5) if window == (2, None) else (5, 6)
    got = train_step(make(pairwise, window=window), *pad(x, mask, size, float("nan")), target)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-9)


@pytest.mark.oracle
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_full_mask_is_no_mask(pairwise, norm, training):
    x = normal(2, C, 4, 5)
    blocks = [make(pairwise, norm=norm, pool=2).train(training) for _ in range(2)]
    close(blocks[0](x, mask=torch.ones(2, 4, 5, dtype=torch.bool)), blocks[1](x))
    for a, b in zip(*(block.buffers() for block in blocks), strict=True):
        close(a, b)


@pytest.mark.oracle
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("everything", [False, True], ids=["one sample", "all samples"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_sample_without_valid_positions_gives_its_input_back(pairwise, pool, norm, everything, training):
    x, mask = normal(2, C, 4, 5).requires_grad_(), corners(2, (4, 5), [(0, 0), (0, 0) if everything else (4, 3)])
    block = make(pairwise, norm=norm, **pool).train(training)
    z = block(x, mask=mask)
    assert torch.equal(z[0], x[0])
    assert everything or not torch.equal(z[1], x[1])
    z.square().sum().backward()
    assert torch.isfinite(z).all()
    assert torch.equal(x.grad[0], 2 * x.detach()[0])
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in (x, *block.parameters()))
    assert all(torch.isfinite(statistic).all() for statistic in block.buffers())


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_batch_without_valid_positions_leaves_no_parameter_unused(pairwise):
    """DistributedDataParallel waits for the gradient of every parameter, whatever a rank's batch holds."""
    block = make(pairwise)
    block(normal(2, C, 3).requires_grad_(), mask=torch.zeros(2, 3, dtype=torch.bool)).sum().backward()
    assert {name for name, p in block.named_parameters() if p.grad is None} == set()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pairwise": "cosine"}, "pairwise must be one of gaussian, .*, got 'cosine'"),
        ({"norm": "instance"}, "norm must be one of batch, group, layer, none, got 'instance'"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0 and norm_momentum from 0 to 1, got 0.0 and 0.1"),
        ({"norm": "none", "norm_eps": 0.1}, "norm_eps has no effect with norm='none', got 0.1"),
        ({"norm": "group", "norm_momentum": 0.5}, "norm_momentum is for norm='batch' only, got 0.5 with 'group'"),
        ({"norm_momentum": 2}, "norm_eps must be above 0 and norm_momentum from 0 to 1, got 1e-05 and 2"),
        ({"pool_position": "output"}, "pool_position must be one of input, embedding, got 'output'"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"inner_channels": 0}, "inner_channels must be at least 1, got 0"),
        ({"pool": 0}, "pool must be an int of at least 1, or one per axis, got 0"),
        ({"pool": (1, 1.5)}, r"pool must be .* got \(1, 1.5\)"),
        ({"window": (4, -1)}, r"window must be .* got \(4, -1\)"),
        *(
            ({"scale": True, "pairwise": f}, "scale is for pairwise='embedded_gaussian' only")
            for f in ("gaussian", "dot_product", "concatenation")
        ),
    ],
)
def test_arguments_outside_what_is_accepted(kwargs, message):
    with pytest.raises(ValueError, match=message):
        NonLocalBlock(**({"channels": C} | kwargs))


@pytest.mark.parametrize(
    ("kwargs", "size", "message"),
    [
        ({}, (2, C), r"\(B, 5, \*S\) with one axis or more in S, got \(2, 5\)"),
        ({}, (2, 3, 7), r"\(B, 5, \*S\).*got \(2, 3, 7\)"),
        ({"pool": (1, 2, 2)}, (2, C, 4, 6), r"pool \(1, 2, 2\) has 3 entries, the input has 2 axes"),
        ({"pool": 3}, (2, C, 4, 2), r"pool \(3, 3\) is larger than the input's size \(4, 2\)"),
        ({"window": (1, None, None)}, (2, C, 4, 6), r"window \(1, None, None\) has 3 entries, the input has 2 axes"),
        ({"window": (4, None, None)}, (2, C, 6, 2, 2), r"window \(4, 2, 2\) does not divide .* \(6, 2, 2\)"),
        ({"window": 7}, (2, C, 3), r"window \(7,\) does not divide .* \(3,\)"),
        ({"window": 3, "pool": 2}, (2, C, 6), r"pool \(2,\) does not divide the window \(3,\)"),
    ],
)
def test_inputs_outside_what_is_accepted(kwargs, size, message):
    with pytest.raises(ValueError, match=message):
        NonLocalBlock(C, **kwargs)(torch.zeros(size))


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 7), torch.ones(2, 6, dtype=torch.bool), torch.ones(7, dtype=torch.bool)]
)
def test_a_mask_that_does_not_fit(mask):
    with pytest.raises(ValueError, match=rf"bool \(2, 7\), got {mask.dtype} \({mask.shape[0]},"):
        NonLocalBlock(C)(torch.zeros(2, C, 7), mask=mask)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "constant"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1e3), (torch.float16, 10.0)])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_autocast_gives_finite_values_and_gradients(pairwise, dtype, size, norm, masked, kind):
    x = size * (normal(2, 64, 6, 11, dtype=torch.float32) if kind == "random" else torch.ones(2, 64, 6, 11))
    mask = corners(2, (6, 11), [(5, 11), (6, 7)]) if masked else None
    for pool in POOLS:
        torch.manual_seed(0)
        block, leaf = NonLocalBlock(64, pairwise=pairwise, norm=norm, **pool), x.clone().requires_grad_()
        torch.nn.init.normal_(block.out.weight if norm == "none" else block.norm.weight, std=0.1)
        with torch.autocast("cpu", dtype=dtype):
            z = block(leaf, mask=mask)
            loss = (z * normal(*x.shape, seed=1, dtype=torch.float32)).mean()
        loss.backward()
        assert z.dtype == torch.float32
        assert torch.isfinite(z).all()
        for name, p in (("x", leaf), *block.named_parameters()):
            assert torch.isfinite(p.grad).all(), name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_autocast_is_near_the_oracle(pairwise, norm):
    """bfloat16 has 8 bits: on inputs of size 1 the residual is right to a few percent."""
    x, block = normal(2, 16, 5, 7, dtype=torch.float32), make(pairwise, 16, norm=norm, dtype=torch.float32).eval()
    expected = BlockOracle(block.state_dict(), pairwise, norm=norm)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = block(x)
    assert (z - expected).norm() < 0.05 * (x - expected).norm()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_a_block_in_bfloat16(pairwise, norm):
    """A model that was cast as a whole: parameters and input in bfloat16, and so the output."""
    x, block = normal(2, 16, 5, 7, dtype=torch.bfloat16), make(pairwise, 16, norm=norm, dtype=torch.bfloat16).eval()
    expected = BlockOracle(block.state_dict(), pairwise, norm=norm)(x)
    z = block(x)
    assert z.dtype == torch.bfloat16
    assert (z - expected).norm() < 0.05 * (x - expected).norm()
    assert torch.isfinite(block.train()(x, mask=corners(2, (5, 7), [(3, 5), (5, 2)]))).all()


@pytest.mark.oracle
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_float32_is_near_the_oracle_on_both_sides_of_the_choice(pairwise):
    """Small maps are built, large ones are not: both agree with the oracle (here torch's own einsum, in float64)."""
    for n in (7, 509):
        x, block = normal(1, C, n, dtype=torch.float32), make(pairwise, dtype=torch.float32, norm="none")
        state = {name: t.double() for name, t in block.state_dict().items()}
        expected = x + einsum_residual(pairwise, state, x.double())
        close(block(x).double(), expected, atol=1e-5 * expected.abs().max().item())


def einsum_residual(pairwise, state, x):
    """W_z y of one flat input (B, C, N) by einsum: the same equations as the oracle's loops, for larger N."""
    linear = {
        name: torch.einsum("oc,bcn->bno", state[f"{name}.weight"], x) + state[f"{name}.bias"]
        for name in (("g",) if pairwise == "gaussian" else ("theta", "phi", "g"))
    }
    theta, phi = linear.get("theta", x.transpose(1, 2)), linear.get("phi", x.transpose(1, 2))
    if pairwise == "concatenation":
        w_theta, w_phi = state["w_f.weight"][0].chunk(2)
        a, b = torch.einsum("bnd,d->bn", theta, w_theta), torch.einsum("bmd,d->bm", phi, w_phi)
        f = (a[:, :, None] + b[:, None, :]).clamp(min=0) / x.shape[2]
    else:
        f = torch.einsum("bnd,bmd->bnm", theta, phi)
        f = f / x.shape[2] if pairwise == "dot_product" else torch.softmax(f, -1)
    y = torch.einsum("bnm,bmv->bnv", f, linear["g"])
    return (torch.einsum("bnv,cv->bcn", y, state["out.weight"])) + state["out.bias"][:, None]


# --- on another device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_what_the_option_device_does_is_seen_by_no_test(pairwise, computing_on):
    """Outputs, gradients and running statistics of the patched layer (`--device`) are those of the layer."""
    x, results = normal(2, C, 4, 3), []
    for context in (nullcontext(), computing_on("cpu")):
        block, leaf = make(pairwise), x.clone().requires_grad_()
        with context:
            z = block(leaf)
            rows = block.weights(x)
        z.square().sum().backward()
        results.append([z, rows, leaf.grad, *(p.grad for p in block.parameters()), *block.buffers()])
    for got, expected in zip(*results, strict=True):
        close(got, expected)


# --- as a module ------------------------------------------------------------------------------------------------------


LINEAR = {"gaussian": (), "embedded_gaussian": ("theta", "phi"), "dot_product": ("theta", "phi")}
LINEAR["concatenation"] = LINEAR["dot_product"]
STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_state_dict_names_and_shapes(pairwise, norm):
    state = NonLocalBlock(6, inner_channels=2, pairwise=pairwise, norm=norm).state_dict()
    expected = {f"{name}.weight": (2, 6) for name in ("g", *LINEAR[pairwise])}
    expected |= {f"{name}.bias": (2,) for name in ("g", *LINEAR[pairwise])}
    expected |= {"out.weight": (6, 2), "out.bias": (6,)}
    expected |= {} if norm == "none" else {"norm.weight": (6,), "norm.bias": (6,)}
    expected |= {"w_f.weight": (1, 4)} if pairwise == "concatenation" else {}
    expected |= dict.fromkeys(STATISTICS, (6,)) | {"norm.num_batches_tracked": ()} if norm == "batch" else {}
    assert {name: tuple(t.shape) for name, t in state.items()} == expected


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (5, 1)])
def test_group_norm_is_torchs_on_the_input_s_own_axes(channels, groups):
    x = normal(2, channels, 3, 4, 5)
    block, plain = make(channels=channels, norm="group", norm_eps=0.1), make(channels=channels, norm="none")
    norm = torch.nn.GroupNorm(groups, channels, eps=0.1).double()
    norm.load_state_dict(block.norm.state_dict())
    plain.load_state_dict({name: t for name, t in block.state_dict().items() if not name.startswith("norm")})
    close(block(x) - x, norm(plain(x) - x))


def test_eps_and_momentum_are_those_of_the_norm():
    batch = NonLocalBlock(C, norm="batch", norm_eps=0.5, norm_momentum=0.3).norm
    layer = NonLocalBlock(C, norm="layer", norm_eps=0.5).norm
    assert (batch.eps, batch.momentum, layer.eps) == (0.5, 0.3, 0.5)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_weights_of_convolutions_of_size_one_are_loaded(pairwise, axes):
    block, other = make(pairwise), make(pairwise)
    randomise(other, seed=1)
    layers = {f"{name}.weight" for name in ("g", "out", *LINEAR[pairwise])}
    state = {name: t[..., *[None] * axes] if name in layers else t for name, t in other.state_dict().items()}
    block.load_state_dict(state)
    assert all(torch.equal(t, block.state_dict()[name]) for name, t in other.state_dict().items())
    assert all(state[name].ndim == 2 + axes for name in layers), "the caller's are as they were"
    with pytest.raises(RuntimeError, match=r"size mismatch for g\.weight"):
        block.load_state_dict(state | {"g.weight": torch.zeros(2, C, 3)})


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_copy_and_pickle(pairwise, clone):
    x, block = normal(2, C, 4, 5), make(pairwise, pool=2, window=(2, None)).eval()
    other = clone(block)
    assert torch.equal(other(x), block(x))
    expected = block(x)
    randomise(other, seed=1)
    assert torch.equal(block(x), expected)
    assert not torch.equal(other(x), expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_meta_device_construction(pairwise, norm):
    with torch.device("meta"):
        block = NonLocalBlock(64, pairwise=pairwise, norm=norm)
    assert all(t.is_meta for t in block.state_dict().values())
    block.to_empty(device="cpu")
    for t in block.state_dict().values():
        t.fill_(77)
    torch.manual_seed(0)
    block.reset_parameters()
    usual = NonLocalBlock(64, pairwise=pairwise, norm=norm)
    torch.manual_seed(0)
    usual.reset_parameters()
    for (name, t), expected in zip(block.state_dict().items(), usual.state_dict().values(), strict=True):
        assert torch.equal(t, expected), name
    x = normal(2, 64, 5, dtype=torch.float32)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kwargs", [{}, {"pool": 2}, {"window": (50, None)}, {"norm": "layer"}], ids=str)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_shapes_without_values(pairwise, kwargs):
    """A forward pass on the meta device, in every form: of few and of many positions."""
    block = NonLocalBlock(8, pairwise=pairwise, **kwargs).to("meta")
    for size in ((2, 8, 100, 2), (2, 8, 100, 70)):
        z = block(torch.zeros(size, device="meta"))
        assert (z.shape, z.device.type) == (size, "meta")


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_he_initialisation_of_the_paper(pairwise):
    """A normal distribution of variance 2 / fan_in; zero biases; batch norm's weight zero, W_z's not."""
    torch.manual_seed(0)
    block = NonLocalBlock(128, pairwise=pairwise)
    for name in ("g", "out", *LINEAR[pairwise]):
        layer = getattr(block, name)
        assert (layer.bias == 0).all() or pairwise == "concatenation"
        deviation = layer.weight / math.sqrt(2 / layer.in_features)
        assert 0.95 < deviation.std() < 1.05
        assert 0.93 < deviation[deviation.abs() < 2].numel() / deviation.numel() < 0.975  # 0.954; a uniform one has 1
    assert (block.norm.weight == 0).all()
    assert (block.norm.bias == 0).all()
    none = NonLocalBlock(128, pairwise=pairwise, norm="none")
    assert (block.g.bias == 0).all()
    assert (none.out.weight == 0).all()
    assert (none.out.bias == 0).all()


def test_concatenation_starts_with_most_pairs_alive():
    """Its biases put relu's argument at 2 for an input of zeros, and above 0 for most pairs of a normal input."""
    torch.manual_seed(0)
    for channels in (2, 16, 64):
        block = NonLocalBlock(channels, pairwise="concatenation")
        close(block.weights(torch.zeros(1, channels, 7)), torch.full((1, 7, 7), 2 / 7), atol=1e-6)
        assert (block.weights(torch.randn(3, channels, 31)) > 0).float().mean() > 0.6


class Cosine(Pairwise):
    """A function of a user's own: f = the cosine of the angle between theta and phi, C = the number of keys."""

    def layers(self):
        return {name: torch.nn.Linear(self.channels, self.inner_channels) for name in ("theta", "phi")}

    def query(self, block, x):
        return torch.nn.functional.normalize(block.theta(x), dim=-1)

    def key(self, block, x, pool):
        phi = block.phi(x)
        return torch.nn.functional.normalize(pool(phi) if pool else phi, dim=-1)

    def weights(self, query, key, mask):
        f = query @ key.transpose(1, 2)
        if mask is None:
            return f / key.shape[1]
        mask = mask[:, None] if mask.ndim == 2 else mask
        return f.masked_fill(~mask, 0) / mask.sum(-1, keepdim=True).clamp(min=1)


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
def test_a_function_of_ones_own(masked):
    x, mask = normal(2, C, 4, 3), corners(2, (4, 3), [(3, 3), (4, 2)]) if masked else None
    block = make(Cosine, window=(2, None), norm="none")
    assert {"theta.weight", "phi.weight"} < set(block.state_dict())
    normalised = copy.deepcopy(block)
    expected, valid = np.moveaxis(x.numpy(), 1, -1).copy(), np.ones((2, 4, 3), bool) if mask is None else mask.numpy()
    oracle = BlockOracle(normalised.state_dict(), "dot_product", norm="none")
    for b, i in np.argwhere(valid)[:, :2].tolist():
        keys = [p for p in itertools.product(range(i - i % 2, i - i % 2 + 2), range(3)) if valid[(b, *p)]]
        for j in (j for j in range(3) if valid[b, i, j]):
            theta, y = oracle.linear("theta", x[b, :, i, j].numpy()), 0.0
            for p in keys:
                phi, g = (oracle.linear(name, x[b, :, p[0], p[1]].numpy()) for name in ("phi", "g"))
                y = y + theta @ phi / np.linalg.norm(theta) / np.linalg.norm(phi) * g / len(keys)
            expected[b, i, j] = x[b, :, i, j].numpy() + oracle.linear("out", y)
    close(block(x, mask=mask), torch.from_numpy(np.moveaxis(expected, -1, 1)))
    assert block.weights(x, queries=[0, 3], mask=mask).shape == (2, 2, 12)


def test_a_function_without_weights_says_so():
    class Nothing(Pairwise):
        def layers(self):
            return {}

    with pytest.raises(TypeError, match="Nothing does not define weights"):
        NonLocalBlock(C, pairwise=Nothing)(torch.zeros(2, C, 3))


@pytest.mark.oracle
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_memory_format_is_kept(pairwise, norm, training):
    block = make(pairwise, norm=norm).train(training)
    for size, channels_last in (((3, 5), torch.channels_last), ((2, 3, 5), torch.channels_last_3d)):
        x = normal(2, C, *size)
        z = block(x.to(memory_format=channels_last))
        assert z.is_contiguous(memory_format=channels_last)
        assert block(x).is_contiguous()
        close(z, block(x))


def copies(block, x):
    with Operations() as operations:
        block(x)
    return {"clone", "copy_", "_to_copy"} & set(operations.names)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])  # torch's group norm takes channels first only
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_the_input_is_not_copied(pairwise, norm):
    """Nor what is as large, into no layout."""
    block = make(pairwise, 512, norm=norm)
    for size, channels_last in (((16, 16), torch.channels_last), ((4, 8, 8), torch.channels_last_3d)):
        x = normal(2, 512, *size)
        assert copies(block, x.contiguous(memory_format=channels_last)) == set()
        assert copies(block, x) == set()


@pytest.mark.oracle
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"pool": 2}, {"pool": 2, "pool_position": "embedding"}, {"window": (2, None)}])
@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_each_way_of_the_pointwise_layers_gives_the_same(pairwise, norm, kwargs, masked, monkeypatch):
    block, first = make(pairwise, norm=norm, **kwargs), normal(2, C, 4, 6)
    mask = (torch.arange(6) < torch.tensor([6, 5])[:, None])[:, None].expand(-1, 4, -1) if masked else None
    results = []
    for way in (pointwise.convolution, pointwise.rows, pointwise.columns):
        monkeypatch.setattr(pointwise, "_fastest", lambda *_, way=way: way)
        for x in (first, first.to(memory_format=torch.channels_last)):
            y = block(x.requires_grad_(), mask)
            results.append((y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])))
    for result in results[1:]:
        close(result, results[0])


@pytest.mark.oracle
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_strided_inputs(pairwise):
    """Views that are not contiguous in any format: slices, transposes and expanded tensors."""
    block, x = make(pairwise).eval(), normal(2, 2 * C, 6, 7)
    for view in (x[:, ::2], x[:, :C].transpose(2, 3), x[:1, :C].expand(3, -1, -1, -1), x[:, C:, 1:, ::3]):
        close(block(view), block(view.contiguous()))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_the_input_is_never_written_to(pairwise, norm):
    x, mask = normal(2, C, 4, 6), corners(2, (4, 6), [(3, 5), (4, 2)])
    x = x.masked_fill(~mask[:, None], 7.0)
    for channels_last, pool, given_mask in itertools.product((False, True), POOLS, (None, mask)):
        given_x = x.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        copy_of_mask = mask.clone()
        block = make(pairwise, norm=norm, window=(2, None), **pool)
        z = block(given_x, mask=given_mask)
        block.weights(given_x, mask=given_mask)
        assert torch.equal(given_x, x)
        assert torch.equal(mask, copy_of_mask)
        assert z.data_ptr() != given_x.data_ptr()


# --- torch.compile ----------------------------------------------------------------------------------------------------


def compiled_equals_eager(block, x, backend, mask=None):
    torch._dynamo.reset()
    target, results = normal(*x.shape, seed=1, dtype=x.dtype), []
    for run in (block, torch.compile(block, fullgraph=True, backend=backend)):
        block.zero_grad()
        leaf = x.clone().requires_grad_()
        z = run(leaf, mask=mask)
        (z * target).sum().backward()
        results.append([z.detach(), leaf.grad, *(p.grad for p in block.parameters())])
    for got, expected in zip(*results, strict=True):
        close(got, expected, atol=1e-9 if x.dtype == torch.float64 else 1e-3)


COMPILED = ["embedded_gaussian", *(pytest.param(name, marks=pytest.mark.slow) for name in PAIRWISE if name[0] != "e")]


@pytest.mark.parametrize("pairwise", COMPILED)
def test_compile(pairwise):
    compiled_equals_eager(make(pairwise, norm="layer", pool=2), normal(2, C, 4, 5), "aot_eager")
    block = make(pairwise, window=(2, None))
    compiled_equals_eager(block, normal(2, C, 4, 5), "aot_eager")


@pytest.mark.parametrize("pairwise", COMPILED)
def test_compile_of_the_form_without_a_map(pairwise):
    compiled_equals_eager(make(pairwise), normal(1, C, 509), "aot_eager")


@pytest.mark.parametrize("pairwise", COMPILED)
def test_compile_with_a_mask_in_eval_mode(pairwise):
    mask = corners(2, (4, 5), [(3, 5), (4, 2)])
    compiled_equals_eager(make(pairwise, pool=2).eval(), normal(2, C, 4, 5), "aot_eager", mask)


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 509])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_compile_with_inductor(pairwise, n):
    compiled_equals_eager(make(pairwise), normal(1, C, n), "inductor")
