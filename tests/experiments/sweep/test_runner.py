"""Sweeps of a small program, run as processes."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("sweeps", reason="an extra of its own, see pyproject.toml", exc_type=ImportError)

from nonlocal_nets.experiments import sweep
from tests.experiments.sweep.examples import HYPERBAND, PROGRAM, RANGE, ROOT, csv_of, with_args, written

BLOCKS = "model.blocks.at"
COMMAND = [sys.executable, "-c", "import sys; from nonlocal_nets.experiments import sweep; sweep.main(sys.argv[1:])"]


@pytest.fixture
def collect(monkeypatch):
    """A function that has something done after each look at the running processes."""
    original = sweep.Sweep.collect

    def install(after):
        monkeypatch.setattr(sweep.Sweep, "collect", lambda self: (original(self), after(self)))

    return install


def states():
    return [json.loads(path.read_text()) for path in sorted(Path("runs/sweeps").glob("*/*.json"))]


def test_a_grid_in_full_with_its_csv_its_table_and_its_picture(capsys):
    found = sweep.main([written(), "--processes", "3"])
    rows = csv_of(found)
    assert list(rows[0]) == [
        *("run", "seed_everything", "x", "val/accuracy, best", "val/accuracy, last"),
        *("validations", "state", "seconds", "folder"),
    ]
    assert {(row["x"], row["seed_everything"]) for row in rows} == set(itertools.product("132", "01"))
    for row in rows:
        best = float(row["x"]) + 0.2 + int(row["seed_everything"]) / 100
        assert float(row["val/accuracy, best"]) == float(row["val/accuracy, last"]) == pytest.approx(best)
        assert (row["state"], row["validations"], row["folder"]) == ("finished", "3", f"runs/project/{row['run']}")
    printed = capsys.readouterr().out
    lines = [line.rpartition(" | ")[0] for line in printed.splitlines() if line.startswith("| x=")]
    assert lines == [  # the best first
        "| x=3 | 3.205 ± 0.007 | 3.200 to 3.210 | 2",
        "| x=2 | 2.205 ± 0.007 | 2.200 to 2.210 | 2",
        "| x=1 | 1.205 ± 0.007 | 1.200 to 1.210 | 2",
    ]
    assert f"{rows[0]['run']}: /usr/bin/env python {PROGRAM} fit --seed_everything=0 --x=1" in printed
    assert (found.state.folder / "sweep.png").read_bytes()[1:4] == b"PNG"

    before = {path: path.stat().st_mtime_ns for path in found.state.folder.glob("*.json")}
    sweep.main([written(), "--processes", "3"])
    assert "fit" not in capsys.readouterr().out, "all had finished"
    assert before == {path: path.stat().st_mtime_ns for path in found.state.folder.glob("*.json")}


def test_a_sweep_that_minimises_under_another_root(capsys):
    """The first epoch is the best then."""
    command = with_args("--trainer.default_root_dir", "elsewhere", "--metric=val/loss")
    path = written(metric={"name": "val/loss", "goal": "minimize"}, command=command)
    found = sweep.main([path, "--runs", "4"])
    rows = csv_of(found)
    for row in rows:
        best = float(row["x"]) + int(row["seed_everything"]) / 100
        assert float(row["val/loss, best"]) == pytest.approx(best)
        assert float(row["val/loss, last"]) == pytest.approx(best + 0.2)
        assert row["folder"] == f"elsewhere/project/{row['run']}"
    assert len(rows) == 4
    lines = re.findall(r"^\| (x=\d \| [\d.]+)", capsys.readouterr().out, re.M)
    assert lines == ["x=1 | 1.005", "x=2 | 2.000", "x=3 | 3.000"], "two seeds of the first"
    assert found.state.folder.parent == Path("elsewhere/sweeps")
    assert not Path("runs").exists()


def test_as_many_at_once_as_wanted_and_not_more(collect):
    counts = []
    collect(lambda self: counts.append(len(self.processes)))
    sweep.main([written(command=with_args("--seconds", 0.05)), "--processes", "2", "--runs", "4"])
    assert max(counts) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_its_runs_and_the_same_command_continues_them(number, collect, capsys):
    path = written(command=with_args("--seconds", 0.2), parameters={"x": {"values": [1, 2, 3]}})
    before = signal.getsignal(number)
    collect(lambda self: self.runs and all(run.values for run in self.runs) and os.kill(os.getpid(), number))
    with pytest.raises(SystemExit, match=str(128 + number)):
        sweep.main([path, "--processes", "2"])
    assert signal.getsignal(number) is before
    printed = capsys.readouterr().out
    assert "--ckpt_path" not in printed
    assert "interrupted; the same command continues try-" in printed
    assert [run["state"] for run in states()] == ["running"] * 2

    collect(lambda self: None)
    found = sweep.main([path, "--processes", "2"])
    assert capsys.readouterr().out.count("--ckpt_path=last") == 2
    assert [(row["state"], row["validations"]) for row in csv_of(found)] == [("finished", "3")] * 3
    assert len((next(Path("runs/project").glob("*-000")) / "starts").read_text()) == 2
    assert len(found.runs) == 3


@pytest.mark.parametrize(("goal", "xs"), [("maximize", [3, 1]), ("minimize", [1, 3])])
def test_runs_that_are_behind_are_ended_early(goal, xs):
    """A metric that is minimised rises here: the first value of the good run is its best."""
    path = written(
        parameters={"x": {"values": xs}},
        metric={"name": "val/accuracy", "goal": goal},
        early_terminate=HYPERBAND,
        command=with_args("--epochs", 30, "--seconds", 0.05),
    )
    found = sweep.main([path, "--processes", "2"])
    good, bad = csv_of(found)
    assert (good["state"], good["validations"]) == ("finished", "30")
    assert bad["state"] == "stopped"
    assert int(bad["validations"]) < 20
    assert float(good["val/accuracy, best"]) == pytest.approx(xs[0] + (2.9 if goal == "maximize" else 0))


def test_a_run_that_ignores_the_signal_is_killed(monkeypatch):
    monkeypatch.setattr(sweep.process, "PATIENCE", 0.1)
    Path("deaf.py").write_text("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(60)")
    found = sweep.Sweep(Path(written(command=["python", "-u", "deaf.py"])), 1)
    lock = found.state.lock()
    run = found.next()
    found.start(run, lock)
    while "deaf" not in found.state.log(run).read_text():
        time.sleep(0.05)
    started = time.monotonic()
    found.end()
    lock.close()
    assert 0.1 < time.monotonic() - started < 30, "by itself it would end after 60 s"
    assert states()[0]["state"] == "running"


def test_random_draws_follow_from_the_sweep_alone():
    drawn = []
    for changes in ({}, {}, {"description": "another sweep"}):
        found = sweep.main([written(method="random", parameters=RANGE, run_cap=2, **changes), "--processes=2"])
        drawn.append([run.parameters["x"] for run in found.runs])
        for path in found.state.folder.glob("*"):
            path.unlink()
    assert len(set(drawn[0])) == 2
    assert all(0.001 <= x <= 0.1 for x in drawn[0])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_bayes_proposes_as_many_as_wanted():
    quadratic = {**RANGE, "seed_everything": {"value": 0}}
    found = sweep.main([written(method="bayes", parameters=quadratic), "--runs", "6", "--processes", "2"])
    xs = [run.parameters["x"] for run in found.runs]
    assert len(set(xs)) == 6
    assert {row["state"] for row in csv_of(found)} == {"finished"}


def test_a_run_that_fails_does_not_end_the_sweep_and_is_tried_again(capsys):
    path = written(parameters={"x": {"values": [1, 2000, 2]}})
    for _ in range(2):
        with pytest.raises(SystemExit, match="2"):
            sweep.main([path])
        printed = capsys.readouterr()
        assert "exit code 1: error: x is 2000.0" in printed.out
        assert re.search(r"^train.py sweep: error: failed: try-\w+-001; see", printed.err)
    assert [run["state"] for run in states()] == ["finished", "failed", "finished"]
    assert sum(len(path.read_text()) for path in Path("runs/project").glob("*/starts")) == 4, "the others ran once"


def test_a_command_that_fails_from_the_first_is_not_tried_to_the_end(capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written(command=with_args("--nonsense"))])
    printed = capsys.readouterr()
    assert printed.out.count("exit code 2") == 3, "of 6"
    assert "unrecognized arguments: --nonsense" in printed.out
    assert "the first runs failed" in printed.err


def test_a_metric_that_is_not_logged_ends_the_sweep_with_the_names_that_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written(command=with_args("--metric", "val/loss"))])
    message = "has no metric 'val/accuracy'; there are: train/loss, val/loss\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.slow
def test_killed_it_waits_for_its_runs_and_goes_on():
    path = written(command=with_args("--until", "seen"), parameters={"x": {"values": [1, 2]}})
    first = subprocess.Popen([*COMMAND, path], stdout=subprocess.DEVNULL)
    while not list(Path("runs").glob("project/*/epoch")):
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    with subprocess.Popen([*COMMAND, path], stdout=subprocess.PIPE, text=True) as second:
        printed = second.stdout.readline()
        assert "waiting for the runs of another start to end" in printed
        Path("seen").touch()
        printed += second.stdout.read()
    assert second.returncode == 0
    assert [(run["state"], len(run["values"])) for run in states()] == [("finished", 3)] * 2
    assert printed.count("--ckpt_path=last") == 1


@pytest.mark.slow
def test_a_signal_and_the_real_command(tmp_path, collect, capsys):
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    config = yaml.safe_load((ROOT / "configs" / "sweeps" / "depth.yaml").read_text())
    config["parameters"]["seed_everything"]["values"] = [0]
    config["parameters"][BLOCKS]["values"] = ["none", "{layer2: 1, layer3: 2}"]
    small = ["--data.train_samples=8", "--data.val_samples=4", "--data.batch_size=4", "--trainer.max_epochs=30"]
    config["command"][-1:] = [*small, "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "${args}"]
    path = written(config)

    def interrupt(self):
        if len(self.runs) == 2 and all(run.values for run in self.runs):
            os.kill(os.getpid(), signal.SIGINT)

    collect(interrupt)
    with pytest.raises(SystemExit, match="130"):
        sweep.main([path, "--processes", "2"])
    collect(lambda self: None)
    assert all(run["state"] == "running" and 0 < len(run["values"]) < 30 for run in states())

    found = sweep.main([path, "--processes", "2"])
    assert capsys.readouterr().out.count("--ckpt_path=last") == 2
    assert [(row["state"], row["validations"]) for row in csv_of(found)] == [("finished", "30")] * 2
    for run in found.runs:
        folder = Path("runs/cued_clips") / run.id
        resolved = yaml.safe_load((folder / "config.yaml").read_text())
        assert resolved["model"]["init_args"]["blocks"]["at"] == yaml.safe_load(run.parameters[BLOCKS])
        assert len(list(folder.glob("wandb/offline-run-*"))) == len(list(folder.glob("events.out.*"))) == 2
