"""Inflate 2-D networks and their weights to 3-D: a video that repeats one image gives what the image gives.

From Carreira and Zisserman (CVPR 2017), as the paper uses it (Sec. 4): a k x k kernel becomes t x k x k.
"""

import copy
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn.messages import shorten

MODES = ("mean", "center")


def inflate(
    network: nn.Module, *, example: Tensor, temporal: Mapping[str, int] | None = None, mode: str = "mean"
) -> nn.Module:
    """A 3-D copy of a 2-D network, with its weights: the input (B, C, H, W) becomes (B, C, T, H, W).

    Args:
        network: a convolutional network, such as timm's ResNets, of convolutions, batch norms, pools and layers that
            are independent of the number of axes.
        example: images (B, C, H, W). The result is tested on random images of this shape: a video that repeats an image
            must give what the image gives, before kernels are extended in time.
        temporal: the number of frames, odd, that the kernels of convolutions span, by name, where * stands for
            anything: {"layer1.*.conv1": 3}. All other convolutions span one frame.
        mode: "mean": each of the t planes is the 2-D kernel / t, as in the paper; "center": the middle plane is the 2-D
            kernel and the others are zero. Both give the result of the 2-D network on a repeated image, except that
            "mean" does not at the ends of a clip, where zeros are padded.

    Raises:
        ValueError: a layer without a 3-D form, a name in `temporal` that matches no convolution, an even number of
            frames, or a network whose own code expects two axes.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    spans = _spans(network, temporal or {})
    inflated = _convert("", copy.deepcopy(network))
    inflated.load_state_dict(inflate_weights(network.state_dict(), inflated.state_dict(), mode))
    _check_alike(network, inflated, example)
    for name, frames in spans.items():
        conv = inflated.get_submodule(name)
        assert isinstance(conv, nn.Conv3d)
        shape = torch.Size((*conv.weight.shape[:2], frames, *conv.weight.shape[3:]))
        conv.weight = nn.Parameter(_stack(conv.weight.detach()[:, :, 0], shape, mode), conv.weight.requires_grad)
        conv.kernel_size = (frames, *conv.kernel_size[1:])
        conv.padding = (frames // 2, *conv.padding[1:])
        conv._reversed_padding_repeated_twice = [p for p in reversed(conv.padding) for _ in range(2)]
    return inflated


def inflate_weights(state: Mapping[str, Tensor], like: Mapping[str, Tensor], mode: str = "mean") -> dict[str, Tensor]:
    """The weights of a 2-D network in the shapes of a 3-D one: kernels (O, I, H, W) become (O, I, T, H, W).

    Args:
        state: the state dict of the 2-D network.
        like: the state dict of the 3-D network, for its shapes. Tensors whose name it lacks are returned unchanged.
        mode: as in `inflate`.
    """
    made = {}
    for name, value in state.items():
        shape = like[name].shape if name in like else value.shape
        made[name] = _stack(value, shape, mode) if value.ndim == 4 and len(shape) == 5 else value
    return made


def _stack(kernel: Tensor, shape: torch.Size, mode: str) -> Tensor:
    """(O, I, H, W) -> (O, I, T, H, W)."""
    frames = shape[2]
    if mode == "mean":
        return (kernel / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
    stacked = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    stacked[:, :, frames // 2] = kernel
    return stacked


def _spans(network: nn.Module, temporal: Mapping[str, int]) -> dict[str, int]:
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    spans: dict[str, int] = {}
    for pattern, frames in temporal.items():
        names = fnmatch.filter(convolutions, pattern)
        if not names:
            near = difflib.get_close_matches(pattern, convolutions, n=3, cutoff=0.3) or convolutions[:3]
            known = shorten(", ".join(near) or "none", 160)
            raise ValueError(f"temporal: {shorten(repr(pattern))} matches none of the convolutions, such as {known}")
        if frames < 1 or frames % 2 == 0:
            raise ValueError(f"temporal: the frames of {pattern!r} must be odd, got {frames}")
        spans |= dict.fromkeys(names, frames)
    return spans


def _check_alike(flat: nn.Module, inflated: nn.Module, example: Tensor) -> None:
    """Raise unless a video of two equal frames gives what the image gives, in each frame if the output has frames."""
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    training = {module: module.training for network in (flat, inflated) for module in network.modules()}
    try:
        with torch.no_grad():
            expected = flat.eval()(images)
            got = inflated.eval()(images[:, :, None].expand(-1, -1, 2, -1, -1))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        reason = shorten(reason, 160)
        raise ValueError(f"{type(flat).__name__} has no 3-D form: its code expects two axes ({reason})") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    if got.ndim == expected.ndim + 1:
        got = got[:, :, 0]
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=1e-4, atol=1e-4):
        raise ValueError(
            f"{type(flat).__name__} has no 3-D form: its code expects two axes, for a video of an image repeated gives "
            f"{tuple(got.shape)}, which differs from the image's {tuple(expected.shape)}"
        )


def _convert(name: str, module: nn.Module) -> nn.Module:
    """The 3-D form of a layer, without weights; if the layer has no axes, itself with its children converted."""
    kind = type(module)
    if kind in CONVERTERS:
        return CONVERTERS[kind](module).train(module.training)
    if kind.__name__ == "SelectAdaptivePool2d":  # timm's, by name so that timm need not be imported
        return _global_pool(module).train(module.training)
    direct = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if any(t.ndim > 3 for t in direct) or (kind.__name__.endswith("2d") and (direct or not list(module.children()))):
        known = ", ".join(sorted(kind.__name__ for kind in CONVERTERS))
        raise ValueError(f"{name!r}, a {kind.__name__}, has no 3-D form here, unlike {known}")
    for child, layer in module.named_children():
        setattr(module, child, _convert(f"{name}.{child}".removeprefix("."), layer))
    return module


def _conv(conv: Any) -> nn.Module:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"a convolution with padding {conv.padding!r} of {conv.padding_mode} has no 3-D form here")
    sizes: dict[str, Any] = {
        "kernel_size": (1, *conv.kernel_size),
        "stride": (1, *conv.stride),
        "padding": (0, *conv.padding),
        "dilation": (1, *conv.dilation),
    }
    made = nn.Conv3d(conv.in_channels, conv.out_channels, **sizes, groups=conv.groups, bias=conv.bias is not None)
    return made.to(conv.weight.device, conv.weight.dtype)


def _norm(norm: Any) -> nn.Module:
    made = nn.BatchNorm3d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    tensor = norm.weight if norm.affine else norm.running_mean
    return made if tensor is None else made.to(tensor.device, tensor.dtype)


def _max_pool(pool: Any) -> nn.Module:
    return nn.MaxPool3d(**_pool_sizes(pool), dilation=_with(1, pool.dilation))


def _avg_pool(pool: Any) -> nn.Module:
    return nn.AvgPool3d(**_pool_sizes(pool), count_include_pad=pool.count_include_pad)


def _pool_sizes(pool: Any) -> dict[str, Any]:
    sizes = {"kernel_size": _with(1, pool.kernel_size), "stride": _with(1, pool.stride)}
    return {**sizes, "padding": _with(0, pool.padding), "ceil_mode": pool.ceil_mode}


def _with(first: int, given: int | tuple[int, int]) -> tuple[int, int, int]:
    return (first, given, given) if isinstance(given, int) else (first, *given)


def _adaptive_pool(pool: Any) -> nn.Module:
    if pool.output_size not in (1, (1, 1)):
        raise ValueError(f"{type(pool).__name__} has a 3-D form here for output size 1 only, got {pool.output_size}")
    return nn.AdaptiveAvgPool3d(1) if isinstance(pool, nn.AdaptiveAvgPool2d) else nn.AdaptiveMaxPool3d(1)


def _global_pool(pool: Any) -> nn.Module:
    if not pool.pool_type:
        return nn.Identity()
    if str(pool.pool_type).removeprefix("fast") != "avg":
        raise ValueError(f"SelectAdaptivePool2d has a 3-D form here for pool_type 'avg' only, got {pool.pool_type!r}")
    return nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(1)) if pool.flatten else nn.AdaptiveAvgPool3d(1)


CONVERTERS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AdaptiveMaxPool2d: _adaptive_pool,
    nn.Dropout2d: lambda dropout: nn.Dropout3d(dropout.p, dropout.inplace),
}
