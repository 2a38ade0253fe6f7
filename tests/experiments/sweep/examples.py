"""Sweeps of tests/sweep_program.py, whose metric is x + epoch / 10 + seed / 100 in epochs 0, 1 and 2."""

import csv
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tests" / "sweep_program.py"
GRID = {
    "name": "try",
    "project": "project",
    "program": str(PROGRAM),
    "method": "grid",
    "metric": {"name": "val/accuracy", "goal": "maximize"},
    "parameters": {"x": {"values": [1, 3, 2]}, "seed_everything": {"values": [0, 1]}},
    "command": ["${env}", "python", "${program}", "fit", "${args}"],
}
HYPERBAND = {"type": "hyperband", "min_iter": 1, "eta": 3}
RANGE = {"x": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}}


def written(config=GRID, **changes):
    """The path of a yaml with a config."""
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump({**config, **changes}, sort_keys=False))
    return str(path)


def with_args(*args):
    return [*GRID["command"][:-1], *args, "${args}"]


def csv_of(sweep):
    with (sweep.state.folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))
