"""The picture has a column an image and a row a query, with the weights and the cross of each at its place."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from nonlocal_nets.attention.images import draw, overlay, picture
from nonlocal_nets.attention.queries import Sample
from nonlocal_nets.attention.rows import Row

SIZE = (6, 10)  # of the images and of the block's grid
WEIGHTS = torch.tensor([[[4.0, 0, 1], [-3, -4, 0]], [[0, 2, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 0]]])


def row(weights, query, size=SIZE, pool=(3, 3)):
    return Row(weights, query, size, pool)


@pytest.fixture
def axes(figures, tmp_path):
    """Of two images and two rows, of which the first has negative weights."""
    torch.manual_seed(0)
    samples = []
    for k in (0, 1):
        rows = {"one: changed most": row(WEIGHTS[k], (1, 7 + k)), "one: the cue": row(WEIGHTS[k + 1].abs(), (5 - k, 2))}
        samples.append(Sample("", torch.rand(3, *SIZE) * 10 - 5, rows))
    draw(samples, tmp_path / "a.png")
    (figure,) = figures
    return samples, figure


def test_images_are_in_the_first_row(axes):
    samples, figure = axes
    for axis, sample in zip(figure.axes[:2], samples, strict=True):
        (image,) = axis.images
        low, high = sample.values.min(), sample.values.max()
        expected = ((sample.values - low) / (high - low)).permute(1, 2, 0)
        np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)


def test_each_map_is_that_of_its_image_and_query(axes):
    samples, figure = axes
    maps = np.array(figure.axes[2:6]).reshape(2, 2)
    for line, title in zip(maps, samples[0].rows, strict=True):
        assert line[0].get_title("left") == title
        for axis, sample in zip(line, samples, strict=True):
            pale, painted = axis.images
            gray = sample.values.mean(0)
            assert np.corrcoef(np.asarray(pale.get_array())[..., 0].ravel(), gray.ravel())[0, 1] > 0.999
            assert pale.get_extent() == [0, 10, 6, 0]
            weights = sample.rows[title].weights
            share = weights / weights.abs().max()
            colour = np.asarray(painted.get_array())
            np.testing.assert_allclose(colour[..., 3], (2 * share.abs()).clamp(max=1), atol=1e-6)
            redder = np.sign(colour[..., 0] - colour[..., 2]) * (share.numpy() != 0)
            assert (redder == np.sign(share.numpy())).all()
            assert painted.get_extent() == [0, 9, 6, 0], "a pool of 3 leaves out the last of 10 columns"
            assert (axis.get_xlim(), axis.get_ylim()) == ((0, 10), (6, 0))


def test_the_cross_is_at_the_query(axes):
    _, figure = axes
    for axis, query in zip(figure.axes[2:6], [(1, 7), (1, 8), (5, 2), (4, 2)], strict=True):
        assert len(axis.lines) == 2
        for line in axis.lines:
            assert line.get_xydata().tolist() == [[pytest.approx(query[1] + 0.5), pytest.approx(query[0] + 0.5)]]
        assert to_rgb(axis.lines[1].get_color()) == to_rgb("lime")


def test_the_bars_have_negative_weights_where_the_maps_do(axes):
    _, figure = axes
    labels = [[text.get_text() for text in axis.get_yticklabels()] for axis in figure.axes[6:]]
    assert labels == [["-max", "0", "max"], ["0", "max"]]
    bars = [axis.collections[-1] for axis in figure.axes[6:]]
    assert [bar.norm.vmin for bar in bars] == [-1, 0]
    for bar in bars:
        assert bar.cmap(1.0)[0] > 2 * bar.cmap(1.0)[2]
    assert bars[0].cmap(0.0)[2] > 2 * bars[0].cmap(0.0)[0]
    assert min(bars[1].cmap(0.0)[:3]) > 0.9


def test_red_is_positive_blue_negative_and_zero_lets_the_image_through(figures):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    overlay(axis, torch.ones(2, 2, 3), row(torch.tensor([[4.0, 0.0], [-2.0, -4.0]]), (0, 0), (2, 2), (1, 1)))
    pale, painted = (np.asarray(image.get_array()) for image in axis.images)
    assert (pale == 1).all()
    (red, zero), (half, blue) = painted
    assert red[0] > 2 * red[2]
    assert blue[2] > 2 * blue[0]
    assert half[2] > half[0], "the same scale on both sides"
    assert [round(float(colour[3]), 3) for colour in (red, zero, half, blue)] == [1, 0, 1, 1]


def test_weights_that_are_all_zero_and_a_flat_image():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    overlay(axis, picture(torch.full((3, 2, 2), 7.0)), row(torch.zeros(2, 2), (0, 0), (2, 2), (1, 1)))
    assert not np.asarray(axis.images[1].get_array())[..., 3].any()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_an_image_of_other_than_three_channels_is_grey(channels):
    values = torch.arange(channels * 6.0).view(channels, 2, 3) * 0.01 - 1  # of little contrast
    shown = picture(values)
    mean = values.mean(0)
    expected = (mean - values.min()) / (values.max() - values.min())
    torch.testing.assert_close(shown, expected[..., None].expand(-1, -1, 3))
