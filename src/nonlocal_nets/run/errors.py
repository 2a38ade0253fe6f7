"""One readable line for what is wrong in a command, where jsonargparse prints its usage and a tree of reasons."""

import argparse
import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from nonlocal_nets.run.help import Help

# What a line of a message becomes: nothing where it says nothing to a user.
REWRITE = [
    (r"(Does not validate against any|Subtypes:|Errors:|Given value).*", ""),
    (r"Subclass types expect one of:", ""),
    (r"a (class path|dict with(out)? class_path).*", ""),
    (r"Option '(?:\w+\.)?(data|model)' is required but not provided.*", r"no \1: give a --config, or --\1=<class>"),
    (r"Expected (a )?<class '[\w.]+'>", ""),  # one of several types: said once, below
    (r'Parser key "(.*)":', r"\1"),
    (r"Problem with given class_path '(?:\w+\.)*(\w+)':", r"\1"),
    (r"Expected a <class '(\w+)'>\. Got value: (.*)", r"expected \1, got \2"),
    (r"Expected a dot import path string: (.*)", r"no class \1"),
    (r"Expected a path but \S+ either not accessible or invalid", ""),
]
UNKNOWN = [  # how jsonargparse says that a name is not known
    r"Option '([\w.]+)' is not accepted.*",
    r"Group '([\w.]+)' does not accept option '([\w.]+)'",
    r"does not accept option '([\w.]+)'",
    r"Unrecognized arguments: --([\w.]+)",
]
LONGEST = 299  # characters of a line
SECRETS = [  # what a path or an address must not show
    (r"(\w:/{1,2})[^\s'\"@]*@", r"\1***@"),
    (r"(?i)((?:key|token|secret|password|signature|sig|credential)\w*=)[^&\s'\"]+", r"\1***"),
    (r"(?i)((?:api_?key|token|secret|password)['\"]?: *['\"]?)[^\s'\",}]+", r"\1***"),
]


class RunError(ValueError):
    """A run cannot begin, or cannot go on exactly. The message is one line."""


def debug() -> bool:
    """Whether the user asked for tracebacks, by JSONARGPARSE_DEBUG=true; jsonargparse accepts true and false only."""
    return os.environ.get("JSONARGPARSE_DEBUG", "").lower() == "true"


def fail(message: str) -> NoReturn:
    """End with exit code 2 and the message on one line of stderr, of at most LONGEST characters and without secrets."""
    name = Path(sys.argv[0]).name.replace("__main__.py", "nonlocal_nets")
    sys.stderr.write(f"{line_of(name or 'train.py', message)}\n")
    raise SystemExit(2)


def line_of(program: str, message: str) -> str:
    """An error in one line of at most LONGEST characters, without secrets."""
    line = masked(f"{program}: error: {' '.join(message.split())}")
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 85]} ... {line[-80:]}"


def masked(text: str) -> str:
    """A text without the secrets in its paths, addresses and options."""
    for pattern, replacement in SECRETS:
        text = re.sub(pattern, replacement, text)
    return text


def readable(message: str, options: Iterable[str] = ()) -> str:
    """The line of a message that says what is wrong, with the nearest names where one is not known.

    Args:
        message: of jsonargparse, or of a constructor that it called: a tree of indented lines.
        options: that the command accepts, such as "--trainer.max_epochs".
    """
    parts = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        for pattern, replacement in REWRITE:
            text = re.sub(f"^{pattern}$", replacement, text)
        if text and text not in parts:
            parts.append(text)
    specific = [part for part in parts if not part.startswith("Not a valid subclass of")]
    text = ": ".join(specific if any(" " in part for part in specific) else parts)
    types = dict.fromkeys(re.findall(r"- Expected (?:a )?<class '(\w+)'>$", message, re.M))
    if types.keys() - {"NoneType"}:
        accepted = " or ".join("null" if name == "NoneType" else name for name in types)
        given = re.search(r"Given value: (.*)", message)
        text += f": expected {accepted}, got {given[1] if given else 'something else'}"
    return _unknown_name(message, text, options) or _option_group(message, text) or text


def _unknown_name(message: str, text: str, options: Iterable[str]) -> str | None:
    """The line about a name that the command or a class does not know; None where all are known."""
    for pattern in UNKNOWN:
        if not (match := re.search(pattern, text)):
            continue
        name = ".".join(filter(None, match.groups()))
        if arguments := _arguments(message):
            return f"{text[: match.start()]}no argument {name!r}{nearest(name, arguments)}"
        return f"no argument --{name}{nearest(f'--{name}', options)}"
    return None


def _option_group(message: str, text: str) -> str | None:
    """The line about a value for a whole group of options, such as --model.blocks=paper-5; None where there is none."""
    match = re.search(r"(\w+): Unable to load config ['\"](.*?)['\"]", text)
    names = [name for name in _arguments(message) if match and name.startswith(f"{match[1]}.")]
    if match is None or not names:
        return None
    return f"{text[: match.start()]}{match[1]} is a group of options, got {match[2]!r}; it has {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are like `name`, or that end like it: --model.lr is --model.optimizer.lr."""
    ends = {known_name.rpartition(".")[2]: known_name for known_name in known}
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    near += [ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], list(ends), n=1, cutoff=0.7)]
    return f"; nearest: {', '.join(dict.fromkeys(near))}" if near else ""


def _arguments(message: str) -> list[str]:
    """The arguments of the class that a message names last, and the fields of those that are groups of options."""
    paths = re.findall(r"class_path '([\w.]+)'", message)
    if not paths:
        return []
    module, _, name = paths[-1].rpartition(".")
    names = []
    try:
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    except (ImportError, AttributeError, ValueError):  # the message is about a class that is not there
        return []
    for parameter in parameters.values():
        group = parameter.default if is_dataclass(parameter.default) else None
        names += [parameter.name] if group is None else [f"{parameter.name}.{field.name}" for field in fields(group)]
    return names


class Parser(LightningArgumentParser):
    """A parser with a help to read, that ends with one line and exit code 2, or JSONARGPARSE_DEBUG=true with all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given: dict[str, Any] = {"formatter_class": Help, "allow_abbrev": False} | kwargs
        super().__init__(*args, **given)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if debug() or not self.exit_on_error:
            super().error(message, ex)
        parser: argparse.ArgumentParser = getattr(ex, "subcommand_parser", None) or self
        fail(readable(message, parser._option_string_actions))
