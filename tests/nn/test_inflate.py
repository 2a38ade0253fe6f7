"""Inflation: a repeated image is seen as the image, by every network that has a 3-D form; the others are refused."""

import pytest
import torch
from torch import nn

import nonlocal_nets as nln
from nonlocal_nets.nn import inflate_weights

IMAGES = torch.zeros(2, 3, 32, 32)


def small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)]
    tail = [
        nn.Conv2d(6, 4, 1),
        nn.AvgPool2d(2, 2),
        nn.Dropout2d(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ]
    return nn.Sequential(*layers, *tail)


def repeated(images, frames):
    return images[:, :, None].expand(-1, -1, frames, -1, -1)


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet26d", "resnext50_32x4d"))]
)
def test_timms_networks(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    flat = timm.create_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    network = nln.inflate(flat, example=images)
    assert not any(isinstance(module, nn.Conv2d | nn.BatchNorm2d) for module in network.modules())
    with torch.no_grad():
        torch.testing.assert_close(network(repeated(images, 4)), flat(images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["regnetx_002", "vit_tiny_patch16_224"])
def test_timms_networks_without_a_3d_form(name):
    """One fuses norms and activations, the other flattens its patches."""
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="has no 3-D form"):
        nln.inflate(timm.create_model(name, num_classes=7), example=torch.zeros(1, 3, 224, 224))


def test_the_network_given_stays_as_it_is():
    flat = small().train()
    before = {name: value.clone() for name, value in flat.state_dict().items()}
    network = nln.inflate(flat, example=IMAGES, temporal={"0": 3})
    assert isinstance(flat[0], nn.Conv2d)
    assert all(torch.equal(value, before[name]) for name, value in flat.state_dict().items())
    assert all(module.training for module in (*flat.modules(), *network.modules()))


@pytest.mark.parametrize("mode", ["mean", "center"])
def test_kernels_that_span_frames(mode):
    flat = small().eval()
    network = nln.inflate(flat, example=IMAGES, temporal={"0": 5, "4": 3}, mode=mode)
    assert network[0].weight.shape == (6, 3, 5, 3, 3)
    torch.testing.assert_close(network[0].weight.sum(2), flat[0].weight)
    images = torch.randn(2, 3, 32, 32)
    features, video = flat[:7](images), network[:7](repeated(images, 9))
    assert video.shape == (*features.shape[:2], 9, *features.shape[2:])
    frames = slice(None) if mode == "center" else slice(3, 6)  # at the ends of a clip zeros are padded
    torch.testing.assert_close(video[:, :, frames], features[:, :, None].expand(-1, -1, 9, -1, -1)[:, :, frames])
    if mode == "mean":
        assert not torch.allclose(video[:, :, 0], features)
        assert (network[0].weight[:, :, 0] == network[0].weight[:, :, 4]).all()


def test_it_trains():
    network = nln.inflate(small(), example=IMAGES, temporal={"0": 3})
    network(torch.randn(2, 3, 4, 32, 32)).sum().backward()
    assert network[0].weight.grad.shape == (6, 3, 3, 3, 3)


def test_weights_by_name():
    like = {"a": torch.empty(2, 3, 4, 1, 1), "b": torch.empty(2)}
    state = {"a": torch.randn(2, 3, 1, 1), "b": torch.randn(2), "c": torch.randn(1)}
    made = inflate_weights(state, like)
    torch.testing.assert_close(made["a"], state["a"][:, :, None].expand(-1, -1, 4, -1, -1) / 4)
    assert torch.equal(made["b"], state["b"])
    assert torch.equal(made["c"], state["c"])


class SqueezeExcite(nn.Module):
    """Averages over its axes 2 and 3, which in a video are not height and width."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Own(nn.Module):
    """2-D weights of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (SqueezeExcite(), "SqueezeExcite has no 3-D form: its code expects two axes"),
        (nn.Sequential(Own()), "'0', a Own, has no 3-D form here, unlike .*Conv2d"),
        (nn.Sequential(nn.InstanceNorm2d(3)), "'0', a InstanceNorm2d, has no 3-D form"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3)), "AdaptiveAvgPool2d has a 3-D form here for output size 1 only, got 3"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding_mode="reflect")), "padding .* of reflect has no 3-D form here"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), "Sequential has no 3-D form"),
    ],
    ids=["its code", "its weights", "a norm", "a pool", "padding", "flatten"],
)
def test_what_has_no_3d_form_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        nln.inflate(network, example=IMAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "random"}, "mode must be one of mean, center, got 'random'"),
        ({"temporal": {"0": 2}}, "'0' must be odd, got 2"),
        ({"temporal": {"layer1.*": 3}}, r"'layer1\.\*' matches none of the convolutions, such as 0, 4"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nln.inflate(small(), example=IMAGES, **arguments)
