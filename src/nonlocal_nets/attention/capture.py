"""What the blocks of a model see in a forward pass, sample by sample."""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from nonlocal_nets.nn import blocks


class Activations(NamedTuple):
    """What a block sees and gives for one sample; there is no axis of the batch."""

    x: Tensor  # its input (C, *S)
    z: Tensor  # its output (C, *S)
    mask: Tensor | None  # bool (*S), the valid positions; None: all


See = Callable[[str, int, Activations], None]


@contextmanager
def watch(model: nn.Module, see: See) -> Iterator[None]:
    """Within `with`, call `see` for every block that runs and every sample in it, with views of the tensors.

    Args:
        model: with blocks; `with` encloses one forward pass, or one step of a Trainer.
        see: gets the name of the block, the index of the sample and its activations. A batch may come through a block
            in parts, such as one video after the other: the index counts on.
    """
    handles = [block.register_forward_hook(_Hook(name, see), with_kwargs=True) for name, block in blocks(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture(model: nn.Module, samples: Container[int]) -> Iterator[dict[str, dict[int, Activations]]]:
    """Within `with`, keep what each block sees of some samples: by the block's name and the sample's index.

    These are copies: the rest of the batch can be freed, and layers that work in place do not change them.
    """
    captured: dict[str, dict[int, Activations]] = {name: {} for name in blocks(model)}

    def keep(name: str, index: int, seen: Activations) -> None:
        if index in samples:
            x, z, mask = seen
            mask = None if mask is None else mask.clone()
            captured[name][index] = Activations(x.detach().clone(), z.detach().clone(), mask)

    with watch(model, keep):
        yield captured


class _Hook:
    """The forward hook of one block, which counts its samples."""

    def __init__(self, name: str, see: See) -> None:
        self.name, self.see, self.past = name, see, 0

    def __call__(self, _block: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], z: Tensor) -> None:
        given = dict(zip(("x", "mask"), args, strict=False)) | kwargs
        x, mask = given["x"], given.get("mask")
        for k in range(len(z)):
            self.see(self.name, self.past + k, Activations(x[k], z[k], None if mask is None else mask[k]))
        self.past += len(z)
