"""Where non-local blocks can go in a model: after modules that return one tensor (B, C, *S) per forward pass."""

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn.messages import shorten

CHILD = "non_local"  # the name of a block in the module after which it runs
LONGEST_MESSAGE = 300  # characters of an error
PRESETS = {  # number of blocks per stage: in res3 and res4 of a ResNet of any depth (Sec. 4.1 and Table 2c)
    "paper-1": {"layer3": 1},
    "paper-5": {"layer2": 2, "layer3": 3},
    "paper-10": {"layer2": 4, "layer3": 6},
}

At = str | Sequence[str] | Mapping[str, int]


def insertion_points(model: nn.Module, example: Tensor) -> list[str]:
    """The modules after which `insert` can put a block: stages, residual blocks and the steps of an nn.Sequential.

    Layers inside of these are not listed, although most of them can be named too.

    Args:
        model: any model.
        example: an input of any batch size.

    Returns:
        Names of modules, in the order of the model.
    """
    outputs, failure = trace(model, example)
    if failure:
        raise failure
    return _points(model, outputs)


def resolve(model: nn.Module, at: At, outputs: dict[str, list[Any]]) -> list[str]:
    """The modules after which a block goes, in the order of the model."""
    preset = isinstance(at, str) and at in PRESETS
    if preset:
        at = PRESETS[str(at)]
    if isinstance(at, Mapping):
        names = [name for stage, count in at.items() for name in _spread(model, stage, count, preset, outputs)]
    else:
        names = [at] if isinstance(at, str) else list(at)
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise refusal(f"no module {name!r} in {type(model).__name__}", model, outputs, _nearest(name, modules))
    names = [_last(modules[name], name) for name in names]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(shorten(f"insertion points must differ, got twice: {', '.join(twice)}", LONGEST_MESSAGE))
    return [name for name in modules if name in names]


def _spread(model: nn.Module, stage: str, count: int, preset: bool, outputs: dict[str, list[Any]]) -> list[str]:
    """`count` of the n residual blocks of a stage, as in the paper: the last but one, or every (n // count)-th."""
    modules = dict(model.named_modules())
    if stage not in modules:
        raise refusal(f"no stage {stage!r} in {type(model).__name__}", model, outputs, _nearest(stage, modules))
    inner = f"{stage}.blocks".removeprefix(".")  # some of timm's stages have a downsampling beside `blocks`
    parent = inner if inner in modules else stage
    children = [name for name, _ in modules[parent].named_children() if name != CHILD]
    units = [f"{parent}.{name}".removeprefix(".") for name in children]
    if preset:
        count = min(count, len(units))
    if not 0 <= count <= len(units):
        reason = f"{count} blocks do not fit into {stage!r}, which has {len(units)} residual blocks or layers"
        raise refusal(reason, model, outputs, units)
    if count == 1:
        return [units[max(len(units) - 2, 0)]]
    return [units[(k + 1) * (len(units) // count) - 1] for k in range(count)]


def _last(module: nn.Module, name: str) -> str:
    """The module that computes the output of `module`: nn.Sequential would run a block among its children."""
    while isinstance(module, nn.Sequential) and len(module):
        child, module = list(module.named_children())[-1]
        name = f"{name}.{child}".removeprefix(".")
    return name


def check_point(model: nn.Module, name: str, outputs: dict[str, list[Any]]) -> Tensor:
    """The output at an insertion point; raises if it is none."""
    calls = outputs.get(name, [])
    output = calls[0] if calls else None
    if CHILD in model.get_submodule(name)._modules:
        reason = f"{name!r} has a child {CHILD!r} already (remove(model) removes inserted blocks)"
        raise ValueError(shorten(reason, LONGEST_MESSAGE))
    if _is_point(calls):
        assert isinstance(output, Tensor)
        return output
    if len(calls) != 1:
        reason = f"runs {len(calls)} times in a forward pass"
    else:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        dtype = f" of {output.dtype}" if isinstance(output, Tensor) and not output.is_floating_point() else ""
        reason = f"returns {given}{dtype}, not a floating-point (B, C, *S) tensor"
    near = _nearest(name, _points(model, outputs))
    raise refusal(f"{name!r} is not an insertion point: it {reason}", model, outputs, near)


def _is_point(calls: list[Any]) -> bool:
    return len(calls) == 1 and isinstance(calls[0], Tensor) and calls[0].ndim >= 3 and calls[0].is_floating_point()


def _points(model: nn.Module, outputs: dict[str, list[Any]]) -> list[str]:
    """`insertion_points` of a model that returned these outputs."""
    modules = dict(model.named_modules())
    return [
        name
        for name, module in modules.items()
        if name
        and CHILD not in name.split(".")
        and _is_point(outputs.get(name, []))
        and (list(module.children()) or isinstance(modules[name.rpartition(".")[0]], nn.Sequential))
    ]


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=3)


def refusal(reason: str, model: nn.Module, outputs: dict[str, list[Any]], preferred: Sequence[str] = ()) -> ValueError:
    """An error of one line: the reason, as many insertion points as there is room for, and how to print all.

    Those in `preferred` come first, then stages, which have the fewest dots in their names.
    """
    points = _points(model, outputs)
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


def trace(model: nn.Module, example: Tensor) -> tuple[dict[str, list[Any]], Exception | None]:
    """What each module returned in one forward pass, a list with an entry per call, and the error that ended the pass.

    Computed on the meta device if that works, because a long clip takes half a minute and gigabytes otherwise, and by a
    copy, because a model may keep what it computes. Not if dtypes or devices differ: on the meta device few operations
    check that.
    """
    with suppress(Exception):
        tensors = (*model.parameters(), *model.buffers())
        dtypes = {t.dtype for t in (example, *tensors) if t.is_floating_point()}
        if len(dtypes) == 1 and len({t.device for t in tensors}) <= 1:
            shapes = copy.deepcopy(model, {id(t): t.to("meta") for t in tensors})
            outputs, failure = _pass(shapes, example.to("meta"))
            if failure is None:
                return outputs, None
    return _pass(model, example)


def _pass(model: nn.Module, example: Tensor) -> tuple[dict[str, list[Any]], Exception | None]:
    """`trace` without a copy and on the example's own device."""
    outputs: dict[str, list[Any]] = {}
    handles, failure = [], None
    for name, module in model.named_modules():

        def record(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            outputs.setdefault(name, []).append(output)

        handles.append(module.register_forward_hook(record))
    try:
        with _evaluating(model), torch.no_grad():
            model(example)
    except Exception as error:  # whatever a model does with an example, or with a child that it does not expect
        failure = error
    finally:
        for handle in handles:
            handle.remove()
    return outputs, failure


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside of the `with`; each module gets its previous mode back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
