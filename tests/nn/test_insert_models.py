"""Blocks in models that were written elsewhere: outputs, names, gradients, copies, removal."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torchvision import models

from nonlocal_nets.nn import blocks, insert, insertion_points, remove


def image(side=64):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def clip(frames, side):
    return torch.randn(1, 3, frames, side, side, generator=torch.Generator().manual_seed(0))


def of_timm(name, **kwargs):
    return lambda: timm.create_model(name, num_classes=3, **kwargs)


NONE = {"weights": None, "weights_backbone": None}
LAST = {"channels_axis": -1}
MODELS = {  # how it is made, an input, where blocks go, the modules after which they then stand, and options
    "mobilenetv3": (
        of_timm("mobilenetv3_small_050"),
        image(),
        {"blocks.2": 1, "blocks.3": 2},
        ["blocks.2.1", "blocks.3.0", "blocks.3.1"],
        {},
    ),
    "densenet121": (
        of_timm("densenet121"),
        image(),
        ["features.transition1", "features.denseblock3.denselayer2"],
        ["features.transition1.pool", "features.denseblock3.denselayer2"],
        {},
    ),
    "swin_tiny": (
        of_timm("swin_tiny_patch4_window7_224"),
        image(224),
        {"layers.2": 2},
        ["layers.2.blocks.2", "layers.2.blocks.5"],
        LAST,
    ),
    "vit_tiny": (
        of_timm("vit_tiny_patch16_224"),
        image(224),
        ["blocks.3", "blocks.7"],  # after the last block, only the class token would still be read
        ["blocks.3", "blocks.7"],
        {**LAST, "prefix_tokens": 1},
    ),
    "maxvit": (of_timm("maxvit_nano_rw_256"), image(256), {"stages.2": 1}, ["stages.2.blocks.1"], {}),
    "resnest": (of_timm("resnest14d"), image(), "paper-5", ["layer2.0", "layer3.0"], {}),
    "hrnet": (
        of_timm("hrnet_w18_small"),
        image(),
        {"layer1": 1, "stage3.0.branches.1": 2},
        ["layer1.0", "stage3.0.branches.1.0", "stage3.0.branches.1.1"],
        {},
    ),
    "coatnet": (
        of_timm("coatnet_nano_rw_224"),
        image(224),
        {"stages.2": 2},
        ["stages.2.blocks.2", "stages.2.blocks.5"],
        {},
    ),
    "s3d": (models.video.s3d, clip(14, 224), ["features.8", "features.10"], ["features.8", "features.10"], {}),
    "mc3_18": (models.video.mc3_18, clip(4, 32), "paper-1", ["layer3.0"], {}),
    "swin3d_t": (models.video.swin3d_t, clip(8, 64), {"features.4": 2}, ["features.4.2", "features.4.5"], LAST),
    "fcn_resnet50": (
        lambda: models.segmentation.fcn_resnet50(**NONE),
        image(),
        "paper-5",
        [f"backbone.{name}" for name in ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5")],
        {},
    ),
    "fasterrcnn_mobilenet": (
        lambda: models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(**NONE, box_score_thresh=0.0),
        [image()[0].abs(), image(48)[0].abs()],
        ["backbone.body.6", "backbone.body.12"],
        ["backbone.body.6", "backbone.body.12"],
        {},
    ),
    "raft": (
        models.optical_flow.raft_small,
        (image(128), image(128)),
        {"feature_encoder.layer3": 1},
        ["feature_encoder.layer3.0"],
        {},
    ),
    "googlenet": (
        lambda: models.googlenet(weights=None, init_weights=False, aux_logits=False),
        image(),
        {"inception4a": 1},
        ["inception4a"],
        {},
    ),
}
FAST = ("mobilenetv3",)


def run(model, example):
    output = model(*example) if isinstance(example, tuple) else model(example)
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # of the models
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in MODELS])
def test_a_model_written_elsewhere(name):
    make, example, at, hosts, options = MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models' constructors
        model = make().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert set(hosts) <= set(insertion_points(model, example)) | {name for name, _ in model.named_modules()}
    with torch.no_grad():
        expected = run(model, example)
    assert list(insert(model, at, example=example, norm="layer", **options)) == [f"{host}.non_local" for host in hosts]
    with torch.no_grad():
        assert equal(run(model, example), expected)
    assert [key for key in model.state_dict() if ".non_local." not in key] == list(before)
    for block in blocks(model).values():
        nn.init.ones_(block.norm.weight)
    copied = copy.deepcopy(model)
    outputs = run(model, example)
    assert not equal(outputs, expected)
    sum(output.square().sum() for output in outputs if output.requires_grad).backward()
    for key, parameter in model.named_parameters():
        if ".non_local." in key and not key.endswith("phi.bias"):  # which shifts all logits of a query alike
            assert parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        # with a gradient the block may take another form, which rounds in another way
        assert equal(run(copied, example), run(model, example))
        remove(model)
        assert equal(run(model, example), expected)
    assert list(model.state_dict()) == list(before)
