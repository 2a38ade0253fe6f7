"""What a yaml must not have: keys of which all but one would be dropped, and so much that reading it takes minutes."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST, MOST_KEYS, MOST_VALUES = 50, 5_000, 100_000  # of a config; anchors count as often as they are used


class StrictError(yaml.MarkedYAMLError):
    """The yaml is valid, but not as a config."""


@dataclass
class _Node:
    """A mapping or a list that is being read."""

    anchor: str | None
    keys: set[str] | None  # None: a list
    values: int = 1
    parts: int = 0  # its direct keys and values so far
    mappings: int = 0  # keys of it and of all inside


def check(text: str) -> None:
    """Raise a StrictError with line and column. A text that is no yaml passes; what reads it says why."""
    reader = _Reader()
    with suppress(yaml.scanner.ScannerError, yaml.parser.ParserError, yaml.reader.ReaderError):
        for event in yaml.parse(text, Loader=LOADER):
            reader.read(event)


@dataclass
class _Reader:
    """Counts without recursion, and before anything is built."""

    open: list[_Node] = field(default_factory=lambda: [_Node(None, None)])
    sizes: dict[str | None, tuple[int, int]] = field(default_factory=dict)

    def read(self, event: Any) -> None:
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            if len(self.open) > DEEPEST:
                raise _error(f"more than {DEEPEST} values inside one another", event)
            self.open.append(_Node(anchor, set() if isinstance(event, yaml.MappingStartEvent) else None))
        elif isinstance(event, yaml.CollectionEndEvent):
            node = self.open.pop()
            self.sizes[node.anchor] = node.values, node.mappings
            self._add(event, None, node.values, node.mappings)
        elif isinstance(event, yaml.AliasEvent):
            if any(node.anchor == anchor for node in self.open[1:]):
                raise _error(f"the anchor {anchor} is inside itself", event)
            self._add(event, None, *self.sizes.get(anchor, (1, 0)))
        elif isinstance(event, yaml.ScalarEvent):
            self.sizes[anchor] = 1, 0
            self._add(event, event.value, 1, 0)

    def _add(self, event: Any, text: str | None, values: int, keys: int) -> None:
        node = self.open[-1]
        is_key = node.keys is not None and node.parts % 2 == 0
        if node.keys is not None and is_key and text is not None and text != "<<":
            if text in node.keys:
                raise _error(f"the key {text[:50]} is there twice", event)
            node.keys.add(text)
        node.parts += 1
        node.values += values
        node.mappings += keys + is_key
        if node.values > MOST_VALUES or node.mappings > MOST_KEYS:
            raise _error(f"a config has at most {MOST_KEYS} keys and {MOST_VALUES} values, this has more", event)


def _error(problem: str, event: Any) -> StrictError:
    return StrictError(problem=problem, problem_mark=event.start_mark)
