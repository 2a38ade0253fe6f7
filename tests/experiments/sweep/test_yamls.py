"""Each yaml of configs/sweeps is a sweep by wandb's own schema, and the command line takes each of its commands."""

import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("sweeps", reason="an extra of its own, see pyproject.toml", exc_type=ImportError)

from nonlocal_nets.experiments.sweep.config import command
from nonlocal_nets.experiments.sweep.engine import engine
from nonlocal_nets.run.cli import main as train
from tests.build import build

ROOT = Path(__file__).parents[3]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def header(path):
    return re.match(r"(#.*\n)+", path.read_text())[0]


def variants(path):
    """The sweep itself, and the sweeps of other configs that its header names: (sweep, config of train.py)."""
    config = yaml.safe_load(path.read_text())
    yield config, config["command"][5]
    for other, name, values in re.findall(r"^# Also +for --config (\S+)(?: with (\S+) (\[.*\]))?$", header(path), re.M):
        changed = yaml.safe_load(path.read_text())
        changed["command"][5] = other
        if name:
            changed["parameters"][name]["values"] = yaml.safe_load(values)
        yield changed, other


def combinations(config):
    """All combinations of a grid with its first seed; for a range, its ends and its middle."""
    choices = {}
    for name, parameter in config["parameters"].items():
        values = parameter.get("values") or [parameter.get("value", parameter.get("min"))]
        choices[name] = values[:1] if name == "seed_everything" else values
        if "max" in parameter:
            choices[name] = [parameter["min"], (parameter["min"] * parameter["max"]) ** 0.5, parameter["max"]]
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


COMMANDS = [
    pytest.param(
        config,
        parameters,
        id="-".join([path.stem, Path(fits).stem, *map(str, parameters.values())]),
        marks=[pytest.mark.slow] * (k > 0 or place > 0),
    )
    for path in SWEEPS
    for k, (config, fits) in enumerate(variants(path))
    for place, parameters in enumerate(combinations(config))
]


def test_the_papers_questions_are_there_for_each_kind_of_data():
    assert {path.stem for path in SWEEPS} == {"pairwise", "stage", "depth", "spacetime", "subsampling", "lr"}
    for path in SWEEPS:
        kinds = {fits.split("/")[1] for _, fits in variants(path)}
        assert kinds == ({"video"} if path.stem == "spacetime" else {"image", "sequence", "video"}), path.name


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_each_yaml_is_a_sweep_by_wandbs_schema_and_its_header_has_the_commands(path):
    for config, _ in variants(path):
        assert engine().config.schema_violations_from_proposed_config(config) == []
    name = path.relative_to(ROOT)
    assert f"# Command   python train.py sweep {name} --processes 2\n" in header(path)
    assert f"# wandb     wandb sweep {name} " in header(path)
    assert {"Source", "Time"} <= set(re.findall(r"^# (\w+)  ", header(path), re.M))
    config = yaml.safe_load(path.read_text())
    assert config["command"][:5] == ["${env}", "python", "${program}", "fit", "--config"]
    assert config["command"][-2:] == ["configs/trainer/wandb.yaml", "${args}"]
    experiment = yaml.safe_load((ROOT / config["command"][5]).read_text())
    assert (config["name"], config["project"]) == (path.stem, experiment["project"])


@pytest.mark.parametrize(("config", "parameters"), COMMANDS)
def test_each_combination_is_taken_by_the_command_line_and_builds_its_network(config, parameters, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    args = command(config, parameters)
    assert args[:4] == ["/usr/bin/env", "python", "train.py", "fit"]
    with pytest.raises(SystemExit) as stop:
        train([*args[3:], "--print_config"])
    assert not stop.value.code
    resolved = yaml.safe_load(capsys.readouterr().out)
    model = resolved["model"]["init_args"]
    for name, value in parameters.items():
        if name.startswith("model."):
            expected = yaml.safe_load(value) if isinstance(value, str) else value
            found = model
            for key in name.split(".")[1:]:
                found = found[key]
            assert found == expected
    sizes = {"image": (3, 64, 64), "video": (3, 16, 64, 64), "sequence": (16, 64)}
    kind = config["command"][5].split("/")[1]
    task = getattr(sys.modules["nonlocal_nets.tasks"], resolved["model"]["class_path"].rpartition(".")[2])
    with torch.device("meta"):  # without memory and time
        build(task, model | {"num_classes": 4, "input_size": sizes[kind]})


def test_each_proposal_of_a_grid_comes_once(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in SWEEPS:
        config = yaml.safe_load(path.read_text())
        if config["method"] == "grid":
            runs = []
            while (run := engine().next_run(config, runs)) is not None:
                runs.append(run)
            seeds = len(config["parameters"]["seed_everything"]["values"])
            assert len({json.dumps(run.config) for run in runs}) == len(runs) == seeds * len(list(combinations(config)))
