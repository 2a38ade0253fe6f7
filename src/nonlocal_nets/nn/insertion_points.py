"""Where non-local blocks can go in a model: after modules that return one tensor (B, C, *S) per forward pass."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from nonlocal_nets.nn.messages import shorten
from nonlocal_nets.nn.trace import Call, Example, Trace, trace

CHILD = "non_local"  # the name of a block in the module after which it runs
LONGEST_MESSAGE = 300  # characters of an error
PRESETS = {  # number of blocks per stage: in res3 and res4 of a ResNet of any depth (Sec. 4.1 and Table 2c)
    "paper-1": {"layer3": 1},
    "paper-5": {"layer2": 2, "layer3": 3},
    "paper-10": {"layer2": 4, "layer3": 6},
}

At = str | Sequence[str] | Mapping[str, int]


def insertion_points(model: nn.Module, example: Example) -> list[str]:
    """The modules after which `insert` can put a block: stages, residual blocks and the steps of an nn.Sequential.

    Layers inside of these are not listed, although most of them can be named too.

    Args:
        model: any model.
        example: an input of any batch size, as for `insert`.

    Returns:
        Names of modules, in the order of the model.
    """
    traced, failure = trace(model, example)
    if failure:
        raise failure
    return _points(traced)


def resolve(traced: Trace, at: At) -> list[str]:
    """The modules after which a block goes, in the order of the model."""
    preset = at if isinstance(at, str) and at in PRESETS else None
    if preset is not None:
        prefix = _prefix(traced, preset)
        at = {f"{prefix}{stage}": count for stage, count in PRESETS[preset].items()}
    if isinstance(at, Mapping):
        names = [name for stage, count in at.items() for name in _spread(traced, stage, count, preset is not None)]
    else:
        names = [at] if isinstance(at, str) else list(at)
    for name in names:
        if name not in traced.modules:
            raise refusal(traced, f"no module {name!r} in {traced.kind}", _nearest(name, traced.modules))
    names = [traced.first[_last(traced, name)] for name in names]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(shorten(f"insertion points must differ, got twice: {', '.join(twice)}", LONGEST_MESSAGE))
    return [name for name in traced.modules if name in names]


def _prefix(traced: Trace, preset: str) -> str:
    """What stands before the stages of a preset in this model, such as "" or "backbone.body."."""
    first, *others = PRESETS[preset]
    prefixes = [name.removesuffix(first) for name in traced.modules if f".{name}".endswith(f".{first}")]
    found = [prefix for prefix in prefixes if all(f"{prefix}{stage}" in traced.modules for stage in others)]
    if "" in found or len(found) == 1:
        return "" if "" in found else found[0]
    if found:
        names = [f"{prefix}{first}" for prefix in found]
        reason = f"{len(names)} stages for {preset!r}, {', '.join(names)}; name those of one, as in {{{names[0]!r}: 1}}"
    else:
        names = [name for name in traced.modules if name and len(_units(traced, name)) > 1]
        reason = f"no stage {first!r} in {traced.kind}" + (f", but {', '.join(names)}" if names else "")
    raise refusal(traced, reason, names)


def _spread(traced: Trace, stage: str, count: int, preset: bool) -> list[str]:
    """`count` of the n residual blocks of a stage, as in the paper: the last but one, or every (n // count)-th."""
    if stage not in traced.modules:
        raise refusal(traced, f"no stage {stage!r} in {traced.kind}", _nearest(stage, traced.modules))
    units = _units(traced, stage)
    if preset:
        count = min(count, len(units))
    if not 0 <= count <= len(units):
        has = f"{len(units)} residual block{'s' if len(units) > 1 else ''}"
        raise refusal(traced, f"{count} blocks do not fit into {stage!r}, which has {has}", units)
    if count == 1:
        return [units[max(len(units) - 2, 0)]]
    return [units[(k + 1) * (len(units) // count) - 1] for k in range(count)]


def _units(traced: Trace, stage: str) -> list[str]:
    """The residual blocks of a stage: those of its children that have children, if they run one after another.

    A stage without such children, as a convolution with its norm, or with branches side by side, is a single one.
    """
    inner = child_of(stage, "blocks")  # some of timm's stages have a downsampling beside `blocks`
    parent = inner if inner in traced.modules else stage
    children = [(name, child) for name, child in traced.modules[parent].named_children() if name != CHILD]
    composite = [name for name, child in children if any(key != CHILD for key, _ in child.named_children())]
    units = [traced.first[child_of(parent, name)] for name in composite]
    units = [name for name in units if _is_point(traced.calls_of(name))]
    if not _is_plain_sequential(traced.modules[parent]):
        outputs = [traced.calls_of(name)[0].output for name in units]
        before_its_block = [call.input for call in traced.calls_of(child_of(parent, CHILD))]
        returned = before_its_block or [call.output for call in traced.calls_of(parent)]
        following = [traced.calls_of(name)[0].input for name in units[1:]] + returned
        if any(output is not then for output, then in zip(outputs, following, strict=False)):
            units = []
    return units or [stage]


def _last(traced: Trace, name: str) -> str:
    """The module that computes the output of the module `name`: nn.Sequential would run a block among its children."""
    while isinstance(sequential := traced.modules[name], nn.Sequential) and len(sequential):
        child = child_of(name, list(sequential._modules)[-1])
        if not _is_plain_sequential(sequential):  # it may do more than run its children
            outputs, last = traced.calls_of(name), traced.calls_of(child)
            if not (outputs and last and outputs[-1].output is last[-1].output):
                break
        name = child
    return name


def _is_plain_sequential(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


def child_of(name: str, child: str) -> str:
    """The name of a child of the module `name`, which is empty for the model itself."""
    return f"{name}.{child}".removeprefix(".")


def check_point(traced: Trace, name: str) -> Tensor:
    """The output at an insertion point; raises if it is none."""
    calls = traced.calls_of(name)
    if CHILD in traced.modules[name]._modules:
        reason = f"{name!r} has a child {CHILD!r} already (remove(model) removes inserted blocks)"
        raise ValueError(shorten(reason, LONGEST_MESSAGE))
    if _is_point(calls):
        point: Tensor = calls[0].output
        return point
    if len(calls) != 1:
        reason = f"runs {len(calls)} times in a forward pass"
    else:
        output = calls[0].output
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        dtype = f" of {output.dtype}" if isinstance(output, Tensor) and not output.is_floating_point() else ""
        reason = f"returns {given}{dtype}, not a floating-point (B, C, *S) tensor"
    near = _nearest(name, _points(traced))
    raise refusal(traced, f"{name!r} is not an insertion point: it {reason}", near)


def check_axis(traced: Trace, name: str, output: Tensor, channels_axis: int) -> None:
    """Raise a ValueError for an axis that is not that of the channels, as the host's own layers show.

    Convolutions and batch norms have the channels in axis 1, linear layers and layer norms in the last one; norms count
    most. For a host without layers, such as an activation, those beside it count.
    """
    shape = tuple(output.shape)
    if not (-output.ndim < channels_axis < output.ndim and channels_axis != 0):
        raise ValueError(f"channels_axis must be an axis of {name!r}, {shape}, after the first; got {channels_axis}")
    if shape[1] == shape[-1]:
        return
    where, widths = name, _widths(traced.modules[name])
    while where and not any(widths):
        where = where.rpartition(".")[0]
        widths = _widths(traced.modules[where])
    first, last = widths.first | widths.first_norms, widths.last | widths.last_norms
    is_last = shape[1] not in first and shape[-1] in first | last
    is_last_by_norms = shape[-1] in widths.last_norms and shape[1] not in widths.first_norms
    axis = channels_axis % output.ndim
    if axis == 1 and (is_last or is_last_by_norms):
        tokens = ", and prefix_tokens=1 where a class token comes first" if output.ndim == 3 else ""
        raise ValueError(f"the channels of {name!r} come last, {shape}: give channels_axis=-1{tokens}")
    if axis == output.ndim - 1 and shape[1] in first and shape[-1] not in last:
        raise ValueError(f"the channels of {name!r} are in axis 1, {shape}, not in channels_axis={channels_axis}")


class _Widths(NamedTuple):
    """The widths of layers with their channels in axis 1, and of those that have them last."""

    first: set[int]
    first_norms: set[int]
    last: set[int]
    last_norms: set[int]


def _widths(host: nn.Module) -> _Widths:
    widths = _Widths(set(), set(), set(), set())
    for module in host.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            widths.first.add(module.out_channels)
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            widths.first_norms.add(module.num_features)
        elif isinstance(module, nn.GroupNorm):
            widths.first_norms.add(module.num_channels)
        elif isinstance(module, nn.Linear):
            widths.last.add(module.out_features)
        elif isinstance(module, nn.LayerNorm):  # timm's LayerNorm2d derives from it, for axis 1
            (widths.first if "2d" in type(module).__name__ else widths.last_norms).add(module.normalized_shape[-1])
    return widths


def _is_point(calls: list[Call]) -> bool:
    if len(calls) != 1:
        return False
    output = calls[0].output
    return isinstance(output, Tensor) and output.ndim >= 3 and output.is_floating_point()


def _points(traced: Trace) -> list[str]:
    """`insertion_points` of a traced model."""
    return [
        name
        for name, module in traced.modules.items()
        if name
        and name == traced.first[name]
        and CHILD not in name.split(".")
        and _is_point(traced.calls_of(name))
        and (list(module.children()) or isinstance(traced.modules[name.rpartition(".")[0]], nn.Sequential))
    ]


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=3)


def refusal(traced: Trace, reason: str, preferred: Sequence[str] = ()) -> ValueError:
    """An error of one line: the reason, as many insertion points as there is room for, and how to print all.

    Those in `preferred` come first, then stages, which have the fewest dots in their names.
    """
    points = _points(traced)
    reason = f"{shorten(reason, LONGEST_MESSAGE // 2)}; insertion points: "
    everything = f"{reason}{', '.join(points) or 'none'}"
    if len(everything) <= LONGEST_MESSAGE:
        return ValueError(everything)
    how = f", ... (all {len(points)}: print(nln.insertion_points(model, example)))"
    room = LONGEST_MESSAGE - len(reason) - len(how)
    shown: list[str] = []
    for name in sorted(points, key=lambda name: (name not in preferred, name.count("."))):
        if len(", ".join([*shown, name])) <= room:
            shown.append(name)
    return ValueError(f"{reason}{', '.join(name for name in points if name in shown)}{how}")
