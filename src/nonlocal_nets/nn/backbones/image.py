"""Image classifiers: any timm model, or a small network whose convolutions see little of the image."""

from collections.abc import Sequence

from torch import Tensor, nn

from nonlocal_nets.nn.messages import nearest, shorten


class LocalConvNet(nn.Module):
    """Four small convolutions with a receptive field of 7 x 7 pixels, a mean over all positions, and a linear layer.

    Pixels that are 7 or more apart are compared nowhere before the linear layer, unless a non-local block is inserted.
    It goes after "layer3", before one more pointwise layer, as the paper's goes before the last residual block.
    """

    def __init__(self, num_classes: int, in_chans: int = 3, widths: Sequence[int] = (16, 32, 32, 32)) -> None:
        super().__init__()
        self.layer1 = _conv(in_chans, widths[0], kernel=3, stride=2)
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


def image_backbone(name: str, num_classes: int, in_chans: int = 3) -> nn.Module:
    """An image classifier, (B, in_chans, H, W) -> (B, num_classes).

    Args:
        name: "local_convnet" or the name of any timm model.
        num_classes: width of the last layer.
        in_chans: channels of an image.

    Raises:
        ValueError: an unknown name. The message has the nearest known ones.
    """
    if name == "local_convnet":
        return LocalConvNet(num_classes, in_chans)
    import timm  # takes seconds to import

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = nearest(name, [*known, "local_convnet"], cutoff=0.4)
        raise ValueError(f"unknown backbone {shorten(repr(name))}, neither local_convnet nor a timm model{near}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_chans)
    return model


def classifier_name(network: nn.Module) -> str:
    """The name of the last layer of an image backbone, whose width is the number of classes."""
    config = getattr(network, "pretrained_cfg", {"classifier": "fc"})
    return str(config["classifier"])
