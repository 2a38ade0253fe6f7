"""What a sweep's yaml says, checked before any work, and the command of a run."""

import re
import warnings
from pathlib import Path
from typing import Any

import yaml

INSTALL = "pip install --no-deps sweeps && pip install jsonref jsonschema pydantic scikit-learn scipy"
MACRO = re.compile(r"\$\{(?!envvar:)(\w+)\}")


class SweepError(Exception):
    """What the user has to mend, in one line."""


def engine() -> Any:
    """wandb's own package `sweeps`, which its server proposes runs with.

    Raises:
        SweepError: it, or what it needs, is not installed.
    """
    with warnings.catch_warnings():  # sweeps 0.3.0 configures pydantic as pydantic 1 wanted it
        warnings.simplefilter("ignore")
        try:
            import sweeps
        except ModuleNotFoundError as error:  # without its dependencies: it asks for numpy < 2, which it does not need
            raise SweepError(f"{error}: {INSTALL}") from error
    return sweeps


def read(path: Path) -> dict[str, Any]:
    """A sweep's config that can be run here.

    Raises:
        SweepError: no such file, not yaml, not a sweep by wandb's schema, or something that cannot be run here.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise SweepError(f"{path}: {' '.join(str(error).split())}") from error
    problems = violations(config) or [*_not_here(config)]
    if problems:
        raise SweepError(f"{path}: {'; '.join(problems)}")
    return dict(config)


def violations(config: Any) -> list[str]:
    """What wandb's schema, and the first proposal of its engine, have against a config."""
    sweeps = engine()
    try:
        found = list(sweeps.config.schema_violations_from_proposed_config(config))
        if not found and config["method"] != "custom":
            sweeps.next_run(config, [])
    except Exception as error:  # some things it says by an exception, of any type
        found = [str(error)]
    return list(dict.fromkeys(found))


def _not_here(config: dict[str, Any]) -> list[str]:
    """What the schema lets through and this cannot run, or the command line would not take."""
    problems = [f"no {name!r}" for name in ("program", "metric", "parameters") if name not in config]
    if config["method"] == "custom" or "scheduler" in config:
        problems.append("a scheduler of one's own needs wandb's server")
    if "target" in config.get("metric", {}):
        problems.append("metric.target is not supported here, run_cap is")
    if "program" in config and not Path(config["program"]).is_file():
        problems.append(f"no program {config['program']!r} in {Path.cwd()}")
    for name, parameter in config.get("parameters", {}).items():
        if _has_none([parameter.get("value", 0), parameter.get("values", 0)]):
            problems.append(f'{name}: a null reaches the command as the word None; write "null", "[1, null]"')
    known = {"env", "interpreter", "program", *_arguments({})}
    for word in map(str, config.get("command", [])):
        macros = MACRO.findall(word)
        if macros and (word != f"${{{macros[0]}}}" or macros[0] not in known):
            problems.append(f"command: {word!r} is no item by itself of {', '.join(sorted(known))}")
    return problems


def _has_none(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is None or any(map(_has_none, inside))


def _arguments(parameters: dict[str, Any]) -> dict[str, list[str]]:
    """What ${args} and its variants stand for."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    forms = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    return {name: words for name, words in forms.items() if isinstance(words, list)}


def command(config: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """The words that `wandb agent` would run, by its own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    values = _arguments(parameters)
    values |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [config["program"]]}
    words: list[str] = []
    for word in map(str, create_sweep_command(list(config.get("command", [])))):
        macro = MACRO.fullmatch(word)
        words += values[macro[1]] if macro else [word]
    return words
