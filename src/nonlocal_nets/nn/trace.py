"""What the modules of a model get and return in one forward pass."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

Example = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


class Call(NamedTuple):
    """The first argument of a call of a module, and what it returned."""

    input: Any
    output: Any


Calls = dict[str, list[Call]]  # of each module that ran, by the first of its names


class Trace:
    """The modules of a model, and their calls in one forward pass.

    Args:
        model: the model itself, whose modules may have several names.
        calls: of the model, or of a copy.
    """

    def __init__(self, model: nn.Module, calls: Calls) -> None:
        self.kind = type(model).__name__
        self.calls = calls
        self.modules = dict(model.named_modules(remove_duplicate=False))  # by all of their names
        firsts = {module: name for name, module in model.named_modules()}
        self.first = {name: firsts[module] for name, module in self.modules.items()}  # the first of a module's names

    def calls_of(self, name: str) -> list[Call]:
        """The calls of a module, under any of its names; none of one that is not there."""
        return self.calls.get(self.first.get(name, name), [])


def trace(model: nn.Module, example: Example) -> tuple[Trace, Exception | None]:
    """One forward pass of a model, and the error that ended it.

    Computed on the meta device if that works, because a long clip takes half a minute and gigabytes otherwise, and by a
    copy, because a model may keep what it computes. Not if dtypes or devices differ: on the meta device few operations
    check that.

    Args:
        model: any model.
        example: a tensor; a tuple of arguments, or a dict of them by name; or a list, which is one argument, or if the
            model does not run with it, several.
    """
    with suppress(Exception):
        tensors = (*model.parameters(), *model.buffers())
        dtypes = {t.dtype for t in (*tensors_of(example), *tensors) if t.is_floating_point()}
        if len(dtypes) == 1 and len({t.device for t in tensors}) <= 1:
            shapes = copy.deepcopy(model, {id(t): t.to("meta") for t in tensors})
            calls, failure = _pass(shapes, tree_map_only(Tensor, lambda t: t.to("meta"), example))
            if failure is None:
                return Trace(model, calls), None
    calls, failure = _pass(model, example)
    return Trace(model, calls), failure


def tensors_of(example: Example) -> list[Tensor]:
    """The tensors in an example."""
    return [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]


def _pass(model: nn.Module, example: Example) -> tuple[Calls, Exception | None]:
    """A pass without a copy and on the example's own device."""
    if isinstance(example, tuple):
        return _recorded(model, lambda: model(*example))
    if isinstance(example, dict):
        return _recorded(model, lambda: model(**example))
    calls, failure = _recorded(model, lambda: model(example))
    if failure is not None and isinstance(example, list):
        as_several, other_failure = _recorded(model, lambda: model(*example))
        return (calls, failure) if other_failure else (as_several, None)
    return calls, failure


def _recorded(model: nn.Module, run: Callable[[], Any]) -> tuple[Calls, Exception | None]:
    calls: Calls = {}
    handles, failure = [], None
    for name, module in model.named_modules():

        def record(_module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            calls.setdefault(name, []).append(Call(args[0] if args else None, output))

        handles.append(module.register_forward_hook(record))
    try:
        with _evaluating(model), torch.no_grad():
            run()
    except Exception as error:  # whatever a model does with an example, or with a child that it does not expect
        failure = error
    finally:
        for handle in handles:
            handle.remove()
    return calls, failure


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
