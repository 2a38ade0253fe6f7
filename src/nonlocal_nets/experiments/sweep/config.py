"""The yaml of a sweep, checked before any work, and the commands of its runs."""

import re
from pathlib import Path
from typing import Any

import yaml

from nonlocal_nets.experiments.arguments import ExperimentError
from nonlocal_nets.experiments.sweep.engine import violations
from nonlocal_nets.run import strict_yaml
from nonlocal_nets.run.arguments import has_null
from nonlocal_nets.run.folder import expanded

MACRO = re.compile(r"\$\{(?!envvar:)(\w+)\}")
ROOT = "trainer.default_root_dir"


def read(path: Path) -> dict[str, Any]:
    """The config of a sweep that can run here.

    Raises:
        ExperimentError: no such file, not yaml, not a sweep by wandb's schema, or something that only wandb can run.
    """
    try:
        text = path.read_text()
        strict_yaml.check(text)
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path}: {error}") from error
    problems = violations(config) or [*unsupported(config), *ambiguous(config)]
    if problems:
        raise ExperimentError(f"{path}: {'; '.join(problems)}")
    return dict(config)


def unsupported(config: dict[str, Any]) -> list[str]:
    """What wandb's schema accepts and this runner cannot run."""
    problems = [f"no {name!r}" for name in ("metric", "parameters") if name not in config]
    program = config.get("program")
    if needs_program(config) and (program is None or not Path(program).is_file()):
        problems.append("no 'program'" if program is None else f"no program {program!r} in {Path.cwd()}")
    if config["method"] == "custom" or "scheduler" in config:
        problems.append("a custom scheduler needs wandb's server")
    if "goal" not in config.get("metric", {"goal": None}):
        problems.append("no metric.goal, maximize or minimize (without one wandb takes the lowest for the best)")
    if "target" in config.get("metric", {}):
        problems.append("metric.target is not supported here, run_cap is")
    if "value" not in config.get("parameters", {}).get(ROOT, {"value": ""}):
        problems.append(f"{ROOT} cannot be swept: all runs of a sweep are under one root")
    return problems


def needs_program(config: dict[str, Any]) -> bool:
    """Whether a command has the program in it; one such as `python -m nonlocal_nets fit` has not."""
    return "${program}" in map(str, config.get("command") or ["${program}"])


def ambiguous(config: dict[str, Any]) -> list[str]:
    """What would reach the command as something else than the yaml says."""
    problems = []
    for name, parameter in config.get("parameters", {}).items():
        if has_null([parameter.get("value", 0), parameter.get("values", 0)]):
            problems.append(f'{name}: a null reaches the command as the word None; write "null", "[1, null]"')
    known = {"env", "interpreter", "program", *forms_of({})}
    for item in map(str, config.get("command", [])):
        macros = MACRO.findall(item)
        if macros and (item != f"${{{macros[0]}}}" or macros[0] not in known):
            problems.append(f"command: {item!r} is not one of the macros, each an item: {', '.join(sorted(known))}")
    return problems


def forms_of(parameters: dict[str, Any]) -> dict[str, list[str]]:
    """What ${args} and its variants stand for."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    forms = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    return {name: args for name, args in forms.items() if isinstance(args, list)}


def command(config: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """The command that `wandb agent` would run, by its own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command

    values = forms_of(parameters)
    values |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [str(config.get("program"))]}
    args: list[str] = []
    for item in map(str, create_sweep_command(list(config.get("command", [])))):
        macro = MACRO.fullmatch(item)
        args += values[macro[1]] if macro else [item]
    return args


def root(config: dict[str, Any]) -> Path:
    """The folder above the projects of a sweep's runs, which its command sets, or a config that the command names."""
    fixed = {name: item["value"] for name, item in config["parameters"].items() if "value" in item}
    args = command(config, fixed)
    found = "runs"
    for arg, following in zip(args, [*args[1:], ""], strict=True):  # the last one counts
        option, equals, value = arg.partition("=")
        value = value if equals else following
        if option == f"--{ROOT}":
            found = value
        elif option in ("--config", "-c"):
            found = root_in(Path(value)) or found
    return expanded(found)


def root_in(path: Path) -> str | None:
    """The root that a config of train.py sets; None if it sets none. Mistakes in it are reported by the runs."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    trainer = content.get("trainer") if isinstance(content, dict) else None
    return trainer.get("default_root_dir") if isinstance(trainer, dict) else None
