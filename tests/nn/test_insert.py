"""Blocks in models of other libraries; oracles: the model before the insertion, and torch's FLOP counter."""

import copy
import io
import pickle
import re

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nonlocal_nets.nn import PAIRWISE, NonLocalBlock, Pairwise, blocks, insert, insertion_points, remove
from nonlocal_nets.nn.insert import check_attached

IMAGE = (2, 3, 64, 64)
MODELS = {  # how it is made, an input, where blocks go, and the modules after which they then stand
    "resnet50": (
        lambda: timm.create_model("resnet50", num_classes=7),
        IMAGE,
        {"layer2": 2, "layer3": 3},
        ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"],
    ),
    "regnety_002": (lambda: timm.create_model("regnety_002", num_classes=7), IMAGE, {"s3": 2}, ["s3.b2", "s3.b4"]),
    "convnext_atto": (
        lambda: timm.create_model("convnext_atto", num_classes=7),
        IMAGE,
        {"stages.2": 3},
        ["stages.2.blocks.1", "stages.2.blocks.3", "stages.2.blocks.5"],
    ),
    "efficientnet_b0": (
        lambda: timm.create_model("efficientnet_b0", num_classes=7),
        IMAGE,
        {"blocks.3": 1, "blocks.4": 3},
        ["blocks.3.1", "blocks.4.0", "blocks.4.1", "blocks.4.2"],
    ),
    "vgg11": (  # with a narrower head than the 120 million parameters of the original, where no block goes
        lambda: timm.create_model("vgg11", num_classes=7, mlp_ratio=1 / 64),
        IMAGE,
        ["features.12", "features.7"],
        ["features.7", "features.12"],
    ),
    "r3d_18": (
        lambda: torchvision.models.video.r3d_18(num_classes=7),
        (2, 3, 4, 32, 32),
        ["layer2", "layer3.0"],
        ["layer2.1", "layer3.0"],
    ),
    "conv1d": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.ReLU(inplace=True)
        ),
        (2, 3, 23),
        ["0", "3"],
        ["0", "3"],
    ),
}


SLOW = ("resnet50", "regnety_002", "efficientnet_b0")  # of two dimensions, like convnext_atto and vgg11


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]
)
def setup(request):
    """A model in eval mode, an input, where blocks go, where they then stand, and the outputs before."""
    make, size, at, hosts = MODELS[request.param]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(size)
    with torch.no_grad():
        return model, x, at, hosts, model(x)


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=3).eval()


def snapshot(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def wake(model):
    """Blocks that are no longer the identity."""
    for block in blocks(model).values():
        nn.init.ones_(block.norm.weight)
    return model


# --- models of other libraries ----------------------------------------------------------------------------------------


def test_outputs_stay_bit_identical_and_names_are_kept(setup):
    model, x, at, hosts, expected = setup
    model, before = copy.deepcopy(model), snapshot(model)
    names = insert(model, at, example=x)
    assert list(names) == [f"{host}.non_local" for host in hosts] == list(blocks(model))
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    after = model.state_dict()
    assert same(before, {name: t for name, t in after.items() if ".non_local." not in name})
    assert not model.load_state_dict(before, strict=False).unexpected_keys
    with torch.no_grad():
        assert not torch.equal(wake(model)(x), expected)


def test_blocks_get_gradients(setup):
    """Also where the model itself is frozen, and beside activations that work in place."""
    original, x, at, _, _ = setup
    for frozen in (False, True):
        model = copy.deepcopy(original).requires_grad_(not frozen)
        insert(model, at, example=x, norm="layer", pairwise="dot_product")
        wake(model)(x).square().sum().backward()
        for name, block in blocks(model).items():
            for parameter, p in block.named_parameters():
                assert p.grad.abs().max() > 0, f"{name}.{parameter}"
        assert frozen == all(p.grad is None for name, p in model.named_parameters() if "non_local" not in name)


def test_remove_restores_the_model(setup):
    model, x, at, _, expected = setup
    model, before, hooks_before = copy.deepcopy(model), snapshot(model), hooks(model)
    insert(model, at, example=x)
    wake(model)
    assert remove(model) is model
    assert blocks(model) == {}
    assert same(model.state_dict(), before)
    assert hooks(model) == hooks_before
    model.load_state_dict(before, strict=True)
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_report_against_an_independent_count(setup):
    """Parameters: what the model has more. Multiply-adds: half of what torch's counter finds more, per sample."""
    model, x, at, _, _ = setup
    model = copy.deepcopy(model)
    parameters, flops = sum(p.numel() for p in model.parameters()), count(model, x)
    report = insert(model, at, example=x)
    added = sum(p.numel() for p in model.parameters()) - parameters
    assert sum(row.parameters for row in report.rows) == added
    assert report.model_parameters == parameters
    extra = (count(model, x) - flops) / 2 / len(x)
    assert sum(row.multiply_adds for row in report.rows) == pytest.approx(extra, rel=1e-9)
    for row, name in zip(report.rows, report, strict=True):
        block = blocks(model)[name]
        assert row.name == name
        assert row.shape[0] == block.channels
        assert row.parameters == sum(p.numel() for p in block.parameters())
        positions = torch.Size(row.shape[1:]).numel()
        assert row.map_entries == positions**2 == block.weights(torch.randn(1, *row.shape)).numel()


def count(model, x):
    """Torch's count, with gradients: without them, the padding of the fused kernel is counted too."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def test_copies_and_pickles(setup):
    """A copy has blocks of its own; taking them out leaves the original's in."""
    model, x, at, hosts, expected = setup
    model = copy.deepcopy(model)
    insert(model, at, example=x)
    with torch.no_grad():
        woken = wake(model)(x)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
            assert list(blocks(other)) == list(blocks(model))
            assert torch.equal(other(x), woken)
            assert torch.equal(remove(other)(x), expected)
            assert list(blocks(model)) == [f"{host}.non_local" for host in hosts]
            assert torch.equal(model(x), woken)


def test_modes_and_statistics_are_untouched(setup):
    """Modules in train mode beside frozen ones in eval mode; each block takes the mode of its host."""
    model, x, at, hosts, _ = setup
    model = copy.deepcopy(model).train()
    for module in list(model.modules())[::3]:
        module.training = False
    modes, before = {name: module.training for name, module in model.named_modules()}, snapshot(model)
    random = torch.get_rng_state()
    insert(model, at, example=x)
    assert {name: m.training for name, m in model.named_modules() if "non_local" not in name} == modes
    assert same(before, {name: t for name, t in model.state_dict().items() if ".non_local." not in name})
    assert {name: block.training for name, block in blocks(model).items()} == {
        f"{p}.non_local": modes[p] for p in hosts
    }
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(random, torch.get_rng_state())  # blocks are initialised at random, from the global seed


# --- shapes only ------------------------------------------------------------------------------------------------------


class Clip(nn.Module):
    """A convolution of a clip that keeps what it computed; and what forward passes there were, on which device."""

    def __init__(self, look):
        super().__init__()
        self.conv, self.kept, self.look = nn.Conv3d(3, 4, 1), None, look

    def forward(self, x):
        PASSES.append(x.device.type)
        y = self.conv(x)
        if self.look is not None:
            y = self.look(y)
        self.kept = y
        return y.mean((2, 3, 4))


PASSES = []
LOOKS = {
    "a branch": lambda y: y if y.sum() > 0 else -y,
    "numpy": lambda y: torch.from_numpy(y.numpy()),
    "a number of positions": lambda y: y[:, :, :, :, : 1 + len(y.isnan().nonzero())],
    "a tensor of its own": lambda y: y * ONES,
}
ONES = torch.ones(4, 1, 1, 1)


def test_no_values_are_computed_and_none_are_kept():
    PASSES.clear()
    model = Clip(None)
    report = insert(model, "conv", example=torch.zeros(2, 3, 128, 20, 20), window=(4, None, None))
    assert set(PASSES) == {"meta"}
    assert model.kept is None
    assert report.rows[0].shape == (4, 128, 20, 20)
    assert {t.device.type for t in model.state_dict().values()} == {"cpu"}
    assert model(torch.zeros(1, 3, 4, 2, 2)).device.type == "cpu"


@pytest.mark.parametrize("look", LOOKS)
def test_a_model_that_looks_at_values_gets_them(look):
    PASSES.clear()
    model = Clip(LOOKS[look])
    assert list(insert(model, "conv", example=torch.zeros(2, 3, 8, 4, 4))) == ["conv.non_local"]
    assert "cpu" in PASSES
    assert {t.device.type for t in model.state_dict().values()} == {"cpu"}
    assert hooks(model) == 1, "that of the block"


def test_other_dtypes_than_the_models_are_an_error_as_without_blocks():
    """On the meta device a linear layer takes any."""
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU()).double()
    with pytest.raises(RuntimeError, match="dtype"):
        insert(model, "0", example=torch.zeros(2, 3, 5))
    assert hooks(model) == 0


def test_a_model_without_parameters_or_on_the_meta_device():
    model = nn.Sequential(nn.ReLU())
    insert(model, "0", example=torch.zeros(2, 4, 5))
    assert {t.device.type for t in model.state_dict().values()} == {"cpu"}
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv1d(3, 4, 1))
        insert(model, "0", example=torch.zeros(2, 3, 5))
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}


# --- insertion points -------------------------------------------------------------------------------------------------


R101 = [f"layer2.{i}" for i in (1, 3)] + [f"layer3.{i}" for i in (6, 13, 20)]
POINTS = [
    ("resnet50", "paper-1", ["layer3.4"]),
    ("resnet50", "paper-5", ["layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"]),
    ("resnet50", "paper-10", [f"layer2.{i}" for i in range(4)] + [f"layer3.{i}" for i in range(6)]),
    ("resnet101", "paper-1", ["layer3.21"]),
    ("resnet101", "paper-5", R101),
    ("resnet18", "paper-1", ["layer3.0"]),
    ("resnet18", "paper-5", ["layer2.0", "layer2.1", "layer3.0", "layer3.1"]),
    ("resnet18", "paper-10", ["layer2.0", "layer2.1", "layer3.0", "layer3.1"]),
]


@pytest.fixture(scope="module")
def resnets():
    """The depths that matter, with hardly any channels: insertion points do not depend on the width."""
    depths = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
    block = timm.models.resnet.BasicBlock
    return {
        name: timm.models.resnet.ResNet(block, layers, channels=(2, 4, 6, 8), num_classes=3).eval()
        for name, layers in depths.items()
    }


@pytest.mark.parametrize(("model", "preset", "points"), POINTS)
def test_presets_stand_where_the_paper_has_them(resnets, model, preset, points):
    """Table 2 and Sec. 4.1: res3 is layer2, res4 is layer3."""
    model = copy.deepcopy(resnets[model])
    assert list(insert(model, preset, example=torch.randn(1, 3, 64, 64))) == [f"{p}.non_local" for p in points]


@pytest.mark.parametrize(
    ("at", "points"),
    [
        ("layer2", ["layer2.3"]),
        ("layer1.0", ["layer1.0"]),
        (["layer3.1", "layer1"], ["layer1.2", "layer3.1"]),
        ({"layer3": 1}, ["layer3.4"]),
        ({"layer3": 2}, ["layer3.2", "layer3.5"]),
        ({"layer3": 6}, [f"layer3.{i}" for i in range(6)]),
        ({"layer3": 1, "layer1": 1}, ["layer1.1", "layer3.4"]),
        ({"layer3": 0, "layer1": 1}, ["layer1.1"]),
        ("layer2.1.conv1", ["layer2.1.conv1"]),
    ],
)
def test_insertion_at(resnets, at, points):
    model = copy.deepcopy(resnets["resnet50"])
    assert list(insert(model, at, example=torch.randn(1, 3, 64, 64))) == [f"{p}.non_local" for p in points]


def test_a_block_after_the_model_itself():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x)

    model, x = Backbone(), torch.randn(2, 3, 5, 7)
    expected = model(x)
    assert list(insert(model, "", example=x)) == ["non_local"]
    assert torch.equal(model(x), expected)
    assert not torch.equal(wake(model)(x), expected)
    assert torch.equal(remove(model)(x), expected)


def test_arguments_reach_the_blocks(resnet18):
    model, x = copy.deepcopy(resnet18), torch.randn(1, 3, 64, 64)
    kwargs = {"inner_channels": 3, "pairwise": "dot_product", "pool": 2, "pool_position": "embedding", "norm": "layer"}
    report = insert(model, "layer2", example=x, window=(4, None), **kwargs)
    (block,) = blocks(model).values()
    assert (block.inner_channels, block.pool, block.pool_position, block.window) == (3, 2, "embedding", (4, None))
    assert isinstance(block.norm, nn.LayerNorm)
    assert type(block.pairwise) is PAIRWISE["dot_product"]
    assert report.rows[0].map_entries == 8 * 8 * (2 * 4)  # 64 positions; the keys of a 4 x 8 window, pooled


def test_device_and_dtype_are_those_of_the_host(resnet18):
    model = copy.deepcopy(resnet18).double()
    insert(model, "layer3", example=torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("pool_position", ["input", "embedding"])
@pytest.mark.parametrize("pool", [None, 2])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_multiply_adds_of_every_function(pairwise, pool, pool_position):
    """Against torch's counter, which misses the adding of a_i + b_j and counts per batch what folds theta into w_f."""
    block, x = NonLocalBlock(32, pairwise=pairwise, pool=pool, pool_position=pool_position), torch.randn(64, 32, 6, 4)
    assert block.multiply_adds((6, 4)) == pytest.approx(count(block, x) / 2 / 64, rel=0.03)


def test_the_report_tells_what_the_blocks_add(resnet18):
    model, x = copy.deepcopy(resnet18), torch.randn(1, 3, 64, 64)
    report = insert(model, {"layer2": 2}, example=x)
    text, row = str(report), report.rows[0]
    # C = 128, d = 64: theta, phi, g and out with biases, the norm's weight and bias; 8 x 8 positions
    assert row.parameters == 3 * (128 * 64 + 64) + 64 * 128 + 128 + 2 * 128
    assert row.multiply_adds == 64 * 4 * 128 * 64 + 2 * 64 * 64 * 64
    assert text.startswith("2 non-local blocks")
    assert f"{2 * row.parameters:,} parameters" in text
    assert f"+{2 * row.parameters / sum(p.numel() for p in resnet18.parameters()):.1%}" in text
    assert f"{2 * row.multiply_adds:,} multiply-adds" in text
    for host in ("layer2.0", "layer2.1"):
        (line,) = [line for line in text.splitlines() if line.split()[0] == host]
        assert "(128, 8, 8)" in line
        assert f"{row.parameters:,}" in line
        assert f"{row.multiply_adds:,}" in line
    assert f"{64 * 64 * 4 / 2**20:.1f} MiB" in text


# --- errors -----------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A module that runs twice, one that never runs, one that returns a tuple, and one that returns indices."""

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Indices(nn.Module):
        def forward(self, x):
            return x.argmax(1, keepdim=True)

    def __init__(self):
        super().__init__()
        self.conv, self.twice, self.never = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.pair, self.indices = self.Pair(), self.Indices()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.body(self.twice(self.twice(self.conv(x))))
        self.indices(x)
        return self.fc(self.pool(self.pair(x)[0]).flatten(1))


ODD = "; insertion points: body, body.0, body.1"


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([], "nothing to insert at []" + ODD),
        ({}, "nothing to insert at {}" + ODD),
        ({"body": 0}, "nothing to insert at {'body': 0}" + ODD),
        ("layer9", "no module 'layer9' in Odd" + ODD),
        ({"layer9": 1}, "no stage 'layer9' in Odd" + ODD),
        (["conv", "layer9"], "no module 'layer9' in Odd" + ODD),
        ("paper-5", "no stage 'layer2' in Odd" + ODD),
        ({"body": 2}, "2 blocks do not fit into 'body', which has 1 residual block" + ODD),
        ({"body": -1}, "-1 blocks do not fit into 'body', which has 1 residual block" + ODD),
        ({"": 2}, "2 blocks do not fit into '', which has 1 residual block" + ODD),
        ({"": 1}, "'' is not an insertion point: it returns (2, 3), not a floating-point (B, C, *S) tensor" + ODD),
        (
            "fc",
            "'fc' is not an insertion point: it returns (2, 3), not a floating-point (B, C, *S) tensor" + ODD,
        ),
        (
            "pair",
            "'pair' is not an insertion point: it returns tuple, not a floating-point (B, C, *S) tensor" + ODD,
        ),
        (
            "indices",
            "'indices' is not an insertion point: it returns (2, 1, 5, 5) of torch.int64, not a floating-point "
            "(B, C, *S) tensor" + ODD,
        ),
        ("twice", "'twice' is not an insertion point: it runs 2 times in a forward pass" + ODD),
        ("never", "'never' is not an insertion point: it runs 0 times in a forward pass" + ODD),
        (
            ["conv", "fc"],
            "'fc' is not an insertion point: it returns (2, 3), not a floating-point (B, C, *S) tensor" + ODD,
        ),
        (["conv", "conv"], "insertion points must differ, got twice: conv"),
        (["body", "body.1"], "insertion points must differ, got twice: body.1"),
    ],
)
def test_a_refusal_lists_the_insertion_points_and_leaves_the_model_unchanged(at, message):
    model, x = Odd().train(), torch.randn(2, 3, 7, 7)
    before, expected, modules = snapshot(model), model(x), [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        insert(model, at, example=x)
    assert same(model.state_dict(), before)
    assert hooks(model) == 0
    assert [name for name, _ in model.named_modules()] == modules
    assert all(module.training for module in model.modules())
    assert torch.equal(model(x), expected)


def test_insertion_points_are_stages_residual_blocks_and_steps_of_a_sequential(resnet18):
    expected = ["layer1", "layer1.0", "layer1.1", "layer2", "layer2.0", "layer2.0.downsample"]
    expected += ["layer2.0.downsample.0", "layer2.0.downsample.1", "layer2.1"]
    found = insertion_points(resnet18, torch.zeros(1, 3, 64, 64))
    assert [name for name in found if name < "layer3"] == expected
    assert len(found) == 3 + 3 * 6
    assert insertion_points(Odd(), torch.zeros(2, 3, 7, 7)) == ["body", "body.0", "body.1"]
    model = copy.deepcopy(resnet18)
    insert(model, ["layer1.0", "layer3"], example=torch.zeros(1, 3, 64, 64))
    assert insertion_points(model, torch.zeros(1, 3, 64, 64)) == found, "blocks and their layers are not among them"


@pytest.mark.slow
def test_every_insertion_point_takes_a_block(resnet18):
    x = torch.zeros(1, 3, 64, 64)
    for name in insertion_points(resnet18, x):
        (block,) = insert(copy.deepcopy(resnet18), name, example=x)
        assert block.startswith(name)


@pytest.fixture(scope="module")
def densenet121():
    """With the layers and names of DenseNet-121, but few channels."""
    return torchvision.models.DenseNet(2, (6, 12, 24, 16), 4, bn_size=1, num_classes=3).eval()


LONG = ["layer3." + 30 * "conv"] * 2 + ["x" * 400]
REFUSED = [[], {}, "layer9", {"layer9": 1}, {"layer3": 99}, {"features.denseblock3": 99}, "features.denseblock1", "fc"]
REFUSED += ["paper-5", "feature.transition1", LONG, {LONG[0]: 1}, "body.0", ["body.1", "body.1"], "classifier"]


@pytest.mark.parametrize("name", [pytest.param("densenet121", marks=pytest.mark.slow), "resnet50", "small"])
def test_a_refusal_fits_into_a_line(name, resnets, densenet121):
    model = {"densenet121": densenet121, "resnet50": resnets["resnet50"], "small": Odd()}[name]
    model, x, messages = copy.deepcopy(model), torch.randn(1, 3, 64, 64), []
    points = insertion_points(model, x)
    for at in REFUSED:
        try:
            insert(model, at, example=x)
        except ValueError as error:
            messages.append(str(error))
        remove(model)
    assert len(messages) >= 10
    assert max(map(len, messages)) <= 300
    assert not any("\n" in message for message in messages)
    how = f", ... (all {len(points)}: print(nln.insertion_points(model, example)))"
    for message in messages:
        if "insertion points: " in message:
            shown = message.rpartition("insertion points: ")[2].removesuffix(how).split(", ")
            assert shown == [point for point in points if point in shown], "real ones, in the order of the model"
            assert shown == points or message.endswith(how)


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        ("feature.transition1", {"features.transition1", "features.transition2", "features.transition3", "features"}),
        ("features.denseblock1", {f"features.denseblock1.denselayer{k}" for k in (1, 2, 3)}),
        ("paper-5", {"features", "features.transition1"}),
    ],
)
def test_a_refusal_shows_the_nearest_insertion_points(densenet121, at, shown):
    with pytest.raises(ValueError, match="insertion points: ") as refusal:
        insert(copy.deepcopy(densenet121), at, example=torch.randn(1, 3, 64, 64))
    assert shown <= set(re.split(r"[:,] ", str(refusal.value)))


@pytest.mark.parametrize("at", ["global_pool", "fc"])
def test_heads_of_timm_models_are_no_insertion_points(resnet18, at):
    model = copy.deepcopy(resnet18)
    with pytest.raises(ValueError, match=rf"'{at}\S*' is not .*\(1, \d+\), not .*insertion points: layer1, .*layer4"):
        insert(model, at, example=torch.randn(1, 3, 64, 64))
    assert blocks(model) == {}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pool": 16}, r"pool \(16, 16\) is larger than the input's size \(4, 4\)"),
        ({"window": 3}, r"window \(3, 3\) does not divide .* \(8, 8\)"),
        ({"pairwise": "cosine"}, "got 'cosine'"),
        ({"pool": (1, 2, 2)}, "3 entries, the input has 2 axes"),
    ],
)
def test_blocks_that_do_not_fit_leave_the_model_unchanged(resnet18, kwargs, message):
    """The first one fits, the second does not: neither is inserted."""
    model = copy.deepcopy(resnet18)
    at = ["layer1", "layer3"] if "larger" in message else ["layer2"]
    with pytest.raises(ValueError, match=message):
        insert(model, at, example=torch.randn(1, 3, 64, 64), **kwargs)
    assert blocks(model) == {}
    assert same(model.state_dict(), resnet18.state_dict())
    assert hooks(model) == 0


def test_a_failing_forward_pass_leaves_no_traces(resnet18):
    model = copy.deepcopy(resnet18).train()
    with pytest.raises(RuntimeError):
        insert(model, "layer2", example=torch.randn(1, 4, 64, 64))
    assert hooks(model) == 0
    assert all(module.training for module in model.modules())


def test_two_insertions(resnet18):
    """More blocks may follow; a second one at the same point is an error; `remove` removes all."""
    model, x = copy.deepcopy(resnet18), torch.randn(1, 3, 64, 64)
    insert(model, "layer2", example=x)
    wake(model)
    expected = model(x)
    with pytest.raises(ValueError, match=r"'layer2\.1' has a child 'non_local' already \(remove\(model\)"):
        insert(model, ["layer1.0", "layer2.1"], example=x)
    assert list(blocks(model)) == ["layer2.1.non_local"]
    insert(model, {"layer3": 2}, example=x)
    assert list(blocks(model)) == ["layer2.1.non_local", "layer3.0.non_local", "layer3.1.non_local"]
    assert torch.equal(model(x), expected)
    assert same(remove(model).state_dict(), resnet18.state_dict())


class Staged(nn.Module):
    """A stage that is not a Sequential, with two units."""

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))

        def forward(self, x):
            return self.two(self.one(x))

    def __init__(self):
        super().__init__()
        self.stage = self.Stage()

    def forward(self, x):
        return self.stage(x).mean((2, 3))


def test_a_block_is_not_a_unit_of_its_stage():
    """After a block behind the whole stage, the stage still has the units that it had."""
    model, x = Staged(), torch.randn(2, 3, 5, 5)
    insert(model, "stage", example=x)
    with pytest.raises(ValueError, match="3 blocks do not fit into 'stage', which has 2 residual blocks"):
        insert(model, {"stage": 3}, example=x)
    assert list(insert(model, {"stage": 1}, example=x)) == ["stage.one.1.non_local"]
    remove(model)
    assert list(insert(model, {"stage": 2}, example=x)) == ["stage.one.1.non_local", "stage.two.1.non_local"]


class Own(nn.Module):
    """A model that was built with a block, under the name that `insert` uses too."""

    def __init__(self):
        super().__init__()
        self.conv, self.non_local = nn.Conv2d(3, 4, 3), NonLocalBlock(4)

    def forward(self, x):
        return self.non_local(self.conv(x))


def test_remove_leaves_the_blocks_that_it_did_not_insert():
    model, x = wake(Own()).eval(), torch.randn(2, 3, 5, 5)
    expected, before = model(x), snapshot(model)
    assert list(blocks(model)) == ["non_local"]
    insert(model, "conv", example=x)
    assert list(blocks(model)) == ["conv.non_local", "non_local"]
    remove(model)
    assert same(model.state_dict(), before)
    assert torch.equal(model(x), expected)


def test_remove_of_a_model_without_blocks_changes_nothing(resnet18):
    model = copy.deepcopy(resnet18)
    model.layer1.register_forward_hook(lambda *_: None)
    assert remove(model) is model
    assert hooks(model) == 1
    assert same(model.state_dict(), resnet18.state_dict())


def test_remove_keeps_the_hooks_of_others(resnet18):
    model, x, calls = copy.deepcopy(resnet18), torch.randn(1, 3, 64, 64), []
    model.layer2[1].register_forward_hook(lambda *_: calls.append(1))
    insert(model, "layer2", example=x)
    remove(model)
    calls.clear()
    model(x)
    assert calls == [1]


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (lambda: timm.create_model("regnety_002", num_classes=3), "s3"),
        (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=3), "features.denseblock1"),
    ],
    ids=["regnety_002", "densenet"],
)
def test_a_module_that_loops_over_its_children(make, at):
    """A block must not become one of the layers of the loop: it runs once, after the loop, or insert raises."""
    torch.manual_seed(0)
    model, x, calls = make().eval(), torch.randn(1, 3, 64, 64), []
    expected, before = model(x), snapshot(model)
    try:
        insert(model, at, example=x)
    except ValueError:
        assert same(model.state_dict(), before)
        return
    (block,) = blocks(model).values()
    block.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(model(x), expected)
    assert calls == [1]
    assert torch.equal(remove(model)(x), expected)
    assert same(model.state_dict(), before)


def test_a_model_learns_with_its_blocks(resnet18):
    """One optimiser step in train mode moves every parameter of the blocks that has a gradient by theory."""
    model, x = copy.deepcopy(resnet18).train(), torch.randn(4, 3, 64, 64)
    insert(model, "paper-1", example=x, pairwise="dot_product")
    wake(model)
    before = snapshot(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
    optimiser.step()
    ours = [name for name, p in model.named_parameters() if "non_local" in name and not name.endswith("out.bias")]
    assert len(ours) == 9
    assert all(not torch.equal(before[name], model.state_dict()[name]) for name in ours)
    assert model.layer3[0].non_local.norm.num_batches_tracked == 1


def test_pairwise_of_ones_own_and_pickle(resnet18):
    model, x = copy.deepcopy(resnet18), torch.randn(1, 3, 64, 64)
    insert(model, "layer3", example=x, pairwise=Mean)
    expected = wake(model)(x)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


class Mean(Pairwise):
    """f = 1: every position sees the mean of all."""

    def weights(self, query, key, mask):
        return query.new_full((*query.shape[:2], key.shape[1]), 1 / key.shape[1])


@pytest.mark.slow
def test_a_network_with_five_blocks_compiles():
    """The hook that runs a block is a function of its module, so that one graph holds the network, whole.

    Each pairwise function has a test of its own where the block is compiled alone.
    """
    model = nn.Sequential(nn.Conv1d(2, 4, 3), *(nn.Sequential(nn.Conv1d(4, 4, 3), nn.ReLU()) for _ in range(4)))
    insert(model, ["0", "1", "2", "3", "4"], example=torch.zeros(1, 2, 24))
    wake(model)
    x = torch.randn(2, 2, 24)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


# --- masks ------------------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Two convolutions; the second is called with a mask if the model is, the first never is."""

    class Conv(nn.Conv1d):
        def forward(self, x, mask=None):
            return super().forward(x)

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 4, 1), self.Conv(4, 4, 1)

    def forward(self, x, mask=None):
        return self.two(self.one(x), mask=mask)


def test_a_host_that_is_called_with_a_mask_passes_it_on():
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(2, 3, 9)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    before, expected, hooks_before = snapshot(model), model(x), hooks(model)
    insert(model, ["one", "two"], example=x)
    wake(model)
    with torch.no_grad():
        between = model.one(x)  # its block has no mask: nobody gives it one
        block = model.two.non_local
        local = nn.Conv1d.forward(model.two, between)
        assert torch.equal(model(x, mask=mask), block(local, mask=mask))
        assert torch.equal(model(x), block(local))
        alone = block(local[1:, :, :5])
        assert torch.allclose(model(x, mask=mask)[1:, :, :5], alone, atol=1e-6)
        assert not torch.allclose(model(x)[1:, :, :5], alone, atol=1e-3), "the mask matters"
    remove(model)
    assert same(model.state_dict(), before)
    assert hooks(model) == hooks_before
    assert not any(module._forward_hooks_with_kwargs for module in model.modules())
    assert torch.equal(model(x, mask=mask), expected)


# --- stages, axes, wrappers, examples ---------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two branches side by side, each with layers of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))

    def forward(self, x):
        return self.one(x) + self.two(x)


class Shortcut(nn.Module):
    """A residual block, of which one child has layers of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.downsample = nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x):
        return self.conv(x) + self.downsample(x)


@pytest.mark.parametrize(
    ("stage", "last"),
    [
        (Branches, "0"),
        (Shortcut, "0"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), "0.2"),
    ],
)
def test_what_is_no_row_of_residual_blocks_is_a_single_one(stage, last):
    model = nn.Sequential(stage(), nn.Flatten(), nn.Linear(75, 2), nn.LogSoftmax(1))
    x = torch.randn(2, 3, 5, 5)
    assert list(insert(model, {"0": 1}, example=x)) == [f"{last}.non_local"]
    remove(model)
    line = "2 blocks do not fit into '0', which has 1 residual block; insertion points: 0"
    with pytest.raises(ValueError, match=line):
        insert(model, {"0": 2}, example=x)
    with pytest.raises(ValueError, match="2 blocks do not fit into '', which has 1 residual block"):
        insert(model, {"": 2}, example=x)


class Parts(nn.Module):
    """Networks under names."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            part(x)


def test_presets_find_their_stages_in_a_part_of_a_model(resnet18):
    x = torch.randn(1, 3, 64, 64)
    inner = Parts(body=copy.deepcopy(resnet18))
    assert list(insert(Parts(backbone=inner), "paper-1", example=x)) == ["backbone.body.layer3.0.non_local"]
    remove(inner)
    line = "2 stages for 'paper-1', left.body.layer3, right.layer3; name those of one, as in {'left.body.layer3': 1}; "
    with pytest.raises(ValueError, match=re.escape(line)):
        insert(Parts(left=inner, right=copy.deepcopy(resnet18)), "paper-1", example=x)
    convnext = timm.create_model("convnext_atto", num_classes=2)
    with pytest.raises(ValueError, match=r"no stage 'layer2' in ConvNeXt, but stages, stages\.0, .*insertion points: "):
        insert(convnext, "paper-5", example=x)


class Tokens(nn.Module):
    """Channels last: (B, 2, 3, C) or, as tokens, (B, 7, C)."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.body = nn.Sequential(nn.Linear(channels, channels), nn.GELU())

    def forward(self, x):
        return self.body(self.norm(x))


@pytest.mark.parametrize(("size", "prefix"), [((2, 3), 0), ((7,), 0), ((7,), 1), ((7,), 2)])
def test_channels_last_and_tokens_before_the_positions(size, prefix):
    model, x = Tokens(5).eval(), torch.randn(4, *size, 5)
    shape = (4, *size, 5)
    advice = "give channels_axis=-1" + (
        ", and prefix_tokens=1 where a class token comes first" if len(size) == 1 else ""
    )
    line = f"the channels of 'body.1' come last, {shape}: {advice}"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        insert(model, "body", example=x)
    expected = model(x)
    (row,) = insert(model, "body", example=x, channels_axis=-1, prefix_tokens=prefix).rows
    assert row.shape == (5, size[0] - prefix, *size[1:])
    assert torch.equal(model(x), expected)
    got = wake(model)(x)
    z = blocks(model)["body.1.non_local"](expected.movedim(-1, 1)[:, :, prefix:]).movedim(1, -1)
    torch.testing.assert_close(got, torch.cat([expected[:, :prefix], z], 1))
    assert not torch.allclose(got[:, prefix:], expected[:, prefix:])
    assert torch.equal(copy.deepcopy(model)(x), got)
    assert torch.equal(remove(model)(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels_axis": 0}, "channels_axis must be an axis of 'body.1', (4, 7, 5), after the first; got 0"),
        ({"channels_axis": 3}, "channels_axis must be an axis of 'body.1', (4, 7, 5), after the first; got 3"),
        (
            {"channels_axis": -1, "prefix_tokens": 7},
            "prefix_tokens must be fewer than the tokens (B, N, C) of 'body.1', (4, 7, 5), got 7 with channels_axis=-1",
        ),
    ],
)
def test_axes_and_tokens_that_there_are_not(options, message):
    model, x = Tokens(5), torch.randn(4, 7, 5)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        insert(model, "body", example=x, **options)
    assert blocks(model) == {}


def test_channels_first_are_not_last(resnet18):
    line = "the channels of 'layer2.1' are in axis 1, (1, 128, 8, 8), not in channels_axis=-1"
    with pytest.raises(ValueError, match=re.escape(line)):
        insert(copy.deepcopy(resnet18), "layer2", example=torch.randn(1, 3, 64, 64), channels_axis=-1)


def test_a_mask_goes_without_the_tokens_before_the_positions():
    class Masked(Tokens):
        def forward(self, x, mask=None):
            return super().forward(x)

    host = Masked(5).eval()
    model = Parts(host=host)
    model.forward = lambda x, mask=None: host(x, mask=mask)
    x, mask = torch.randn(2, 7, 5), torch.arange(7).expand(2, -1) < 5
    insert(model, "host", example=x, channels_axis=-1, prefix_tokens=1)
    wake(model)
    other = x.clone()
    other[:, 5:] = 9.0
    assert torch.equal(model(x, mask)[:, :5], model(other, mask)[:, :5])
    assert not torch.equal(model(x)[:, 1:5], model(other)[:, 1:5])


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def conv():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(conv(), mesh=init_device_mesh("cpu", (1,)))


def compiled_in_place():
    model = conv()
    model.compile(backend="eager")
    return model


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda: nn.parallel.DistributedDataParallel(conv()), "DistributedDataParallel"),
        (lambda: nn.DataParallel(conv()), "DataParallel"),
        (sharded, "FSDPModule"),
        (lambda: torch.compile(conv(), backend="eager"), "OptimizedModule"),
        (compiled_in_place, "compiled"),
        (lambda: Parts(net=torch.compile(conv(), backend="eager")), "OptimizedModule"),
    ],
)
def test_a_wrapped_or_compiled_model_is_refused(wrap, kind):
    model = wrap()
    name = next(name for name, _ in model.named_modules() if name.endswith("0"))
    with pytest.raises(ValueError, match=f"before it is wrapped or compiled: .* is {kind}, and would ignore them"):
        insert(model, name, example=torch.randn(1, 3, 8, 8))
    assert blocks(model) == {}


class Two(nn.Module):
    """Two inputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, a, b):
        return self.conv(a + b)


class Listed(Two):
    """A list of inputs, as a detector's."""

    def forward(self, images):
        return super().forward(images[0][None], images[1][None])


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Two, lambda a, b: (a, b)),
        (Two, lambda a, b: [a, b]),
        (Two, lambda a, b: {"b": b, "a": a}),
        (Listed, lambda a, b: [a[0], b[0]]),
        (Listed, lambda a, b: ([a[0], b[0]],)),
        (conv, lambda a, b: (a,)),
    ],
)
def test_examples_of_several_inputs(model, example):
    model = model()
    name = next(name for name, _ in model.named_modules() if name)
    given = example(torch.randn(1, 3, 5, 5), torch.randn(1, 3, 5, 5))
    assert insertion_points(model, given) == (["0", "1"] if isinstance(model, nn.Sequential) else [])
    (row,) = insert(model, name, example=given).rows
    assert row.shape[0] == 4


def test_fx_takes_a_block_for_a_single_step(resnet18):
    model, x = copy.deepcopy(resnet18), torch.randn(2, 3, 64, 64)
    names = list(insert(model, {"layer2": 1, "layer3": 2}, example=x))
    wake(model)
    graph = torch.fx.symbolic_trace(model)
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_module" and "non" in node.name] == names
    assert torch.equal(graph(x), model(x))


class Shared(nn.Module):
    """Modules under two names, as in a U-Net."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.encoder, self.decoder = nn.Sequential(self.conv), nn.Sequential(nn.Conv2d(8, 3, 1))

    def forward(self, x):
        return self.decoder(self.encoder(x))


def test_a_module_with_two_names_gets_its_block():
    x = torch.randn(1, 3, 8, 8)
    for at in (["encoder", "decoder"], ["encoder.0", "decoder"], {"encoder": 1, "decoder": 1}):
        model = Shared()
        assert list(insert(model, at, example=x)) == ["conv.non_local", "decoder.0.non_local"]
        expected = model(x)
        assert not torch.equal(wake(model)(x), expected)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Beside(nn.Sequential):
    def forward(self, x):
        return sum(branch(x) for branch in self)


def test_a_sequential_with_a_forward_of_its_own_is_not_taken_for_its_last_child():
    x = torch.randn(1, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Residual(nn.Conv2d(8, 8, 1), nn.ReLU()))
    with pytest.raises(ValueError, match="'1' is not an insertion point: it loops over its children"):
        insert(model, "1", example=x)
    model = nn.Sequential(Beside(conv(), conv()))
    with pytest.raises(ValueError, match="2 blocks do not fit into '0', which has 1 residual block"):
        insert(model, {"0": 2}, example=x)


def test_outputs_with_channels_last_keep_their_layout():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = Tokens(8)

        def forward(self, x):
            return self.tokens(x).view(-1, 8)

    for prefix in (0, 2):
        model, x = Views(), torch.randn(3, 7, 8)
        expected = model(x)
        insert(model, "tokens", example=x, channels_axis=-1, prefix_tokens=prefix)
        assert torch.equal(model(x), expected)


def test_a_mask_that_is_no_mask_of_positions_is_not_the_blocks():
    class Added(Tokens):
        def forward(self, x, mask=None):
            return super().forward(x)

    host, x = Added(5).eval(), torch.randn(2, 7, 5)
    model = Parts(host=host)
    model.forward = lambda x: host(x, mask=torch.zeros(7, 7))
    insert(model, "host", example=x, channels_axis=-1)
    assert torch.equal(model(x), host(x))


def test_a_layer_norm_tells_the_axis_even_beside_a_convolution_as_wide_as_the_tokens_are_many():
    host = Tokens(8)
    host.conv = nn.Conv1d(64, 64, 1)
    with pytest.raises(ValueError, match="the channels of 'host' come last, "):
        insert(Returns(host=host), "host", example=torch.randn(2, 64, 8))


class Returns(Parts):
    def forward(self, x):
        return self.host(x)


def test_a_block_after_a_norm_that_was_replaced_is_not_silent():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    insert(model, "1", example=torch.randn(1, 3, 5, 5))
    check_attached(model)
    with pytest.raises(ValueError, match="the block after '1' does not run: the norm was replaced"):
        check_attached(nn.SyncBatchNorm.convert_sync_batchnorm(model))
    check_attached(Own())
