"""What the verbs share on the command line: counts, and errors in one line with exit code 2."""

import argparse
from typing import Any, NoReturn

from nonlocal_nets.run.errors import line_of


class ExperimentError(Exception):
    """What the user has to fix, in one line."""


class Parser(argparse.ArgumentParser):
    """A parser of whole names only, that reports an error in one line, without the usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{line_of(self.prog, message)}\n")


def count(text: str) -> int:
    """The type of an argument that is an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)
