"""Arrows go from the query to the keys that are the strongest by construction, in frames and pixels of the clip."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

import nonlocal_nets as nln
from nonlocal_nets.attention.clips import Arrows, Mark, animate, draw, nearest, shown, strongest
from nonlocal_nets.attention.rows import rows_at


def attend(block, x, point, clip_size, arrows):
    """The arrows of a block whose input is (1, C, T, H, W)."""
    (row,) = rows_at(block, x[0], [point])
    return strongest(row, clip_size, arrows)


def place(mark):
    return mark.frame, mark.frames, mark.row, mark.column


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("pool_position", ["input", "embedding"])
def test_pooled_keys(pairwise, pool_position):
    """A grid (4, 5, 6) with pool (1, 2, 3): keys (4, 2, 2), which leave the last row out."""
    torch.manual_seed(0)
    block = nln.NonLocalBlock(4, pairwise=pairwise, pool=(1, 2, 3), pool_position=pool_position).eval()
    x = torch.randn(1, 4, 4, 5, 6)
    arrows = attend(block, x, (0.5, 0.99, 0.34), (8, 50, 120), 7)
    assert place(arrows.query) == (5, range(4, 6), 45, 50)
    weights = block.weights(x).detach()[0, (2 * 5 + 4) * 6 + 2].view(4, 2, 2)
    grid = [(float(weights[t, i, j]), t, i, j) for t in range(4) for i in range(2) for j in range(2)]
    ranked = sorted((cell for cell in grid if cell[0] != 0), key=lambda cell: -abs(cell[0]))[:7]
    assert [key.weight for key in arrows.keys] == pytest.approx([cell[0] for cell in ranked], abs=1e-6)
    assert [place(key)[1:] for key in arrows.keys] == [
        (range(2 * t, 2 * t + 2), pytest.approx(20 * i + 10), pytest.approx(60 * j + 30)) for _, t, i, j in ranked
    ]
    share = sum(abs(cell[0]) for cell in ranked) / sum(abs(cell[0]) for cell in grid)
    assert arrows.share == pytest.approx(share, abs=1e-5)
    assert any(key.weight < 0 for key in arrows.keys) == (pairwise == "dot_product")


def test_pooled_frames():
    block = nln.NonLocalBlock(2, pool=(2, 1, 1)).eval()
    arrows = attend(block, torch.randn(1, 2, 6, 1, 1), (0.0, 0.0, 0.0), (12, 9, 9), 20)
    assert {(key.frame, key.frames, key.row, key.column) for key in arrows.keys} == {
        (2, range(0, 4), 4.5, 4.5),
        (6, range(4, 8), 4.5, 4.5),
        (10, range(8, 12), 4.5, 4.5),
    }


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        ((1, None, None), {(2, i, j) for i in range(2) for j in range(3)}),
        ((None, 1, 1), {(t, 1, 0) for t in range(4)}),
        ((2, None, None), {(t, i, j) for t in (2, 3) for i in range(2) for j in range(3)}),
    ],
)
def test_keys_outside_the_window_are_not_drawn(window, inside):
    block = nln.NonLocalBlock(3, window=window).eval()
    arrows = attend(block, torch.randn(1, 3, 4, 2, 3), (0.6, 0.6, 0.1), (4, 2, 3), 24)
    assert {(key.frame, int(key.row), int(key.column)) for key in arrows.keys} == inside
    assert len(arrows.keys) == len(inside)
    assert arrows.share == pytest.approx(1)


def test_no_weight_at_all(tmp_path):
    block = nln.NonLocalBlock(3, pairwise="dot_product").eval()
    arrows = attend(block, torch.zeros(1, 3, 4, 2, 3), (0.6, 0.6, 0.1), (4, 2, 3), 20)
    assert arrows.keys == []
    assert arrows.share == 0
    draw(torch.zeros(3, 4, 2, 3), {"": arrows}, tmp_path / "a.png", "")
    animate(torch.zeros(3, 4, 2, 3), {"": arrows}, tmp_path / "a.gif")


def arrows_in(query, **weights):
    """Arrows from the frame `query`, to keys in frames as in f3=0.5."""
    keys = [Mark(int(name[1:]), range(int(name[1:]), int(name[1:]) + 1), 0, 0, w) for name, w in weights.items()]
    return Arrows(Mark(query, range(query, query + 1), 0, 0, 1.0), keys, 1.0)


def test_frames_that_are_shown():
    assert shown(5, arrows_in(3, f1=0.5)) == [0, 1, 2, 3, 4]
    assert shown(8, arrows_in(0)) == list(range(8))
    assert shown(16, arrows_in(7)) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert shown(16, arrows_in(4)) == [1, 3, 4, 5, 7, 9, 11, 13, 15]
    assert shown(32, arrows_in(31)) == [2, 6, 10, 14, 18, 22, 26, 30, 31]
    assert shown(32, arrows_in(10, f0=0.3, f1=-0.4, f2=0.3, f16=0.1)) == [1, 6, 10, 14, 16, 22, 26, 30]
    for frames in range(9, 40):
        gaps = np.diff(shown(frames, arrows_in(frames // 16)))  # the first of the eight
        assert len(gaps) in (7, 8)
        assert gaps.max() <= -(-frames // 8) + 1


def test_a_key_goes_to_a_frame_that_its_cell_covers_else_to_the_nearest_of_its_eighth():
    assert nearest(Mark(6, range(4, 8), 0, 0, 1), [1, 3, 7, 9], 16) == 7
    assert nearest(Mark(6, range(2, 7), 0, 0, 1), [2, 7], 16) == 2
    assert nearest(Mark(4, range(4, 5), 0, 0, 1), [1, 3, 5, 7], 16) == 5
    assert nearest(Mark(5, range(5, 6), 0, 0, 1), [1, 3, 4, 6], 16) == 4
    assert nearest(Mark(8, range(8, 9), 0, 0, 1), [7, 9, 11], 32) == 9


def test_arrows_in_the_picture(tmp_path, figures):
    """Each from the query's axes to the key's, dotted where the key's frame is not among them; none to itself."""
    from matplotlib.patches import ConnectionPatch

    query = Mark(4, range(4, 5), 3.0, 5.0, 0.5)
    others = [(4, 1, 2, -0.4), (13, 6, 7, 0.25), (7, 3, 3, 0.2), (6, 0, 1, 0.1)]
    keys = [query, *(Mark(frame, range(frame, frame + 1), *place) for frame, *place in others)]
    clip = torch.rand(1, 16, 8, 10)
    draw(clip, {"one": Arrows(query, keys, 0.9)}, tmp_path / "a.png", "name")
    (figure,) = figures
    axes = {axis.get_xlabel(): axis for axis in figure.axes}
    assert list(axes) == [f"frame {k}" for k in (1, 3, 4, 7, 9, 11, 13, 15)]
    scaled = (clip[0] - clip.min()) / (clip.max() - clip.min())
    for name, axis in axes.items():
        (image,) = axis.images
        np.testing.assert_allclose(image.get_array()[..., 0], scaled[int(name.removeprefix("frame "))], atol=1e-6)
        assert image.get_extent() == [0, 10, 8, 0]
    assert figure.get_suptitle().startswith("name: ")
    assert figure.axes[4].get_title() == "one (strongest weight 0.5, the 5 hold 90% of all)"
    arrows = [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]
    assert all(arrow.xy1 == (5, 3) and arrow.coords1 is axes["frame 4"].transData for arrow in arrows)
    frames = [name for arrow in arrows for name, axis in axes.items() if arrow.coords2 is axis.transData]
    found = {(arrow.xy2, name, arrow.get_linestyle()) for arrow, name in zip(arrows, frames, strict=True)}
    assert found == {
        ((2, 1), "frame 4", "-"),
        ((7, 6), "frame 13", "-"),
        ((3, 3), "frame 7", "-"),
        ((1, 0), "frame 7", ":"),
    }
    opacity = {arrow.xy2: arrow.get_alpha() for arrow in arrows}
    assert list(opacity) == [(1, 0), (3, 3), (7, 6), (2, 1)], "the strongest is drawn last, above the others"
    assert opacity[2, 1] > opacity[7, 6] > opacity[1, 0] > 0
    assert opacity[2, 1] == pytest.approx(0.3 + 0.7 * 0.8)
    colours = {arrow.xy2: arrow.get_edgecolor()[:3] for arrow in arrows}
    assert colours == {end: to_rgb("deepskyblue" if end == (2, 1) else "yellow") for end in colours}
    points = {
        (name, *line.get_xydata()[0].tolist(), line.get_alpha()) for name, axis in axes.items() for line in axis.lines
    }
    assert points == {("frame 4", 5, 3, 1.0)} | {(name, *end, opacity[end]) for end, name, _ in found}
    crosses = [artist for artist in figure.artists if artist not in arrows]
    assert all(cross.get_xydata().tolist() == [[5, 3]] for cross in crosses)
    assert all(cross.get_transform() is axes["frame 4"].transData for cross in crosses)


def test_circles_in_the_animation(tmp_path):
    """A still clip, and keys in frames 1 and 2: all frames are there, circles in these only, the stronger is larger."""
    query = Mark(0, range(0, 1), 1, 1, 0.5)
    keys = [Mark(1, range(1, 3), 6, 4, 0.5), Mark(3, range(3, 4), 6, 4, 0.1)]
    clip = torch.zeros(3, 6, 10, 10)
    animate(clip, {"one": Arrows(query, keys, 1.0), "two": Arrows(query, [], 0.0)}, tmp_path / "a.gif")
    extents = []
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 6
        for k in range(6):
            film.seek(k)
            red, green, blue = np.moveaxis(np.asarray(film.convert("RGB")).astype(int), 2, 0)
            rows, columns = np.nonzero((red > 200) & (green > 200) & (blue < 60))
            extents.append(np.ptp(columns) if len(columns) else 0)
            if len(columns):  # the first panel starts at (0, 36), and a pixel of the clip is 24 of the panel
                assert (columns.mean(), rows.mean()) == pytest.approx((4 * 24, 36 + 6 * 24), abs=1)
    assert extents[1] == extents[2] > extents[3] > 0
    assert extents[0] == extents[4] == extents[5] == 0


def test_the_animation_shows_the_frames_in_order_for_each_query(tmp_path):
    """Ever brighter frames, a query in each panel, in the frames of its cell."""
    clip = torch.linspace(0, 1, 5)[:, None, None].expand(3, 5, 6, 8).clone()
    queries = [Mark(1, range(1, 2), 1.5, 6.5, 1.0), Mark(3, range(2, 4), 4.5, 1.5, 1.0)]
    animate(clip, {str(k): Arrows(query, [], 0.0) for k, query in enumerate(queries)}, tmp_path / "a.gif")
    zoom, top, left = 240 / 8, 36, 240 + 4
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 5
        for k in range(5):
            film.seek(k)
            grey = np.asarray(film.convert("L")).astype(int)
            panels = [grey[top : top + 180, :240], grey[top : top + 180, left : left + 240]]
            for panel, query in zip(panels, queries, strict=True):
                assert panel[-1, -1] == pytest.approx(255 * k / 4, abs=3)
                middle = panel[int(query.row * zoom), int(query.column * zoom)]
                black = panel[int(query.row * zoom) - 2, int(query.column * zoom) + 4]
                assert (middle, black) == ((255, 0) if k in query.frames else (panel[-1, -1],) * 2)
