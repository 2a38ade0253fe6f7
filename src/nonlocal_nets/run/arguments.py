"""The arguments of a command, before the parser sees them."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nonlocal_nets.run import strict_yaml
from nonlocal_nets.run.errors import fail, nearest

# Arguments of the model that only the data can know: linked, so that jsonargparse would drop what a user sets.
FROM_DATA = ("num_classes", "input_size")

NESTED = re.compile(r"(--(?:model|data))\.(?:init_args\.)?(?!init_args\.)(\w+)\.(\w+)")  # --model.blocks.pool


def check_args(args: list[str]) -> None:
    """Refuse what the parser passes over or says less well: configs that are not there or do not parse, linked values.

    The message names file, line and column of what does not parse.
    """
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        option, _, given = arg.partition("=")
        name = option.removeprefix("--model.").removeprefix("init_args.")
        if option.startswith("--model.") and name in FROM_DATA:
            fail(f"{option} comes from the data and cannot be set")
        if option in ("--config", "-c"):
            _check_config(Path(given or following))
        else:
            _check_value(option if given else "the command", given or arg)


def check_verb(verb: str, known: Sequence[str]) -> None:
    """Refuse a first argument that is neither an option nor a verb."""
    if not verb.startswith("-") and verb not in known:
        fail(f"no verb {verb!r}{nearest(verb, known)}; there are {', '.join(known)}")


def _check_value(option: str, text: str) -> None:
    """Of what is no yaml the parser says what is wrong. A value may also be the path of a yaml."""
    if text.endswith((".yaml", ".yml")) and Path(text).is_file():
        _check_files(Path(text), set())
    try:
        strict_yaml.check(text)
    except strict_yaml.StrictError as error:
        fail(f"{option}: {error.problem}")


def _check_files(path: Path, seen: set[Path]) -> Any:
    """The content of a yaml that is in order, and so are those that it names, relative to itself."""
    with _in_the_file(path):
        text = path.read_text()
        strict_yaml.check(text)
        content = yaml.safe_load(text)
    seen.add(path.resolve())
    for name in re.findall(r"^[\s-]*\w+: *(\S+\.ya?ml) *$", text, re.M):
        if (inside := path.parent / name).is_file() and inside.resolve() not in seen:
            _check_files(inside, seen)
    return content


@contextmanager
def _in_the_file(path: Path) -> Iterator[None]:
    """Fails with file, line and column where a yaml does not parse."""
    try:
        yield
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark: Any = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        fail(f"{where}: {getattr(error, 'problem', None) or error}")


def _check_config(path: Path) -> None:
    if not path.is_file():
        fail(f"no config file {str(path)!r}")
    content = _check_files(path, set())
    model = content.get("model") if isinstance(content, dict) else None
    arguments = model.get("init_args") if isinstance(model, dict) else None
    for name in FROM_DATA:
        if isinstance(arguments, dict) and name in arguments:
            fail(f"{path}: model.init_args.{name} comes from the data and cannot be set")


def nested_nulls(args: list[str]) -> list[str]:
    """The same command, with each nested option whose value holds a null written as a mapping.

    jsonargparse 4.47 hands on a value two levels below a class as Python text, in which null is the word None. So
    --model.blocks.pool=null becomes --model.blocks={"pool": null}, which sets the same key and leaves the others.
    """
    return list(_nested_nulls(iter(args)))


def _nested_nulls(args: Iterator[str]) -> Iterator[str]:
    for arg in args:
        option, equals, text = arg.partition("=")
        if not (match := NESTED.fullmatch(option)):
            yield arg
            continue
        text = text if equals else next(args, "")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:  # the parser says what is wrong with it
            value = text
        if has_null(value):
            yield f"{match[1]}.{match[2]}={json.dumps({match[3]: value})}"
        else:
            yield f"{option}={text}"


def has_null(value: Any) -> bool:
    """Whether a value of a yaml is null, or has one inside."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(has_null, inside))
