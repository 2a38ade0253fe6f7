"""Video classifiers of the paper: C2D and I3D ResNets (Table 1 and Sec. 4), non-local or not.

Shape suffixes: B batch, C channels, T frames, H and W pixels.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nonlocal_nets.nn.backbones.image import image_backbone
from nonlocal_nets.nn.inflate import inflate
from nonlocal_nets.nn.insert import At, insert

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # residual blocks a stage
INFLATED = {  # (frames of the stem's kernel, of the first 1 x 1 and of the 3 x 3 in inflated residual blocks)
    "c2d": (1, 1, 1),
    "i3d": (5, 3, 1),  # the paper's I3D 3 x 1 x 1, its choice for the non-local I3D
    "i3d_3x3x3": (5, 1, 3),
}
STEMS = {"32x2": 2, "8x8": 1}  # stride in time of conv1 and pool1: clips of 32 or 128 frames, or of 8 or 32 sparse ones
EXAMPLE = {"32x2": (32, 32), "8x8": (8, 32)}  # frames and side of a small clip that has 4 frames in res3


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 and a shortcut; the stride is in the 3 x 3. Two of the kernels may span frames."""

    def __init__(self, channels: int, width: int, stride: int, frames: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, (frames[0], 1, 1))
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _conv(width, width, (frames[1], 3, 3), (1, stride, stride))
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = _conv(width, 4 * width, (1, 1, 1))
        self.bn3 = nn.BatchNorm3d(4 * width)
        self.act = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != 4 * width:
            shortcut = _conv(channels, 4 * width, (1, 1, 1), (1, stride, stride))
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act(self.bn1(self.conv1(x)))
        x = self.act(self.bn2(self.conv2(x)))
        y: Tensor = self.act(self.bn3(self.conv3(x)) + shortcut)
        return y


class Stage(nn.Sequential):
    """Residual blocks, which with `checkpointing` are computed again in the backward pass, to save memory."""

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        again = self.checkpointing and torch.is_grad_enabled()
        for unit in self:
            x = checkpoint(unit, x, use_reentrant=False, context_fn=_contexts(unit)) if again else unit(x)
        return x


class VideoResNet(nn.Module):
    r"""C2D or I3D: (B, in_chans, T, H, W) -> logits (B, num_classes).

    Its modules have timm's names, so that the weights of timm's 2-D ResNets fit after `inflate_weights`, and the
    stages those of `insert`: layer1 to layer4 are the paper's res2 to res5.

    Args:
        arch: "c2d"; "i3d", which spans 3 frames in the first 1 x 1 of every other residual block; "i3d_3x3x3", which
            does so in its 3 x 3.
        depth: 50 or 101.
        num_classes: width of the last layer.
        stem: "32x2" halves the frames three times, for clips of 32 or 128 frames; "8x8" once.
        pool_padding: max pools as in Table 1, padded, with 56 x 56 positions in res2, or as in the released code and
            its checkpoints, unpadded, with 55 x 55.
        dropout: before the last layer (Sec. 4).
        in_chans: channels of a frame.

    Raises:
        ValueError: an arch, depth or stem that is not there.
    """

    def __init__(
        self,
        arch: str = "c2d",
        depth: int = 50,
        num_classes: int = 400,
        stem: str = "32x2",
        pool_padding: bool = True,
        dropout: float = 0.5,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        for name, given, accepted in (("arch", arch, INFLATED), ("depth", depth, DEPTHS), ("stem", stem, STEMS)):
            if given not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(map(str, accepted))}, got {given!r}")
        frames, stride = INFLATED[arch], STEMS[stem]
        self.conv1 = _conv(in_chans, 64, (frames[0], 7, 7), (stride, 2, 2))
        self.bn1 = nn.BatchNorm3d(64)
        self.act = nn.ReLU(inplace=True)
        span = 1 if stride == 1 else 3 if pool_padding else 2
        self.maxpool = _pool((span, 3, 3), (stride, 2, 2), pool_padding)
        channels = 64
        for stage, count in enumerate(DEPTHS[depth]):
            width, units = 64 * 2**stage, []
            for index in range(count):
                inflated = stage == 0 or index % 2 == (stage == 3)  # res2 all, res3 and res4 0, 2, ..., res5 the second
                units.append(
                    Bottleneck(channels, width, 2 if stage and not index else 1, frames[1:] if inflated else (1, 1))
                )
                channels = 4 * width
            self.add_module(f"layer{stage + 1}", Stage(*units))
            if not stage:
                self.pool2 = _pool((3 if pool_padding else 2, 1, 1), (2, 1, 1), pool_padding)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters()

    @property
    def checkpointing(self) -> bool:
        """Whether residual blocks are computed again in the backward pass, to save memory."""
        return any(stage.checkpointing for stage in self.children() if isinstance(stage, Stage))

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        for stage in self.children():
            if isinstance(stage, Stage):
                stage.checkpointing = value

    def reset_parameters(self) -> None:
        """He initialisation; zero in the last norm of a residual block, 0.01 in the classifier (released code)."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> Tensor:
        """What res5 gives: (B, 2048, T', H / 32, W / 32)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for name in ("layer1", "pool2", "layer2", "layer3", "layer4"):
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, T, H, W) -> logits (B, num_classes), averaged over all positions before the last layer."""
        logits: Tensor = self.fc(self.dropout(self.features(x).mean((2, 3, 4))))
        return logits


def video_resnet(
    arch: str = "c2d",
    depth: int = 50,
    non_local: At | None = None,
    stem: str = "32x2",
    num_classes: int = 400,
    pool_padding: bool = True,
    dropout: float = 0.5,
    in_chans: int = 3,
    **block_kwargs: Any,
) -> VideoResNet:
    """A C2D or I3D of the paper with non-local blocks.

    Args:
        arch, depth, stem, num_classes, pool_padding, dropout, in_chans: those of `VideoResNet`.
        non_local: where the blocks go, as `insert` takes it: "paper-1", "paper-5", "paper-10", names, counts by stage,
            or None for none.
        **block_kwargs: of `NonLocalBlock`; pool is (1, 2, 2) where it is not given (Sec. 3.3).

    Raises:
        ValueError: an argument that `VideoResNet`, `insert` or `NonLocalBlock` refuses.
    """
    network = VideoResNet(arch, depth, num_classes, stem, pool_padding, dropout, in_chans)
    if non_local is not None:
        frames, side = EXAMPLE[stem]
        example = torch.zeros(1, in_chans, frames, side, side)
        insert(network, non_local, example=example, **{"pool": (1, 2, 2)} | block_kwargs)
    elif block_kwargs:
        raise ValueError(f"non_local is None, and yet there are arguments for its blocks: {', '.join(block_kwargs)}")
    return network


class LocalVideoNet(nn.Module):
    """A small C2D that sees three frames, and a head that pools: (B, in_chans, T, H, W) -> logits (B, num_classes).

    What is three frames apart or more meets in the linear head only, unless a non-local block stands in between. It has
    the places of the presets: "paper-1" is after the second of three units of layer3, "paper-5" after all of layer2
    and layer3.
    """

    def __init__(self, num_classes: int, in_chans: int = 3, width: int = 32) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(_unit(in_chans, width // 2, (1, 3, 3), 2))
        self.layer2 = nn.Sequential(_unit(width // 2, width, (1, 3, 3), 2), _unit(width, width, (1, 1, 1)))
        units = (_unit(width, width, (1, 3, 3)), _unit(width, width, (3, 1, 1)), _unit(width, width, (1, 1, 1)))
        self.layer3 = nn.Sequential(*units)
        self.layer4 = nn.Sequential(_unit(width, width, (1, 1, 1)))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, T, H, W) -> logits (B, num_classes)."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(features.mean((2, 3, 4)))
        return logits


def _unit(channels: int, width: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(channels, width, kernel, (1, stride, stride)), nn.BatchNorm3d(width), nn.ReLU())


def video_backbone(name: str, num_classes: int, in_chans: int = 3, **options: Any) -> nn.Module:
    """A video classifier by name: (B, in_chans, T, H, W) -> (B, num_classes).

    Args:
        name: "local_video_net", "<arch>_resnet<depth>" with an arch and a depth of `VideoResNet`, or a timm network,
            which is inflated: its kernels span one frame.
        num_classes: width of the last layer.
        in_chans: channels of a frame.
        **options: stem, pool_padding, dropout and checkpointing of `VideoResNet`.

    Raises:
        ValueError: an unknown name, a timm network that has no 3-D form, or an option that the network does not have.
    """
    arch, _, depth = name.partition("_resnet")
    if arch in INFLATED and depth.isdecimal():
        checkpointing = options.pop("checkpointing", False)
        network = VideoResNet(arch, int(depth), num_classes, in_chans=in_chans, **options)
        network.checkpointing = checkpointing
        return network
    if options:
        raise ValueError(f"{', '.join(options)}: only C2D and I3D have this option, not the backbone {name!r}")
    if name == "local_video_net":
        return LocalVideoNet(num_classes, in_chans)
    try:
        flat = image_backbone(name, num_classes, in_chans)
    except ValueError as error:
        ours = ", ".join(f"{arch}_resnet{depth}" for arch in INFLATED for depth in DEPTHS)
        raise ValueError(f"{error}; for videos also local_video_net, {ours}") from error
    return inflate(flat, example=torch.zeros(2, in_chans, 64, 64))


def _contexts(module: nn.Module) -> Callable[[], tuple[Any, Any]]:
    """For the first computation of a checkpoint and for the second, which leaves running statistics as they are."""
    return lambda: (nullcontext(), _StatisticsKept(module))


class _StatisticsKept:
    """A context that puts the buffers back at its end; torch enters it again in each backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.kept = {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    def __exit__(self, *error: object) -> None:  # a checkpoint stops by an exception, once it has all that it needs
        for name, buffer in self.module.named_buffers():
            buffer.copy_(self.kept[name])


def _conv(
    channels: int, width: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Conv3d:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(channels, width, kernel, stride, padding, bias=False)


def _pool(kernel: tuple[int, int, int], stride: tuple[int, int, int], padded: bool) -> nn.MaxPool3d:
    return nn.MaxPool3d(kernel, stride, tuple(k // 2 for k in kernel) if padded else 0)
