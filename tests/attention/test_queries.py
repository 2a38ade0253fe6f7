"""Which queries are drawn, and that their rows are those of the block."""

import pytest
import torch

import nonlocal_nets as nln
from nonlocal_nets.attention.capture import Activations
from nonlocal_nets.attention.queries import changed_most, rows_by_query


@pytest.mark.parametrize("position", [(4,), (4, 5), (2, 4, 5)])
def test_changed_most(position):
    """By the sum over the channels, whatever the sign, and not where the input is large."""
    size = (3, 6, 7)[-len(position) :] if len(position) > 1 else (6,)
    x = torch.randn(4, *size)
    z = x.clone()
    z[:, *position] -= 2
    z[0, *(0 for _ in size)] += 3.9
    x[:, *(s - 1 for s in size)] += 100
    z[:, *(s - 1 for s in size)] += 100
    expected = [(i + 0.5) / s for i, s in zip(position, size, strict=True)]
    assert changed_most(Activations(x, z, None)) == pytest.approx(expected)


def test_changed_most_of_a_padded_sample():
    """In fractions of its own extent; what stands in the padding does not count, be it NaN."""
    x, mask = torch.zeros(2, 10), torch.arange(10) < 8
    z = x.clone()
    z[:, 5], z[:, 8], z[:, 9] = 1, 50, torch.nan
    assert changed_most(Activations(x, z, mask)) == (5.5 / 8,)
    z[:, 5] = 0
    assert changed_most(Activations(x, z, mask)) == (0.5 / 8,), "the block changes nothing"


def peak(values):
    """The peak. Of the first channel."""
    return (int(values[0].argmax()) / values.shape[-1],)


@torch.no_grad()
def test_rows_by_title():
    torch.manual_seed(0)
    block = nln.NonLocalBlock(3, pairwise="dot_product", pool=2).eval()
    values = torch.randn(3, 9)
    x, mask = torch.nn.functional.pad(values, (0, 3)), torch.arange(12) < 9
    z = x.clone()
    z[1, 7] += 1
    rows = rows_by_query("network.layer2.0.non_local", block, Activations(x, z, mask), values, peak, (0.5, 0.0))
    at = {"changed most": 7, "the peak": int(values[0].argmax()), "at 0.5": 4, "at 0": 0}
    assert list(rows) == [f"layer2.0: {what}" for what in at]
    whole = block.weights(values[None])[0]
    for row, query in zip(rows.values(), at.values(), strict=True):
        assert row.query == (query,)
        torch.testing.assert_close(row.weights, whole[query])
        assert row.covered == (8 / 9,)


def test_without_further_queries():
    block, x = nln.NonLocalBlock(3), torch.randn(3, 4, 5)
    assert list(rows_by_query("0", block, Activations(x, x, None), x)) == ["0: changed most"]


def test_the_points_of_the_data_need_a_fraction_an_axis():
    block, x = nln.NonLocalBlock(3), torch.zeros(3, 4, 2, 3)
    with pytest.raises(ValueError, match=r"a point must be 3 fractions .*, got \(0.5, 0.5\)"):
        rows_by_query("0", block, Activations(x, x, None), x, lambda clip: (0.5, 0.5))
