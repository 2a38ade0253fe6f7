"""Sequence classifiers: a residual 1-D network for time series, signals and tokens.

Shape suffixes: B batch, C channels, L positions.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from nonlocal_nets.nn.norms import norm_valid

BACKBONES = ("signal_resnet", "token_resnet")


class Unit(nn.Module):
    """A residual block: convolutions, each with batch norm, and a shortcut, which is projected if its shape changes.

    The stride is that of the first convolution.
    """

    def __init__(self, channels: int, width: int, kernels: Sequence[int], stride: int) -> None:
        super().__init__()
        sizes = [channels] + [width] * len(kernels)
        strides = [stride] + [1] * (len(kernels) - 1)
        self.convs = nn.ModuleList(map(_conv, sizes, sizes[1:], kernels, strides))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in kernels)
        self.shortcut: nn.Conv1d | None = None
        if stride > 1 or channels != width:
            self.shortcut = _conv(channels, width, 1, stride)
            self.shortcut_norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, L) -> (B, width, ceil(L / stride)).

        Args:
            x: (B, C, L), zero at padding.
            mask: bool (B, ceil(L / stride)), the valid positions of the output; None: all.
        """
        shortcut = x if self.shortcut is None else _normed(self.shortcut_norm, self.shortcut(x), mask)
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = _normed(norm, conv(x if k == 0 else x.relu()), mask)
        return (x + shortcut).relu()


class SequenceResNet(nn.Module):
    """The residual network of Wang, Yan and Oates (IJCNN 2017) for time series, with a stem; for tokens as well.

    Theirs has `widths` (64, 128, 128), one unit per stage, no stride, and kernels of 8 where ours have 7, which are
    centred. For `insert`, the stages are named `layer1`, `layer2`, ... Padding has no effect: all layers see zeros
    there, and the statistics of batch norms and the mean before the last layer are those of the valid positions.

    Args:
        num_classes: width of the last layer.
        in_chans: number of channels of a signal, or number of different tokens.
        tokens: the inputs are tokens (B, L), int64, which are embedded; if False, signals (B, in_chans, L).
        widths: number of channels in each stage.
        units: residual blocks per stage.
        kernels: kernel sizes, odd, of the convolutions in a residual block.
        stem_stride: stride of the stem, which is a convolution.
        stage_stride: stride of every stage except the first.
        dropout: probability of dropout before the last layer.

    Raises:
        ValueError: a size that is not positive, an even kernel, or an empty list of widths or kernels.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        tokens: bool = False,
        widths: Sequence[int] = (64, 128, 128),
        units: int = 1,
        kernels: Sequence[int] = (7, 5, 3),
        stem_stride: int = 1,
        stage_stride: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"widths": widths, "kernels": kernels, "units": [units], "strides": [stem_stride, stage_stride]}
        for name, given in sizes.items():
            if not given or min(given) < 1:
                raise ValueError(f"{name} must be at least 1, got {list(given)}")
        if not all(kernel % 2 for kernel in kernels):
            raise ValueError(f"kernels must be odd, got {list(kernels)}")
        self.tokens, self.stem_stride, self.stage_stride = tokens, stem_stride, stage_stride
        self.embedding = nn.Embedding(in_chans, widths[0]) if tokens else None
        self.stem = Unit(widths[0] if tokens else in_chans, widths[0], kernels[:1], stem_stride)
        channels = widths[0]
        self.stages: list[str] = []
        for stage, width in enumerate(widths):
            strides = [stage_stride if stage else 1] + [1] * (units - 1)
            made = [Unit(width if k else channels, width, kernels, stride) for k, stride in enumerate(strides)]
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.ModuleList(made))
            channels = width
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, num_classes).

        Args:
            x: signals (B, in_chans, L), or tokens (B, L).
            mask: bool (B, L), True at the valid positions, which come first in each sample; None: all are valid.
        """
        if self.embedding is not None:
            x = self.embedding(x).transpose(1, 2)
        if mask is not None:
            x = x.masked_fill(~mask[:, None], 0)
            mask = mask[:, :: self.stem_stride]
        x = self.stem(x, mask=mask)
        for stage, name in enumerate(self.stages):
            if mask is not None and stage:
                mask = mask[:, :: self.stage_stride]
            for unit in self.get_submodule(name).children():
                x = unit(x, mask=mask)
        mean = x.mean(2) if mask is None else x.sum(2) / mask.sum(1, keepdim=True).clamp(min=1)
        logits: Tensor = self.fc(self.dropout(mean))
        return logits


def _conv(channels: int, width: int, kernel: int, stride: int) -> nn.Conv1d:
    return nn.Conv1d(channels, width, kernel, stride, kernel // 2, bias=False)


def _normed(norm: nn.Module, x_BCL: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return norm(x_BCL)  # type: ignore[no-any-return]
    return norm_valid(norm, x_BCL.transpose(1, 2), mask).transpose(1, 2)


def sequence_backbone(name: str, num_classes: int, in_chans: int, **kwargs: object) -> SequenceResNet:
    """A sequence classifier.

    Args:
        name: "signal_resnet" or "token_resnet".
        num_classes: width of the last layer.
        in_chans: number of channels of a signal, or number of different tokens.
        **kwargs: passed to `SequenceResNet`.

    Raises:
        ValueError: an unknown name, or an argument that `SequenceResNet` refuses.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    return SequenceResNet(num_classes, in_chans, name == "token_resnet", **kwargs)  # type: ignore[arg-type]
