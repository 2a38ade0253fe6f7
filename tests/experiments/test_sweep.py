"""Sweeps run: by our runner, and by wandb's own client.

No server here: the client talks to tests/wandb_server.py, behind which wandb's own engine proposes.
"""

import csv
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("sweeps", reason="an extra of its own, see pyproject.toml", exc_type=ImportError)

from nonlocal_nets.experiments import sweep, sweep_config, sweep_results
from tests.wandb_server import Server

ROOT = Path(__file__).parents[2]
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
LR = {"x": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "POLL", 0.02)
    state, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # the engine's
    yield
    random.setstate(state)
    np.random.set_state(numpys)  # noqa: NPY002


def written(config=GRID, **changes):
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump({**config, **changes}, sort_keys=False))
    return str(path)


def with_words(*words):
    return [*GRID["command"][:-1], *words, "${args}"]


def table(found):
    with (found.folder / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


# The runner


def test_a_grid_in_full_with_its_csv_its_table_and_its_picture(capsys):
    found = sweep.main([written(), "--processes", "3"])
    rows = table(found)
    assert {(row["x"], row["seed_everything"]) for row in rows} == set(itertools.product("132", "01"))
    for row in rows:
        best = float(row["x"]) + 0.2 + int(row["seed_everything"]) / 100
        assert float(row["val/accuracy, best"]) == float(row["val/accuracy, last"]) == pytest.approx(best)
        assert (row["state"], row["validations"], row["folder"]) == ("finished", "3", f"runs/project/{row['run']}")
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| x=")]
    assert lines[0] == "| x=3 | 3.205 ± 0.007 | 3.200 to 3.210 | 2 |", "the best first"
    assert len(lines) == 3
    assert f"{rows[0]['run']}: /usr/bin/env python {PROGRAM} fit --seed_everything=0 --x=1" in printed
    assert (found.folder / "sweep.png").read_bytes()[1:4] == b"PNG"

    states = {path: path.stat().st_mtime_ns for path in found.folder.glob("*.json")}
    sweep.main([written(), "--processes", "3"])
    assert "fit" not in capsys.readouterr().out, "all had ended"
    assert states == {path: path.stat().st_mtime_ns for path in found.folder.glob("*.json")}


def test_as_many_at_once_as_wanted_and_not_more(monkeypatch):
    counts = []
    collect = sweep.Sweep.collect
    monkeypatch.setattr(sweep.Sweep, "collect", lambda self: counts.append(len(self.children)) or collect(self))
    sweep.main([written(command=with_words("--seconds", 0.05)), "--processes", "2", "--runs", "4"])
    assert max(counts) == 2


def test_told_to_end_it_tells_its_runs_and_goes_on_where_they_were(monkeypatch, capsys):
    path = written(command=with_words("--seconds", 0.2), parameters={"x": {"values": [1, 2, 3]}})
    collect = sweep.Sweep.collect

    def told(self):
        collect(self)
        if all(run.values for run in self.runs[:2]) and self.children:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sweep.Sweep, "collect", told)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="130"):
        sweep.main([path, "--processes", "2"])
    assert signal.getsignal(signal.SIGTERM) is before
    assert "--ckpt_path" not in capsys.readouterr().out
    (folder,) = Path("runs/sweeps").iterdir()
    assert [json.loads(path.read_text())["state"] for path in sorted(folder.glob("*.json"))] == ["running"] * 2

    monkeypatch.setattr(sweep.Sweep, "collect", collect)
    found = sweep.main([path, "--processes", "2"])
    assert capsys.readouterr().out.count("--ckpt_path=last") == 2
    assert [(row["state"], row["validations"]) for row in table(found)] == [("finished", "3")] * 3
    assert len(list(Path("runs/project").glob("*-000/csv/*"))) == 2
    assert len(found.runs) == 3


def test_runs_that_are_behind_are_ended_early():
    path = written(
        parameters={"x": {"values": [3, 1]}},
        early_terminate=HYPERBAND,
        command=with_words("--epochs", 60, "--seconds", 0.05),
    )
    found = sweep.main([path, "--processes", "2"])
    good, bad = table(found)
    assert (good["state"], good["validations"]) == ("finished", "60")
    assert bad["state"] == "stopped"
    assert int(bad["validations"]) < 40
    assert [run.state for run in found.known()] == ["finished", "killed"]


def test_random_draws_follow_from_the_sweep_alone():
    drawn = []
    for changes in ({}, {}, {"description": "another sweep"}):
        found = sweep.main([written(method="random", parameters=LR, run_cap=2, **changes)])
        drawn.append([run.parameters["x"] for run in found.runs])
        for path in found.folder.glob("*"):
            path.unlink()
    assert len(set(drawn[0])) == 2
    assert all(0.001 <= x <= 0.1 for x in drawn[0])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_bayes_proposes_with_regard_to_what_came_out():
    quadratic = {**LR, "seed_everything": {"value": 0}}
    found = sweep.main([written(method="bayes", parameters=quadratic), "--runs", "6", "--processes", "2"])
    xs = [run.parameters["x"] for run in found.runs]
    assert len(set(xs)) == 6
    assert {row["state"] for row in table(found)} == {"finished"}


def test_a_poor_fit_of_bayes_is_not_the_users_concern(monkeypatch):
    """It depends on the order in which runs end whether scikit-learn warns of one."""
    propose = sweep_config.engine().next_run

    def warned(config, runs):
        if runs:
            warnings.warn("The optimal value found for dimension 0 of parameter length_scale is close", stacklevel=1)
        return propose(config, runs)

    monkeypatch.setattr(sweep_config.engine(), "next_run", warned)
    assert len(sweep.main([written(parameters={"x": {"value": 1}})]).runs) == 1


def test_a_run_that_fails_does_not_end_the_sweep_and_is_tried_again(capsys):
    path = written(parameters={"x": {"values": [1, 2000, 2]}})
    for _ in range(2):
        with pytest.raises(SystemExit, match="2"):
            sweep.main([path])
        printed = capsys.readouterr()
        assert "exit code 1: error: x is 2000.0" in printed.out
        assert re.search(r"error: failed: try-\w+-001; see", printed.err)
    (folder,) = Path("runs/sweeps").iterdir()
    states = [json.loads(path.read_text())["state"] for path in sorted(folder.glob("*.json"))]
    assert states == ["finished", "failed", "finished"]
    assert len(list(Path("runs/project").glob("*/csv/*"))) == 4, "the others ran once"


def test_a_command_that_fails_from_the_first_is_not_tried_to_the_end(capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written(command=with_words("--nonsense"))])
    printed = capsys.readouterr()
    assert printed.out.count("exit code 2") == 3, "of 6"
    assert "unrecognized arguments: --nonsense" in printed.out
    assert "the first runs failed" in printed.err


def test_a_metric_that_is_not_logged_ends_the_sweep_with_the_names_that_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written(command=with_words("--metric", "val/loss"))])
    message = "has no metric 'val/accuracy'; there are: train/loss, val/loss\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "guess"}, "'guess' is not one of ['bayes', 'random', 'grid', 'custom']"),
        ({"parameters": {"x": {"min": 0.1, "max": 0.2}}}, "Parameter x is a disallowed type with grid search"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "x: min 2 is not less than max 1"),
        ({"parameters": {"x": {"values": [1, [None]]}}}, "x: a null reaches the command as the word None"),
        ({"method": "random"}, "a random search has no end of its own; give --runs or run_cap"),
        ({"program": "absent.py"}, "no program 'absent.py' in "),
        ({"command": ["python", "${program}", "fit ${args}"]}, "command: 'fit ${args}' is no item by itself of args, "),
        ({"metric": {"name": "m", "target": 1}}, "metric.target is not supported here, run_cap is"),
        ({"colour": 1}, "Additional properties are not allowed ('colour' was unexpected)"),
    ],
)
def test_what_is_wrong_in_a_sweep_is_one_line_before_any_work(changes, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written(**changes)])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_wrong_files_and_numbers_are_one_line(capsys):
    Path("broken.yaml").write_text("a: [")
    Path("list.yaml").write_text("[]")
    for words, message in (
        (["absent.yaml"], "absent.yaml: No such file or directory"),
        (["broken.yaml"], "broken.yaml: while parsing"),
        (["list.yaml"], "list.yaml: Sweep config must be parsable as a JSON object."),
        ([written(), "--processes=0"], "--processes must be at least 1, got 0"),
        ([written(), "--runs=0"], "--runs must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            sweep.main(words)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_without_the_engine_the_error_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sweeps", None)
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written()])
    assert "pip install --no-deps sweeps" in capsys.readouterr().err


def test_the_history_of_a_resumed_run_has_each_step_once(tmp_path):
    starts = {
        "version_9": "epoch,step,a,b\n0,4,0.1,\n0,9,,7\n1,14,0.2,\n",
        "version_10": "step,a\n14,0.3\n19,0.4\n24,0.",
    }
    for name, text in starts.items():
        (tmp_path / "runs" / "project" / "one" / "csv" / name).mkdir(parents=True)
        (tmp_path / "runs" / "project" / "one" / "csv" / name / "metrics.csv").write_text(text)
    assert sweep_results.history("one", "a") == ([0.1, 0.3, 0.4], ["a", "b"]), "the last row is not whole"
    assert sweep_results.history("other", "a") == ([], [])


def test_a_picture_of_ranges_and_of_choices(tmp_path):
    config = {"metric": {"name": "m"}, "parameters": {**LR, "f": {"values": ["a", "b"]}}}
    runs = [
        sweep_results.Run(str(k), {"x": 0.01 * (k + 1), "f": "ab"[k % 2]}, values=[k / 4] * (k > 0)) for k in range(4)
    ]
    sweep_results.picture(config, runs, True, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


@pytest.mark.slow
def test_killed_it_waits_for_its_runs_and_goes_on():
    path = written(command=with_words("--seconds", 1), parameters={"x": {"values": [1, 2]}})
    command = [sys.executable, "-m", "nonlocal_nets.experiments.sweep", path]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list(Path("runs").glob("project/*/epoch")):
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert [(run["state"], len(run["values"])) for run in map(json.loads, _states())] == [("finished", 3)] * 2
    assert done.stdout.count("--ckpt_path=last") == 1


def _states():
    return [path.read_text() for path in sorted(Path("runs").glob("sweeps/*/*.json"))]


# wandb's own client


def client(server, *words, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for the `python` of the commands
    environment = os.environ | server.environment | {"WANDB_MODE": "offline", "PATH": path} | environment
    command = [sys.executable, "-m", "wandb", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stderr


def swept_by_wandb(server, path):
    """The commands that the agent ran."""
    said = client(server, "sweep", path)
    (agent,) = re.findall(r"wandb agent (\S+)", said)
    log = client(server, "agent", agent)
    return re.findall(r"About to run command: (.*)", log)


@pytest.mark.slow
def test_wandb_sweep_and_agent_run_a_grid_in_full_with_the_commands_that_ours_gives(tmp_path):
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    config = yaml.safe_load((ROOT / "configs" / "sweeps" / "pairwise.yaml").read_text())
    config["parameters"]["seed_everything"]["values"] = [7]
    small = ["--data.train_samples=8", "--data.val_samples=4", "--data.batch_size=4", "--trainer.max_epochs=1"]
    config["command"][-1:] = [*small, "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "${args}"]
    with Server() as server:
        ran = swept_by_wandb(server, written(config))
    names = config["parameters"]["model.blocks.pairwise"]["values"]
    assert ran == [
        " ".join(sweep_config.command(config, {"model.blocks.pairwise": name, "seed_everything": 7})) for name in names
    ]
    assert [run.state for run in server.runs] == ["finished"] * 4
    assert {"UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat"} <= set(server.asked)
    for name, run in zip(names, server.runs, strict=True):
        assert 0 <= run.history[0]["val/accuracy"] <= 1
        (path,) = Path("runs/cued_digits").glob(f"{run.name}/wandb/offline-run-*/run-{run.name}.wandb")
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(path)]
        summary = json.loads(subprocess.run(inspect, check=True, capture_output=True, text=True).stdout)
        assert (summary["config"]["model.blocks.pairwise"], summary["config"]["seed_everything"]) == (name, 7)
        assert summary["config"]["model"]["init_args"]["pairwise"] == name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_wandbs_agent_runs_draws(method):
    with Server(limit=2) as server:
        ran = swept_by_wandb(server, written(method=method, parameters=LR))
    xs = [float(re.search(r"--x=(\S+)", words)[1]) for words in ran]
    assert len(set(xs)) == 2
    assert all(0.001 <= x <= 0.1 for x in xs)
    assert [run.history[-1]["val/accuracy"] for run in server.runs] == pytest.approx([x + 0.2 for x in xs])


@pytest.mark.slow
def test_wandbs_agent_ends_a_run_that_is_behind():
    path = written(
        parameters={"x": {"values": [3, 1]}},
        early_terminate=HYPERBAND,
        command=with_words("--epochs", 40, "--seconds", 0.5),
    )
    with Server() as server:
        swept_by_wandb(server, path)
    good, bad = server.runs
    assert server.stopped == [bad.name]
    assert (good.state, len(good.history)) == ("finished", 40)
    assert bad.state == "killed"
    assert len(bad.history) < 40


@pytest.mark.slow
def test_the_runner_told_to_end_goes_on_with_the_real_command(tmp_path, monkeypatch, capsys):
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    config = yaml.safe_load((ROOT / "configs" / "sweeps" / "depth.yaml").read_text())
    config["parameters"]["seed_everything"]["values"] = [0]
    config["parameters"]["model.blocks.at"]["values"] = ["none", "{layer2: 1, layer3: 2}"]
    small = ["--data.train_samples=8", "--data.val_samples=4", "--data.batch_size=4", "--trainer.max_epochs=30"]
    config["command"][-1:] = [*small, "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "${args}"]
    path = written(config)
    collect = sweep.Sweep.collect

    def told(self):
        collect(self)
        if len(self.runs) == 2 and all(run.values for run in self.runs):
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep.Sweep, "collect", told)
    with pytest.raises(SystemExit, match="130"):
        sweep.main([path, "--processes", "2"])
    monkeypatch.setattr(sweep.Sweep, "collect", collect)
    (folder,) = Path("runs/sweeps").iterdir()
    begun = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert all(run["state"] == "running" and 0 < len(run["values"]) < 30 for run in begun)

    found = sweep.main([path, "--processes", "2"])
    assert capsys.readouterr().out.count("--ckpt_path=last") == 2
    assert [(row["state"], row["validations"]) for row in table(found)] == [("finished", "30")] * 2
    for run in found.runs:
        folder = Path("runs/cued_clips") / run.id
        resolved = yaml.safe_load((folder / "config.yaml").read_text())
        assert resolved["model"]["init_args"]["blocks"] == yaml.safe_load(run.parameters["model.blocks.at"])
        assert len(list(folder.glob("wandb/offline-run-*"))) == len(list(folder.glob("csv/*"))) == 2
