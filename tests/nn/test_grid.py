"""Subsampling and windows of the grid, against torch's own max pooling, plain loops and slices."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_nets.nn import grid

TORCH_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def grids(axes):
    """(size, pool) with an entry an axis, the pool no larger than the size."""
    pair = st.integers(1, 5).flatmap(lambda s: st.tuples(st.just(s), st.integers(1, s)))
    return st.lists(pair, min_size=axes, max_size=axes).map(lambda pairs: tuple(zip(*pairs, strict=True)))


@pytest.mark.parametrize("axes", [1, 2, 3])
@settings(max_examples=25)
@given(data=st.data())
def test_max_pool_is_torch_max_pool(axes, data):
    size, pool = data.draw(grids(axes))
    x = torch.randn(2, *size, 3)
    expected = TORCH_POOL[axes](x.movedim(-1, 1), pool).movedim(1, -1)
    assert torch.equal(grid.max_pool(x, pool), expected)
    assert grid.pooled_sizes(size, pool) == expected.shape[1:-1]


def cells(size, pool):
    """The slices of every whole cell."""
    for cell in itertools.product(*(range(s // k) for s, k in zip(size, pool, strict=True))):
        yield cell, tuple(slice(c * k, (c + 1) * k) for c, k in zip(cell, pool, strict=True))


@settings(max_examples=25)
@given(grids(4))
def test_max_pool_of_four_axes(size_pool):
    size, pool = size_pool
    x = torch.randn(2, *size, 3)
    pooled = grid.max_pool(x, pool)
    assert pooled.shape == (2, *(s // k for s, k in zip(size, pool, strict=True)), 3)
    for cell, part in cells(size, pool):
        assert torch.equal(pooled[:, *cell], x[:, *part].flatten(1, 4).amax(1))


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@settings(max_examples=15)
@given(data=st.data())
def test_max_pool_with_a_mask(axes, data):
    """Masked positions, even NaN, do not take part; a cell without a valid position gives zeros."""
    size, pool = data.draw(grids(axes))
    x, mask = torch.randn(2, *size, 3), torch.rand(2, *size) < 0.4
    pooled = grid.max_pool(x.masked_fill(~mask[..., None], float("nan")), pool, mask)
    for cell, part in cells(size, pool):
        for b in range(2):
            valid = x[b, *part][mask[b, *part]]
            assert torch.equal(pooled[b, *cell], valid.amax(0) if len(valid) else torch.zeros(3))


def test_max_pool_without_pooling_is_the_input():
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(grid.max_pool(x, (1, 1)), x)


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@settings(max_examples=25)
@given(data=st.data())
def test_pool_mask_of_a_padded_sample_is_that_of_the_sample(axes, data):
    """A sample that fills a corner of the grid has the whole cells that it has alone, and no other."""
    size, pool = data.draw(grids(axes))
    extent = tuple(data.draw(st.integers(1, s)) for s in size)
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[0, *(slice(e) for e in extent)] = True
    pooled = grid.pool_mask(mask, pool)
    expected = torch.zeros(2, *(s // k for s, k in zip(size, pool, strict=True)), dtype=torch.bool)
    expected[0, *(slice(e // k) for e, k in zip(extent, pool, strict=True))] = True
    assert torch.equal(pooled, expected)


def test_pool_mask_with_holes():
    """A cell counts where it holds a valid position, up to the last whole cell of the sample."""
    mask = torch.tensor([[1, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    expected = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert torch.equal(grid.pool_mask(mask, (2,)), expected)
    assert torch.equal(grid.pool_mask(mask, (1,)), mask)


def windows(axes):
    """(size, window) where the window divides the size."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda nw: (nw[0] * nw[1], nw[1]))
    return st.lists(pair, min_size=axes, max_size=axes).map(lambda pairs: tuple(zip(*pairs, strict=True)))


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@settings(max_examples=25)
@given(data=st.data())
def test_windows_are_slices_and_fold_back(axes, data):
    size, window = data.draw(windows(axes))
    x = torch.randn(2, *size, 3)
    folded = grid.to_windows(x.flatten(1, -2), size, window)
    parts = [x[b, *part].flatten(0, -2) for b in range(2) for _, part in cells(size, window)]
    assert torch.equal(folded, torch.stack(parts))
    assert torch.equal(grid.from_windows(folded, size, window), x.flatten(1, -2))


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
@settings(max_examples=10)
@given(data=st.data())
def test_window_index(axes, data):
    size, window = data.draw(windows(axes))
    expected = torch.empty(size, dtype=torch.long)
    for number, (_, part) in enumerate(cells(size, window)):
        expected[part] = number
    assert torch.equal(grid.window_index(size, window, torch.device("cpu")), expected.flatten())


def test_without_windows_nothing_is_folded():
    x = torch.randn(2, 15, 3)
    assert grid.to_windows(x, (3, 5), None) is x
    assert grid.from_windows(x, (3, 5), None) is x


def test_window_sizes():
    assert grid.window_sizes((1, None, None), (4, 3, 5), (1, 1, 1)) == (1, 3, 5)
    assert grid.window_sizes((4, None, None), (8, 3, 5), (2, 3, 2)) == (4, 3, 5)
    assert grid.window_sizes(3, (3, 6), (1, 1)) == (3, 3)
    assert grid.window_sizes(None, (3, 6), (1, 1)) is None
    assert grid.window_sizes((3, None), (3, 6), (2, 2)) is None


def test_pool_sizes():
    assert grid.pool_sizes(None, (3, 5)) == (1, 1)
    assert grid.pool_sizes(2, (3, 5)) == (2, 2)
    assert grid.pool_sizes((1, 2, 2), (1, 3, 5)) == (1, 2, 2)
    assert grid.pool_sizes((None, 2), (3, 5)) == (1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid.pool_sizes((1, 2, 2), (3, 5)), r"pool \(1, 2, 2\) has 3 entries, the input has 2 axes"),
        (lambda: grid.pool_sizes((1, 7), (3, 5)), r"pool \(1, 7\) is larger than the input's size \(3, 5\)"),
        (lambda: grid.window_sizes((2,), (3, 5), (1, 1)), r"window \(2,\) has 1 entries, the input has 2 axes"),
        (lambda: grid.window_sizes((1, 2), (3, 5), (1, 1)), r"window \(1, 2\) does not divide .* \(3, 5\)"),
        (lambda: grid.window_sizes((7, 1), (3, 5), (1, 1)), r"window \(7, 1\) does not divide .* \(3, 5\)"),
        (lambda: grid.window_sizes((3, 5), (6, 5), (2, 2)), r"pool \(2, 2\) does not divide the window \(3, 5\)"),
    ],
)
def test_errors_name_both_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
