"""The picture shows exact rows of f / C(x): of the position that the block changes most, and of the point asked for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nonlocal_nets as nln
from nonlocal_nets.callbacks.attention_maps import changed_most, draw, look, overlay
from nonlocal_nets.data import CuedDigits
from nonlocal_nets.data.cued_digits import CuedDigitsDataset


def test_changed_most():
    x = torch.randn(2, 4, 6, 8)
    z = x.clone()
    z[0, :, 4, 5] += 3
    z[1, 0, 0, 7] -= 1
    assert changed_most(x, z) == [(4.5 / 6, 5.5 / 8), (0.5 / 6, 7.5 / 8)]


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product"])
def test_look_gives_the_rows_of_the_points(pairwise):
    torch.manual_seed(0)
    block = nln.NonLocalBlock(4, pairwise=pairwise, pool=2).eval()
    x = torch.randn(2, 4, 6, 8)
    seen = look(block, x, [(0.7, 0.7), (0.0, 0.99)])
    assert [middle for middle, _ in seen] == [(4.5 / 6, 5.5 / 8), (0.5 / 6, 7.5 / 8)]
    for k, query in enumerate((4 * 8 + 5, 7)):
        weights = seen[k][1]
        assert weights.shape == (3, 4)
        assert torch.allclose(weights.flatten(), block.weights(x)[k, query], atol=1e-6)


def test_the_query_point_of_the_cued_digits_is_the_middle_of_the_cue():
    dataset = CuedDigitsDataset("test", 40)
    for image, _ in (dataset[k] for k in range(40)):
        row, column = (round(48 * fraction) for fraction in CuedDigits.query_point(image))
        square = image[:, row - 3 : row + 3, column - 3 : column + 3].amax((1, 2))
        assert (image[:, row - 3 : row + 3, column - 3 : column + 3].amin((1, 2)) == 1).sum() == 1
        assert square.sum() == 1, "one colour, filled"


def test_picture_has_a_row_a_map_and_a_column_an_image(tmp_path):
    images = torch.rand(4, 3, 12, 12)
    seen = [((0.5, 0.5), torch.rand(3, 3)), ((0.2, 0.7), torch.rand(3, 3) - 0.5)] * 2
    path = draw(images, {"layer3: changed most": seen, "layer3: the cue": seen}, tmp_path / "new" / "a.png")
    from matplotlib.image import imread

    height, width = imread(path).shape[:2]
    assert width / height == pytest.approx((1.6 * 4 + 0.6) / (1.75 * 3), rel=0.01)


def test_red_is_positive_blue_negative_and_zero_lets_the_picture_through():
    shown = []
    axis = SimpleNamespace(imshow=lambda pixels, **_: shown.append(pixels), plot=lambda *_, **__: None)
    overlay(axis, np.ones((2, 2, 3), np.float32), torch.tensor([[4.0, 0.0], [-2.0, -4.0]]), (0.5, 0.5), (2, 2))
    picture, painted = shown
    assert (picture == 1).all()
    (red, zero), (half, blue) = painted
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    assert half[2] > half[0], "the same scale on both sides"
    assert [round(float(colour[3]), 3) for colour in (red, zero, half, blue)] == [1, 0, 1, 1]
