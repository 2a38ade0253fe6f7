"""Weights are drawn over a sequence at its own length, with arcs and tokens at the strongest keys."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, StepPatch

from nonlocal_nets.attention.queries import Sample
from nonlocal_nets.attention.rows import Row
from nonlocal_nets.attention.series import around, draw, strongest


def row(weights, query=0, size=None, pool=1):
    return Row(torch.as_tensor(weights), (query,), (size or len(weights) * pool,), (pool,))


def parts(axis):
    """Of the steps that are filled: the red ones, the blue ones, and the edges."""
    steps = [artist for artist in axis.patches if isinstance(artist, StepPatch)]
    colours = [step.get_facecolor() if step.get_fill() else step.get_edgecolor() for step in steps]
    assert [step.get_fill() for step in steps] == [True, False] * 2, "filled, and an outline"
    assert [colour[:3] for colour in colours] == [to_rgb("tab:red")] * 2 + [to_rgb("tab:blue")] * 2
    red, blue = (step.get_data() for step in steps if step.get_fill())
    return red.values, blue.values, red.edges


def test_a_signal_its_weights_with_zero_and_the_query(tmp_path, figures):
    signal, weights = torch.randn(3, 10), torch.tensor([0.5, -0.25, 0.0])
    draw([Sample("one", signal, {"title": row(weights, 2, 10, 3)})], None, tmp_path / "a.png")
    axis, behind = figures[0].axes
    red, blue, edges = parts(axis)
    assert (red + blue).tolist() == weights.tolist()
    assert (red.min(), blue.max()) == (0, 0)
    assert edges.tolist() == pytest.approx([0, 3, 6, 9])
    zero, query = axis.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert list(query.get_xdata()) == [2.5, 2.5]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["-0.25", "0", "0.5"]
    assert axis.get_ylim()[0] < -0.25 < 0.5 < axis.get_ylim()[1]
    assert (axis.get_title("left"), axis.get_title("right")) == ("title", "one")
    lines = [np.stack(line.get_data()) for line in behind.lines]
    assert len(lines) == 3
    for line, channel in zip(lines, signal, strict=True):
        assert line[0].tolist() == [k + 0.5 for k in range(10)]
        assert line[1].tolist() == pytest.approx(channel.tolist())


def test_arcs_go_to_the_strongest_keys(tmp_path, figures):
    weights = torch.zeros(20)
    weights[2], weights[15] = 0.5, -1
    draw([Sample("", torch.randn(1, 40), {"": row(weights, 10)})], None, tmp_path / "a.png")
    arcs = [patch for patch in figures[0].axes[0].patches if isinstance(patch, FancyArrowPatch)]
    ends = [[point[0] for point in arc._posA_posB] for arc in arcs]
    assert ends == [[21, 31], [21, 5]]
    assert [arc.get_edgecolor()[:3] for arc in arcs] == [to_rgb("tab:blue"), to_rgb("tab:red")]
    assert [arc.get_alpha() for arc in arcs] == pytest.approx([1, 0.6])


def test_the_strongest_arc_is_not_more_than_opaque(tmp_path, figures):
    weights = torch.tensor([0.6509923028794088, 0.0], dtype=torch.float64)
    assert 0.2 + 0.8 * float(weights[0]) / float(weights[0]) > 1  # by rounding
    draw([Sample("", torch.randn(1, 40), {"": row(weights, 1)})], None, tmp_path / "a.png")
    assert [patch.get_alpha() for patch in figures[0].axes[0].patches if isinstance(patch, FancyArrowPatch)] == [1]


def test_weights_without_a_negative_one_start_at_zero(tmp_path, figures):
    draw([Sample("", torch.randn(1, 6), {"": row([0.1, 0.9])})], None, tmp_path / "a.png")
    axis = figures[0].axes[0]
    assert axis.get_ylim()[0] == 0
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0", "0.9"]


def test_tokens_without_names_are_a_strip(tmp_path, figures):
    tokens = torch.tensor([3, 1, 1, 0])
    draw([Sample("", tokens, {"": row(torch.ones(4))})], None, tmp_path / "a.png")
    (image,) = figures[0].axes[0].images
    assert image.get_array().tolist() == [tokens.tolist()]
    assert list(image.get_extent())[:2] == [0, 4]


def test_names_stand_at_the_strongest_keys_and_the_query(tmp_path, figures):
    names, tokens = ("a", "$", " "), torch.tensor([0, 1, 2] * 20)
    weights = torch.zeros(60)
    weights[[10, 11, 40]] = torch.tensor([0.5, 0.4, -0.3])
    draw([Sample("", tokens, {"": row(weights, 30)})], names, tmp_path / "a.png")
    axis = figures[0].axes[0]
    assert axis.get_xticks().tolist() == [10.5, 40.5], "one is beside a stronger one, the others have no weight"
    text = "a$ " * 20
    assert [label.get_text() for label in axis.get_xticklabels()] == [text[4:17], text[34:47]]
    (query,) = axis.texts
    assert query.get_position()[0] == 30.5
    assert query.get_text() == text[24:37]


def test_what_is_written_around_a_place():
    written = ["[MAX", "1", "2", "[MIN", "3", "]"]
    assert around(written, 1, " ") == "[MAX 1 2 [MIN"
    assert around(written, 0, "") == "[MAX12[MIN3]"
    assert around(["a very long token"] * 3, 1, " ") == "a very long token"


def test_the_strongest_keys_leave_room():
    assert strongest(row([0.2, -0.9, 0.3, 0.0], size=10, pool=2), 40) == [1, 2, 0]
    keys = strongest(row(torch.rand(600) + 0.1), 600)
    assert 3 <= len(keys) <= 6
    assert min(abs(a - b) for a in keys for b in keys if a != b) > 100
    assert strongest(row([1.0, 0.009, 0.02]), 30) == [0, 2], "too weak for a token"
    assert strongest(row(torch.zeros(0), size=5, pool=8), 40) == []


def test_a_column_is_a_sequence_and_a_line_a_query(tmp_path, figures):
    """Weights of each sequence and query, over its own length."""
    weights = torch.arange(1.0, 5)
    samples = [
        Sample(f"sample {k}", torch.randn(1, n), {f"query {q}": row(weights.roll(2 * k + q), q, n, 3) for q in (0, 1)})
        for k, n in enumerate((12, 13))
    ]
    draw(samples, None, tmp_path / "a.png")
    axes = np.array(figures[0].axes[:4]).reshape(2, 2)
    for q, line in enumerate(axes):
        for k, axis in enumerate(line):
            red, blue, edges = parts(axis)
            assert red.tolist() == weights.roll(2 * k + q).tolist()
            assert not blue.any()
            assert edges.tolist() == pytest.approx([0, 3, 6, 9, 12])
            assert axis.get_xlim() == (0, 12 + k)
            assert list(axis.lines[1].get_xdata()) == pytest.approx([q + 0.5, q + 0.5])
            assert axis.get_title("left") == (f"query {q}" if k == 0 else "")
            assert axis.get_title("right") == (f"sample {k}" if q == 0 else "")
