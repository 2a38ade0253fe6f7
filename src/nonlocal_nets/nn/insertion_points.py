"""Where non-local blocks can go in a model: after modules that return one tensor (B, C, *S) per forward pass."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

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
    calls, failure = trace(model, example)
    if failure:
        raise failure
    return _points(model, calls)


def resolve(model: nn.Module, at: At, calls: Trace) -> list[str]:
    """The modules after which a block goes, in the order of the model."""
    preset = at if isinstance(at, str) and at in PRESETS else None
    if preset is not None:
        prefix = _prefix(model, preset, calls)
        at = {f"{prefix}{stage}": count for stage, count in PRESETS[preset].items()}
    if isinstance(at, Mapping):
        names = [name for stage, n in at.items() for name in _spread(model, stage, n, preset is not None, calls)]
    else:
        names = [at] if isinstance(at, str) else list(at)
    modules, first = _named(model), _first_names(model)
    for name in names:
        if name not in modules:
            raise refusal(f"no module {name!r} in {type(model).__name__}", model, calls, _nearest(name, modules))
    names = [first[_last(model, name, calls)] for name in names]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(shorten(f"insertion points must differ, got twice: {', '.join(twice)}", LONGEST_MESSAGE))
    return [name for name in modules if name in names]


def _prefix(model: nn.Module, preset: str, calls: Trace) -> str:
    """What stands before the stages of a preset in this model, such as "" or "backbone.body."."""
    modules, (first, *others) = _named(model), PRESETS[preset]
    prefixes = [name.removesuffix(first) for name in modules if f".{name}".endswith(f".{first}")]
    found = [prefix for prefix in prefixes if all(f"{prefix}{stage}" in modules for stage in others)]
    if "" in found or len(found) == 1:
        return "" if "" in found else found[0]
    if found:
        names = [f"{prefix}{first}" for prefix in found]
        reason = f"{len(names)} stages for {preset!r}, {', '.join(names)}; name those of one, as in {{{names[0]!r}: 1}}"
    else:
        names = [name for name in modules if name and len(_units(model, name, calls)) > 1]
        reason = f"no stage {first!r} in {type(model).__name__}" + (f", but {', '.join(names)}" if names else "")
    raise refusal(reason, model, calls, names)


def _spread(model: nn.Module, stage: str, count: int, preset: bool, calls: Trace) -> list[str]:
    """`count` of the n residual blocks of a stage, as in the paper: the last but one, or every (n // count)-th."""
    modules = _named(model)
    if stage not in modules:
        raise refusal(f"no stage {stage!r} in {type(model).__name__}", model, calls, _nearest(stage, modules))
    units = _units(model, stage, calls)
    if preset:
        count = min(count, len(units))
    if not 0 <= count <= len(units):
        has = f"{len(units)} residual block{'s' if len(units) > 1 else ''}"
        raise refusal(f"{count} blocks do not fit into {stage!r}, which has {has}", model, calls, units)
    if count == 1:
        return [units[max(len(units) - 2, 0)]]
    return [units[(k + 1) * (len(units) // count) - 1] for k in range(count)]


def _units(model: nn.Module, stage: str, calls: Trace) -> list[str]:
    """The residual blocks of a stage: those of its children that have children, if they run one after another.

    A stage without such children, as a convolution with its norm, or with branches side by side, is a single one.
    """
    modules, first = _named(model), _first_names(model)
    inner = f"{stage}.blocks".removeprefix(".")  # some of timm's stages have a downsampling beside `blocks`
    parent = inner if inner in modules else stage
    children = [(name, child) for name, child in modules[parent].named_children() if name != CHILD]
    composite = [name for name, child in children if any(key != CHILD for key, _ in child.named_children())]
    units = [first[f"{parent}.{name}".removeprefix(".")] for name in composite]
    units = [name for name in units if _is_point(calls.get(name, []))]
    parent = first[parent]
    if type(modules[parent]).forward is not nn.Sequential.forward:
        outputs = [calls[name][0].output for name in units]
        returned = [call.input for call in calls.get(f"{parent}.{CHILD}", [])]  # by the stage, before its block
        returned = returned or [call.output for call in calls.get(parent, [])]
        following = [calls[name][0].input for name in units[1:]] + returned
        if any(output is not then for output, then in zip(outputs, following, strict=False)):
            units = []
    return units or [stage]


def _last(model: nn.Module, name: str, calls: Trace) -> str:
    """The module that computes the output of the module `name`: nn.Sequential would run a block among its children."""
    modules, first = _named(model), _first_names(model)
    while isinstance(modules[name], nn.Sequential) and len(modules[name]):  # type: ignore[arg-type]
        child = f"{name}.{list(modules[name].named_children())[-1][0]}".removeprefix(".")
        if type(modules[name]).forward is not nn.Sequential.forward:  # it may do more than run its children
            outputs, last = (calls.get(first[key], []) for key in (name, child))
            if not (outputs and last and outputs[-1].output is last[-1].output):
                break
        name = child
    return name


def _named(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by all of their names."""
    return dict(model.named_modules(remove_duplicate=False))


def _first_names(model: nn.Module) -> dict[str, str]:
    """The first name of a module, which a trace knows, for each of its names."""
    firsts = {module: name for name, module in model.named_modules()}
    return {name: firsts[module] for name, module in _named(model).items()}


def check_point(model: nn.Module, name: str, calls: Trace) -> Tensor:
    """The output at an insertion point; raises if it is none."""
    found = calls.get(name, [])
    if CHILD in model.get_submodule(name)._modules:
        reason = f"{name!r} has a child {CHILD!r} already (remove(model) removes inserted blocks)"
        raise ValueError(shorten(reason, LONGEST_MESSAGE))
    if _is_point(found):
        point: Tensor = found[0].output
        return point
    if len(found) != 1:
        reason = f"runs {len(found)} times in a forward pass"
    else:
        output = found[0].output
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        dtype = f" of {output.dtype}" if isinstance(output, Tensor) and not output.is_floating_point() else ""
        reason = f"returns {given}{dtype}, not a floating-point (B, C, *S) tensor"
    near = _nearest(name, _points(model, calls))
    raise refusal(f"{name!r} is not an insertion point: it {reason}", model, calls, near)


def check_axis(model: nn.Module, name: str, output: Tensor, channels_axis: int) -> None:
    """Raise a ValueError for an axis that is not that of the channels, as the host's own layers show.

    Convolutions and batch norms have the channels in axis 1, linear layers and layer norms in the last one. For a host
    without layers, such as an activation, those beside it count.
    """
    shape = tuple(output.shape)
    if not (-output.ndim < channels_axis < output.ndim and channels_axis != 0):
        raise ValueError(f"channels_axis must be an axis of {name!r}, {shape}, after the first; got {channels_axis}")
    first, last = _widths(model.get_submodule(name))
    where = name
    while where and not first | last:
        where = where.rpartition(".")[0]
        first, last = _widths(model.get_submodule(where))
    axis = channels_axis % output.ndim
    if shape[1] == shape[-1]:
        return
    norms = [module for module in model.get_submodule(where).modules() if isinstance(module, nn.LayerNorm)]
    normed = {norm.normalized_shape[-1] for norm in norms if _is_layer_norm(norm)}
    is_last = shape[1] not in first and shape[-1] in first | last
    if axis == 1 and (is_last or (shape[-1] in normed and not _has_norm(model.get_submodule(where), shape[1]))):
        tokens = ", and prefix_tokens=1 where a class token comes first" if output.ndim == 3 else ""
        raise ValueError(f"the channels of {name!r} come last, {shape}: give channels_axis=-1{tokens}")
    if axis == output.ndim - 1 and shape[1] in first and shape[-1] not in last:
        raise ValueError(f"the channels of {name!r} are in axis 1, {shape}, not in channels_axis={channels_axis}")


def _widths(host: nn.Module) -> tuple[set[int], set[int]]:
    """The widths of the layers in a module that have their channels in axis 1, and of those that have them last."""
    first, last = set(), set()
    for module in host.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            first.add(module.out_channels)
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            first.add(module.num_features)
        elif isinstance(module, nn.GroupNorm):
            first.add(module.num_channels)
        elif isinstance(module, nn.Linear):
            last.add(module.out_features)
        elif isinstance(module, nn.LayerNorm):
            (last if _is_layer_norm(module) else first).add(module.normalized_shape[-1])
    return first, last


def _is_layer_norm(module: nn.Module) -> bool:
    """Whether it normalises the last axis; timm's LayerNorm2d, for example, derives from it for axis 1."""
    return isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__


def _has_norm(host: nn.Module, width: int) -> bool:
    """Whether a norm in a module has so many channels in axis 1."""
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    norms = [module for module in host.modules() if isinstance(module, kinds)]
    return width in {getattr(norm, "num_features", getattr(norm, "num_channels", None)) for norm in norms}


def _is_point(calls: list[Call]) -> bool:
    if len(calls) != 1:
        return False
    output = calls[0].output
    return isinstance(output, Tensor) and output.ndim >= 3 and output.is_floating_point()


def _points(model: nn.Module, calls: Trace) -> list[str]:
    """`insertion_points` of a model with these calls."""
    modules = dict(model.named_modules())
    return [
        name
        for name, module in modules.items()
        if name
        and CHILD not in name.split(".")
        and _is_point(calls.get(name, []))
        and (list(module.children()) or isinstance(modules[name.rpartition(".")[0]], nn.Sequential))
    ]


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=3)


def refusal(reason: str, model: nn.Module, calls: Trace, preferred: Sequence[str] = ()) -> ValueError:
    """An error of one line: the reason, as many insertion points as there is room for, and how to print all.

    Those in `preferred` come first, then stages, which have the fewest dots in their names.
    """
    points = _points(model, calls)
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
