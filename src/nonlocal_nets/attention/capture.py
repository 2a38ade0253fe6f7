"""What the blocks of a model see in a forward pass, sample by sample."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from nonlocal_nets.nn import NonLocalBlock, blocks


class Activations(NamedTuple):
    """What a block sees and gives for one sample; there is no axis of the batch."""

    x: Tensor  # its input (C, *S)
    z: Tensor  # its output (C, *S)
    mask: Tensor | None  # bool (*S), the valid positions; None: all


See = Callable[[str, NonLocalBlock, int, Activations], None]


@contextmanager
def capture(model: nn.Module, see: See) -> Iterator[None]:
    """Within `with`, call `see` for each sample as soon as a block has run on it.

    At once and not afterwards, since later layers may overwrite the tensors, and FSDP takes the weights away.

    Args:
        model: with blocks; `with` encloses one forward pass, or one step of a Trainer.
        see: gets the block's name, the block, the sample's index and its activations. A batch may come through a block
            in parts, such as one video after the other: the index counts on.
    """
    handles = [block.register_forward_hook(_Hook(name, see), with_kwargs=True) for name, block in blocks(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    """The forward hook of one block, which counts its samples."""

    def __init__(self, name: str, see: See) -> None:
        self.name, self.see, self.past = name, see, 0

    def __call__(self, block: NonLocalBlock, args: tuple[Tensor, ...], kwargs: dict[str, Any], z: Tensor) -> None:
        given = dict(zip(("x", "mask"), args, strict=False)) | kwargs
        x, mask = given["x"], given.get("mask")
        for k in range(len(z)):
            seen = Activations(x[k], z[k], None if mask is None else mask[k])
            self.see(self.name, block, self.past + k, seen)
        self.past += len(z)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        """A copy of the model is not watched; and what `see` refers to, such as a Trainer, cannot be copied."""
        return _Hook(self.name, lambda name, block, index, seen: None)
