"""C2D and I3D against the numbers of the paper: parameters to the unit, multiply-adds, Table 1's shapes."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import nonlocal_nets as nln
from nonlocal_nets.nn.backbones.video import Bottleneck, VideoResNet

PARAMETERS = {  # with 400 classes; those of depth 50 are known to the unit, of 101 to 10,000
    ("c2d", 50, None): 24_327_632,
    ("c2d", 50, "paper-5"): 31_686_096,
    ("i3d", 50, None): 28_043_472,
    ("i3d", 50, "paper-5"): 35_401_936,
    ("c2d", 101, None): 43_320_000,
    ("c2d", 101, "paper-5"): 50_680_000,
    ("i3d", 101, None): 51_750_000,
    ("i3d", 101, "paper-5"): 59_110_000,
}


def shapes_only(*args, **kwargs):
    """A network whose weights take no memory and no time."""
    with torch.device("meta"):
        return nln.video_resnet(*args, **kwargs)


def see(network, frames, side=224):
    """Logits of a clip without memory or time: shapes only."""
    if next(network.parameters()).is_meta:
        return network(torch.empty(1, 3, frames, side, side, device="meta"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        return network(torch.empty(1, 3, frames, side, side))


@pytest.mark.parametrize(("arch", "depth", "non_local"), PARAMETERS)
def test_parameters_are_the_papers(arch, depth, non_local):
    network = shapes_only(arch, depth, non_local)
    count = sum(p.numel() for p in network.parameters())
    assert count == pytest.approx(PARAMETERS[arch, depth, non_local], abs=0 if depth == 50 else 5_000)


def multiply_adds(network, frames=32):
    with FlopCounterMode(display=False) as counter:
        see(network, frames)
    return counter.get_total_flops() / 2


@pytest.fixture(scope="module")
def plain():
    """Parameters and multiply-adds of the C2D R101."""
    network = nln.video_resnet("c2d", 101).eval()
    return sum(p.numel() for p in network.parameters()), multiply_adds(network)


@pytest.mark.slow
def test_multiply_adds_of_table_2e(plain):
    """The paper has 34.2 G, with the stride in the 1 x 1; in the 3 x 3, as released, it is 35.3 G, unpadded 35.1 G."""
    assert plain[1] == pytest.approx(35.3e9, rel=0.002)
    assert multiply_adds(nln.video_resnet("c2d", 101, pool_padding=False).eval()) == pytest.approx(35.1e9, rel=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "non_local", "parameters", "operations", "exact"),
    [("i3d_3x3x3", None, 1.5, 1.8, 1.764), ("i3d", None, 1.2, 1.5, 1.464), ("c2d", "paper-5", 1.2, 1.2, 1.227)],
)
def test_ratios_of_table_2e(plain, arch, non_local, parameters, operations, exact):
    """To its one digit; and the multiply-adds to three, as they are counted here."""
    network = nln.video_resnet(arch, 101, non_local).eval()
    ratio = multiply_adds(network) / plain[1]
    assert round(sum(p.numel() for p in network.parameters()) / plain[0], 1) == parameters
    assert round(ratio, 1) == operations
    assert ratio == pytest.approx(exact, abs=0.005)


@pytest.mark.slow
def test_five_blocks_cost_less_than_depth(plain):
    """Text of Sec. 5.1: about 70 % of the parameters and 80 % of the multiply-adds of R101."""
    network = nln.video_resnet("c2d", 50, "paper-5").eval()
    assert sum(p.numel() for p in network.parameters()) / plain[0] == pytest.approx(0.73, abs=0.005)
    assert multiply_adds(network) / plain[1] == pytest.approx(0.81, abs=0.005)


def shapes(network, frames, side=224):
    """Of what each stage gives, without batch and channels."""
    seen = {}
    for name in ("conv1", "maxpool", "layer1", "pool2", "layer2", "layer3", "layer4"):
        last = getattr(network, name)
        last = last[-1] if isinstance(last, nn.Sequential) else last
        last.register_forward_hook(lambda _m, _a, output, name=name: seen.update({name: tuple(output.shape[2:])}))
    assert see(network, frames, side).shape == (1, 400)
    return list(seen.values())


@pytest.mark.parametrize(
    ("stem", "frames", "halved"),
    [
        ("32x2", 32, 2),
        ("8x8", 8, 1),
        pytest.param("32x2", 128, 2, marks=pytest.mark.slow),
        pytest.param("8x8", 32, 1, marks=pytest.mark.slow),
    ],
)
def test_shapes_are_table_1s(stem, frames, halved):
    conv1 = frames // halved
    first, rest = conv1 // halved, frames // halved**3 if halved == 2 else frames // 2
    expected = [(conv1, 112, 112), (first, 56, 56), (first, 56, 56), (rest, 56, 56)]
    expected += [(rest, 28, 28), (rest, 14, 14), (rest, 7, 7)]
    assert shapes(shapes_only("i3d", stem=stem), frames) == expected
    unpadded = [(conv1, 112, 112), (first, 55, 55), (first, 55, 55), (rest, 55, 55), *expected[4:]]
    assert shapes(shapes_only("i3d", stem=stem, pool_padding=False), frames) == unpadded


def test_the_inflated_kernels_are_those_of_the_released_code():
    for depth, third in ((50, 6), (101, 23)):
        network = shapes_only("i3d", depth)
        spans = {
            stage: [i for i, unit in enumerate(getattr(network, f"layer{stage}")) if unit.conv1.kernel_size[0] == 3]
            for stage in (1, 2, 3, 4)
        }
        assert spans == {1: [0, 1, 2], 2: [0, 2], 3: list(range(0, third, 2)), 4: [1]}
        other = shapes_only("i3d_3x3x3", depth)
        for a, b in zip(network.modules(), other.modules(), strict=True):
            if isinstance(a, Bottleneck):
                assert b.conv2.kernel_size == (a.conv1.kernel_size[0], 3, 3)
                assert b.conv1.kernel_size == (1, 1, 1)
        assert network.conv1.kernel_size == other.conv1.kernel_size == (5, 7, 7)
    assert shapes_only("c2d").conv1.kernel_size == (1, 7, 7)


@pytest.mark.parametrize(
    ("depth", "non_local", "places"),
    [
        (50, "paper-1", ["layer3.4"]),
        (50, "paper-5", ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]),
        (101, "paper-5", ["layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"]),
        (50, "paper-10", [f"layer2.{i}" for i in range(4)] + [f"layer3.{i}" for i in range(6)]),
        (50, {"layer1": 1}, ["layer1.1"]),
    ],
)
def test_places_are_the_papers(depth, non_local, places):
    names = list(nln.blocks(shapes_only("c2d", depth, non_local, stem="8x8")))
    assert names == [f"{place}.non_local" for place in places]


@pytest.mark.parametrize("arch", ["c2d", "i3d"])
def test_a_repeated_image_is_seen_as_by_the_2d_network(arch):
    """timm's ResNet-50 with its weights in 3-D: the features of the middle frames are the image's, to 1e-4."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    flat = timm.create_model("resnet50", num_classes=400).eval()
    _wake_norms(flat)
    network = VideoResNet(arch, stem="8x8").eval()
    network.load_state_dict(nln.nn.inflate_weights(flat.state_dict(), network.state_dict(), "center"))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = flat.forward_features(image)
        got = network.features(image[:, :, None].expand(-1, -1, 8, -1, -1))
        assert expected.std() > 0.01
        torch.testing.assert_close(
            got, expected[:, :, None].expand_as(got), rtol=1e-4, atol=1e-4 * expected.max().item()
        )
        torch.testing.assert_close(
            network(image[:, :, None].expand(-1, -1, 8, -1, -1)), flat(image), rtol=1e-3, atol=1e-4
        )


def _wake_norms(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)


@pytest.mark.parametrize("non_local", [pytest.param(None, marks=pytest.mark.slow), "paper-1"])
def test_checkpointing_changes_nothing(non_local):
    """Outputs, gradients and running statistics, which the second computation must not count again."""
    torch.manual_seed(0)
    plain = nln.video_resnet("i3d", non_local=non_local, stem="8x8", num_classes=5, dropout=0.0).double()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm3d | nn.BatchNorm1d):
            nn.init.constant_(module.weight, 0.5)
    again = copy.deepcopy(plain)
    again.checkpointing = True
    x = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    results = []
    for network in (plain, again):
        y = network(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in network.parameters()), *network.state_dict().values()])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "r3d"}, "arch must be one of c2d, i3d, i3d_3x3x3, got 'r3d'"),
        ({"depth": 34}, "depth must be one of 50, 101, got 34"),
        ({"stem": "16x4"}, "stem must be one of 32x2, 8x8, got '16x4'"),
        ({"pairwise": "gaussian"}, "non_local is None.*pairwise"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nln.video_resnet(**arguments)


def test_its_layers_are_called_in_the_order_of_their_names():
    """So that hooks and feature extractors see the stages."""
    network, seen = VideoResNet(num_classes=2).eval(), []
    for name, child in network.named_children():
        child.register_forward_hook(lambda *_, name=name: seen.append(name))
    network(torch.zeros(1, 3, 8, 32, 32))
    names = [name for name, _ in network.named_children()]
    assert names == [
        "conv1",
        "bn1",
        "act",
        "maxpool",
        "layer1",
        "pool2",
        *(f"layer{k}" for k in (2, 3, 4)),
        "dropout",
        "fc",
    ]
    assert seen == names


def test_checkpointing_allows_a_second_backward_pass():
    network = VideoResNet("c2d", num_classes=2).eval()
    network.checkpointing = True
    loss = network(torch.randn(1, 3, 8, 32, 32)).sum()
    loss.backward(retain_graph=True)
    first = network.conv1.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(network.conv1.weight.grad, 2 * first)
