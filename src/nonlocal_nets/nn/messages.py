"""Parts of one-line error messages."""

import difflib
from collections.abc import Iterable


def shorten(text: str, length: int = 80) -> str:
    """A text that is cut after a number of characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: up to three known ones that are like it, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=cutoff)
    return f"; nearest: {', '.join(near)}" if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
