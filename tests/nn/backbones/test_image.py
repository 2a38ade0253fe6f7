"""Image classifiers by name."""

import pytest
import torch

from nonlocal_nets.nn.backbones.image import LocalConvNet, image_backbone


def test_local_convnet_shapes():
    network = image_backbone("local_convnet", 5, in_chans=2)
    assert isinstance(network, LocalConvNet)
    assert network.layer3(network.layer2(network.layer1(torch.randn(3, 2, 48, 32)))).shape == (3, 32, 12, 8)
    assert network(torch.randn(3, 2, 24, 32)).shape == (3, 5)


def test_timm_model():
    assert image_backbone("resnet10t", 3, in_chans=1)(torch.randn(2, 1, 32, 32)).shape == (2, 3)


def test_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet5O'.*resnet50"):
        image_backbone("resnet5O", 2)
