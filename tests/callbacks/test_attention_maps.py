"""The picture shows the row of f / C(x) of the position that the block changes most."""

import pytest
import torch

import nonlocal_nets as nln
from nonlocal_nets.callbacks.attention_maps import attended, draw


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product"])
def test_query_is_the_position_changed_most_and_its_row_is_exact(pairwise):
    torch.manual_seed(0)
    block = nln.NonLocalBlock(4, pairwise=pairwise, pool=2).eval()
    torch.nn.init.ones_(block.norm.weight)
    x = torch.randn(1, 4, 6, 8)
    z = x.clone()
    z[0, :, 4, 5] += 3
    (y_fraction, x_fraction), weights = attended(block, x, z)
    assert (y_fraction, x_fraction) == (4.5 / 6, 5.5 / 8)
    assert weights.shape == (3, 4)
    assert torch.allclose(weights.flatten(), block.weights(x)[0, 4 * 8 + 5])


def test_picture_has_a_row_an_image_and_a_column_a_block(tmp_path):
    images = torch.rand(2, 3, 12, 12)
    rows = [((0.5, 0.5), torch.rand(3, 3)), ((0.25, 0.75), torch.rand(3, 3) - 0.5)]
    path = draw(
        images, {"network.layer3.non_local": rows, "network.layer4.non_local": rows}, tmp_path / "new" / "a.png"
    )
    from matplotlib.image import imread

    height, width = imread(path).shape[:2]
    assert width / height == pytest.approx(3 / 2, abs=0.05)
