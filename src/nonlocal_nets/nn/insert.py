"""Insert non-local blocks into any model, and remove them.

A block becomes a child `non_local` of the module after which it runs, and a forward hook applies it to that module's
output. The model's own names in the state dict stay, so pre-trained weights load before and after. If a module is
called with the keyword argument `mask`, bool (B, *S), True at the valid positions of its output, its block gets it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nonlocal_nets.nn.insertion_points import CHILD, At, check_axis, check_point, child_of, refusal, resolve
from nonlocal_nets.nn.nonlocal_block import NonLocalBlock
from nonlocal_nets.nn.trace import Example, Trace, tensors_of, trace

__all__ = ["At", "Inserted", "Report", "blocks", "check_attached", "insert", "remove"]

WRAPPERS = {  # classes of models, or of parts of them, that blocks would not become a part of
    "DataParallel",
    "DistributedDataParallel",
    "FSDPModule",
    "FullyShardedDataParallel",
    "OptimizedModule",
    "ScriptModule",
}


@dataclass(frozen=True)
class Inserted:
    """An inserted block and what it adds to the model, per sample."""

    name: str
    shape: tuple[int, ...]  # (C, *S)
    parameters: int
    multiply_adds: int
    map_entries: int


class Report(list[str]):
    """The names of the inserted blocks. Printed, it shows what they add to the model; `rows` has the figures."""

    def __init__(self, rows: Sequence[Inserted], model_parameters: int) -> None:
        super().__init__(row.name for row in rows)
        self.rows = tuple(rows)
        self.model_parameters = model_parameters

    def __str__(self) -> str:
        parameters = sum(row.parameters for row in self.rows)
        lines = [
            f"{len(self)} non-local block{'s' if len(self) > 1 else ''}: {parameters:,} parameters "
            f"(+{parameters / max(self.model_parameters, 1):.1%}) and "
            f"{sum(row.multiply_adds for row in self.rows):,} multiply-adds a sample",
            f"{'after':<24} {'(C, *S)':<20} {'parameters':>12} {'multiply-adds':>16} {'map, if it were built':>24}",
        ]
        for row in self.rows:
            host = row.name.removesuffix(CHILD).removesuffix(".")
            size = f"{row.map_entries * 4 / 2**20:,.1f} MiB in float32"
            lines.append(f"{host:<24} {row.shape!s:<20} {row.parameters:>12,} {row.multiply_adds:>16,} {size:>24}")
        return "\n".join(lines)


def insert(
    model: nn.Module,
    at: At,
    *,
    example: Example,
    channels_axis: int = 1,
    prefix_tokens: int = 0,
    **block_kwargs: Any,
) -> Report:
    """Insert non-local blocks into `model`, in place. Its outputs do not change until the blocks have learned.

    Args:
        model: any model that is not wrapped for several devices or compiled yet. It is run on the example in eval mode
            and without gradients, before and after the insertion: on the meta device, by a copy, unless the model looks
            at values.
        at: a preset ("paper-1", "paper-5", "paper-10"), the name of the module after which a block goes, several such
            names, or the number of blocks per stage, as in {"layer2": 2, "layer3": 3}. Within a stage blocks are
            distributed as in the paper: a single one goes before the last residual block, several go after every
            second (third, ...) residual block. So "layer3" is after that stage, and {"layer3": 1} within it. The stages
            of a preset may be in a part of the model, such as `backbone`; in one with fewer residual blocks than a
            preset has blocks, each one is followed by a block.
        example: an input of any batch size, from which the channels and sizes at the insertion points are found: a
            tensor, a tuple of arguments or a dict of them by name, or a list, such as a detector's of images.
        channels_axis: the axis of the channels in the outputs: -1 for transformers and others with channels last,
            (B, *S, C). A block sees these as (B, C, *S).
        prefix_tokens: so many tokens come before the positions in outputs (B, N, C), such as a class token. They are
            left as they are, and no position attends to them.
        **block_kwargs: passed to `NonLocalBlock`.

    Returns:
        The names of the blocks, in the order of the model. Printed, it shows what they add.

    Raises:
        ValueError: nothing to insert, a name that is not an insertion point (see `insertion_points`), more blocks than
            a stage has residual blocks, a module that does not return one (B, C, *S) tensor per forward pass, channels
            that are in another axis, a model that is wrapped or compiled, or an argument that `NonLocalBlock` refuses.
            The model is then unchanged.
    """
    _check_not_wrapped(model)
    traced, failure = trace(model, example)
    if failure:
        raise failure
    names = resolve(traced, at)
    if not names:
        raise refusal(traced, f"nothing to insert at {at!r}")
    made, sizes = {}, {}
    for name in names:
        output = check_point(traced, name)
        check_axis(traced, name, output, channels_axis)
        x = _positions(output, channels_axis, prefix_tokens, name)
        block = NonLocalBlock(x.shape[1], **block_kwargs)
        block.multiply_adds(x.shape[2:])  # raises if pool or window do not fit, before anything is changed
        device = next(model.parameters(), tensors_of(example)[0]).device if output.is_meta else output.device
        made[name] = block.to(device, output.dtype).train(model.get_submodule(name).training)
        sizes[name] = tuple(x.shape[1:])
    model_parameters = sum(p.numel() for p in model.parameters())
    hook = partial(_apply, channels_axis=channels_axis, prefix_tokens=prefix_tokens)
    for name, block in made.items():
        host = model.get_submodule(name)
        host.add_module(CHILD, block)
        host.register_forward_hook(hook, with_kwargs=True)
    _check_runs(model, example, made, traced)
    rows = []
    for name, block in made.items():
        costs = block.multiply_adds(sizes[name][1:]), block.map_size(sizes[name][1:])
        parameters = sum(p.numel() for p in block.parameters())
        rows.append(Inserted(child_of(name, CHILD), sizes[name], parameters, *costs))
    return Report(rows, model_parameters)


def remove(model: nn.Module) -> nn.Module:
    """Remove all inserted blocks from `model`, in place, which is then as it was before `insert`."""
    for host in list(model.modules()):
        _remove_from(host)
    return model


def blocks(model: nn.Module) -> dict[str, NonLocalBlock]:
    """All non-local blocks in `model` by name, whether inserted or part of its code."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NonLocalBlock)}


def check_attached(model: nn.Module) -> None:
    """Raise a ValueError for a block whose host was replaced after the insertion, without the hook that runs it.

    So does nn.SyncBatchNorm.convert_sync_batchnorm, with Lightning `--trainer.sync_batchnorm=true`.
    """
    for name, host in model.named_modules():
        if isinstance(host, _BatchNorm) and CHILD in host._modules and not _hooks(host):
            raise ValueError(
                f"the block after {name!r} does not run: the norm was replaced; put it after another module"
            )


def _apply(
    host: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
    channels_axis: int = 1,
    prefix_tokens: int = 0,
) -> Tensor:
    """The forward hook. It finds its block by name and is no closure, so that models can be copied and pickled."""
    block, mask = host.get_submodule(CHILD), kwargs.get("mask")
    if not (isinstance(mask, Tensor) and mask.dtype == torch.bool):  # such as one that is added to logits
        mask = None
    if channels_axis == 1 and not prefix_tokens:
        return block(output, mask=mask)  # type: ignore[no-any-return]
    x = output.movedim(channels_axis, 1)[:, :, prefix_tokens:]
    z: Tensor = block(x, mask=None if mask is None else mask[:, prefix_tokens:]).movedim(1, channels_axis)
    if not prefix_tokens:
        return z
    axis = 2 if channels_axis % 3 == 1 else 1  # of the tokens
    return torch.cat([output.narrow(axis, 0, prefix_tokens), z], axis)


def _positions(output: Tensor, channels_axis: int, prefix_tokens: int, name: str) -> Tensor:
    """What a block gets of the output of its host.

    Raises:
        ValueError: an axis or a number of tokens that the output does not have.
    """
    shape = tuple(output.shape)
    x = output.movedim(channels_axis, 1)
    if prefix_tokens < 0 or (prefix_tokens and not (x.ndim == 3 and prefix_tokens < x.shape[2])):
        accepted = f"fewer than the tokens (B, N, C) of {name!r}, {shape}"
        raise ValueError(f"prefix_tokens must be {accepted}, got {prefix_tokens} with channels_axis={channels_axis}")
    return x[:, :, prefix_tokens:]


def _check_not_wrapped(model: nn.Module) -> None:
    """Raise a ValueError for a model that is, or holds, one that is wrapped for several devices or compiled."""
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in WRAPPERS]
        kinds += ["compiled"] if module._compiled_call_impl is not None else []
        if kinds:
            what = f"{name!r} is {kinds[0]}" if name else f"this one is {kinds[0]}"
            raise ValueError(f"blocks go into a model before it is wrapped or compiled: {what}, and would ignore them")


def _remove_from(host: nn.Module) -> None:
    for key in _hooks(host):
        del host._forward_hooks[key], host._forward_hooks_with_kwargs[key]
        delattr(host, CHILD)


def _hooks(host: nn.Module) -> list[int]:
    """The keys of the hooks that run a block."""
    return [key for key, hook in host._forward_hooks.items() if getattr(hook, "func", None) is _apply]


def _check_runs(model: nn.Module, example: Example, made: Mapping[str, NonLocalBlock], before: Trace) -> None:
    """Remove the blocks and raise unless each runs once: a module that loops over its children runs its block twice."""
    after, failure = trace(model, example)
    wrong = [name for name in made if len(after.calls_of(child_of(name, CHILD))) != 1]
    if not (wrong or failure):
        return
    for name in made:
        _remove_from(model.get_submodule(name))
    name = (wrong or list(made))[0]
    children = [child_of(name, child) for child, _ in model.get_submodule(name).named_children()]
    reason = f"{name!r} is not an insertion point: it loops over its children, and would run the block as one of them"
    raise refusal(before, reason, children) from failure
