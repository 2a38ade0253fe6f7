"""Image classifiers: any timm model, or the small local network of the first experiment, with non-local blocks."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn.insert import At, insert


class LocalConvNet(nn.Module):
    """Four small convolutions that see 9 x 9 pixels, at a quarter of the resolution, and a head that pools.

    Whatever is more than 9 pixels apart meets in the linear head only, unless a non-local block stands in between: the
    place for it is "layer3", before one more pointwise layer, as the paper puts it before the last residual block.
    """

    def __init__(self, num_classes: int, in_chans: int = 3, widths: Sequence[int] = (16, 32, 32, 32)) -> None:
        super().__init__()
        self.layer1 = _conv(in_chans, widths[0], kernel=5, stride=2)
        self.layer2 = _conv(widths[0], widths[1], kernel=3, stride=2)
        self.layer3 = _conv(widths[1], widths[2], kernel=1, stride=1)
        self.layer4 = _conv(widths[2], widths[3], kernel=1, stride=1)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, num_classes)."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def _conv(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def image_classifier(
    backbone: str,
    num_classes: int,
    input_size: Sequence[int] = (3, 224, 224),
    blocks: At = "none",
    **block_kwargs: Any,
) -> nn.Module:
    """A classifier with non-local blocks.

    Args:
        backbone: "local_convnet" or the name of any timm model that has (B, C, H, W) features.
        num_classes: width of the last layer.
        input_size: (channels, height, width) of an image.
        blocks: "none", or where the blocks go, as `at` of `insert`.
        **block_kwargs: passed to `NonLocalBlock`.

    Raises:
        ValueError: an unknown backbone (names the nearest), or what `insert` raises.
    """
    if backbone == "local_convnet":
        model: nn.Module = LocalConvNet(num_classes, in_chans=input_size[0])
    else:
        model = _timm(backbone, num_classes, input_size[0])
    if blocks != "none":
        insert(model, blocks, example=torch.zeros(1, *input_size), **block_kwargs)
    return model


def _timm(name: str, num_classes: int, in_chans: int) -> nn.Module:
    import timm  # takes seconds to import

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = difflib.get_close_matches(name, [*known, "local_convnet"], n=3, cutoff=0.4)
        raise ValueError(
            f"unknown backbone {name!r}, neither local_convnet nor a timm model; nearest: {', '.join(near)}"
        )
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_chans)
    return model
