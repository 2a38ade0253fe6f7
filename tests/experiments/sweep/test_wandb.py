"""wandb's own client runs the same sweeps.

No server here: the client talks to tests/wandb_server.py, behind which wandb's own engine proposes.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("sweeps", reason="an extra of its own, see pyproject.toml", exc_type=ImportError)

from nonlocal_nets.experiments.sweep.config import command
from tests.experiments.sweep.examples import HYPERBAND, RANGE, ROOT, with_args, written
from tests.wandb_server import Server

PAIRWISE = "model.blocks.pairwise"
pytestmark = pytest.mark.slow


def client(server, *args, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for the `python` of the commands
    environment = os.environ | server.environment | {"WANDB_MODE": "offline", "PATH": path} | environment
    done = subprocess.run(
        [sys.executable, "-m", "wandb", *args], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def swept_by_wandb(server, path):
    """The commands that the agent ran."""
    (agent,) = re.findall(r"wandb agent (\S+)", client(server, "sweep", path))
    log = client(server, "agent", agent)
    return re.findall(r"About to run command: (.*)", log)


def test_wandb_sweep_and_agent_run_a_grid_in_full_with_the_commands_of_our_runner(tmp_path):
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    config = yaml.safe_load((ROOT / "configs" / "sweeps" / "pairwise.yaml").read_text())
    config["parameters"]["seed_everything"]["values"] = [7]
    small = ["--data.train_samples=8", "--data.val_samples=4", "--data.batch_size=4", "--trainer.max_epochs=1"]
    config["command"][-1:] = [*small, "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "${args}"]
    with Server() as server:
        ran = swept_by_wandb(server, written(config))
    names = config["parameters"][PAIRWISE]["values"]
    assert ran == [" ".join(command(config, {PAIRWISE: name, "seed_everything": 7})) for name in names]
    assert [run.state for run in server.runs] == ["finished"] * 4
    assert {"UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"} <= set(server.operations)
    for name, run in zip(names, server.runs, strict=True):
        assert 0 <= run.history[0]["val/accuracy"] <= 1
        (path,) = Path("runs/cued_digits").glob(f"{run.name}/wandb/offline-run-*/run-{run.name}.wandb")
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(path)]
        summary = json.loads(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)
        assert (summary["config"][PAIRWISE], summary["config"]["seed_everything"]) == (name, 7)
        logged = {"model": summary["config"]["model"]["init_args"]}
        for key in PAIRWISE.split("."):
            logged = logged[key]
        assert logged == name


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_wandbs_agent_runs_draws(method):
    with Server(limit=2) as server:
        ran = swept_by_wandb(server, written(method=method, parameters=RANGE))
    xs = [float(re.search(r"--x=(\S+)", args)[1]) for args in ran]
    assert len(set(xs)) == 2
    assert all(0.001 <= x <= 0.1 for x in xs)
    assert [run.history[-1]["val/accuracy"] for run in server.runs] == pytest.approx([x + 0.2 for x in xs])


def test_wandbs_agent_ends_a_run_that_is_behind():
    path = written(
        parameters={"x": {"values": [3, 1]}},
        early_terminate=HYPERBAND,
        command=with_args("--epochs", 40, "--seconds", 0.5),
    )
    with Server() as server:
        swept_by_wandb(server, path)
    good, bad = server.runs
    assert server.stopped == [bad.name]
    assert (good.state, len(good.history)) == ("finished", 40)
    assert bad.state == "killed"
    assert len(bad.history) < 40
