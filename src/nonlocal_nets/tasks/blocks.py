"""Blocks into a task's network, as a config says."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nonlocal_nets.nn import PRESETS, insert

Window = int | Sequence[int | None] | Mapping[str, Sequence[int | None]] | None


def insert_blocks(network: nn.Module, blocks: Any, example: Tensor, window: Window, **block: Any) -> str:
    """Insert blocks into `network`, and tell what they add.

    Args:
        network: gets the blocks.
        blocks: "none", or what `insert` takes.
        example: an input.
        window: of `NonLocalBlock`; or one for each stage that has any, the others attend to all: frame groups in res3
            only are {layer2: [4, null, null]}.
        **block: other arguments of `NonLocalBlock`.

    Raises:
        ValueError: windows by stage where the blocks are not given by stage, or of a stage without blocks; and all of
            `insert`.
    """
    if blocks == "none":
        return "no non-local blocks"
    if not isinstance(window, Mapping):
        return str(insert(network, blocks, example=example, window=window, **block))
    stages = PRESETS.get(blocks, blocks) if isinstance(blocks, str) else blocks
    if not isinstance(stages, Mapping) or not window.keys() <= stages.keys():
        raise ValueError(f"windows by stage, {dict(window)}, need blocks by stage that have these, got {blocks!r}")
    reports = []
    for stage, count in stages.items():
        report = insert(network, {stage: count}, example=example, window=window.get(stage), **block)
        reports.append(str(report))
    return "\n".join(reports)
