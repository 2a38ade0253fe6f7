"""What is wrong in a sweep is one line before any work; where its runs will be."""

import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("sweeps", reason="an extra of its own, see pyproject.toml", exc_type=ImportError)

from nonlocal_nets.experiments import sweep
from nonlocal_nets.experiments.sweep import config
from tests.experiments.sweep.examples import GRID, with_args, written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "guess"}, "'guess' is not one of ['bayes', 'random', 'grid', 'custom']"),
        ({"parameters": {"x": {"min": 0.1, "max": 0.2}}}, "Parameter x is a disallowed type with grid search"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, "x: min 2 is not less than max 1"),
        ({"parameters": {"x": {"values": [1, [None]]}}}, "x: a null reaches the command as the word None"),
        ({"parameters": {config.ROOT: {"values": ["a", "b"]}}}, "trainer.default_root_dir cannot be swept"),
        ({"method": "random"}, "a random search never ends; give --runs or run_cap"),
        ({"program": "absent.py"}, "no program 'absent.py' in "),
        ({"command": ["python", "${program}", "fit ${args}"]}, "command: 'fit ${args}' is not one of the macros"),
        ({"metric": {"name": "m"}}, "no metric.goal, maximize or minimize"),
        ({"metric": {"name": "m", "goal": "minimize", "target": 1}}, "metric.target is not supported here, run_cap is"),
        ({"colour": 1}, "Additional properties are not allowed ('colour' was unexpected)"),
    ],
)
def test_what_is_wrong_in_a_sweep_is_one_line_before_any_work(changes, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written(**changes)])
    error = capsys.readouterr().err
    assert error.startswith("train.py sweep: error: sweep.yaml: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_key_twice_is_refused(capsys):
    path = Path(written())
    path.write_text(path.read_text() + "name: again\n")
    with pytest.raises(SystemExit, match="2"):
        sweep.main([str(path)])
    assert "the key name is there twice" in capsys.readouterr().err


def test_a_command_without_the_program_needs_none(monkeypatch):
    found = config.read(Path(written(program="absent.py", command=["python", "-m", "nonlocal_nets", "fit", "${args}"])))
    assert config.command(found, {"x": 1}) == ["python", "-m", "nonlocal_nets", "fit", "--x=1"]
    del found["program"]
    Path("sweep.yaml").write_text(yaml.safe_dump(found))
    assert config.command(config.read(Path("sweep.yaml")), {"x": 2})[-1] == "--x=2"


def test_wrong_files_and_numbers_are_one_line(capsys):
    Path("broken.yaml").write_text("a: [")
    Path("list.yaml").write_text("[]")
    Path("file").touch()
    for args, message in (
        (["absent.yaml"], "absent.yaml: No such file or directory"),
        (["broken.yaml"], "broken.yaml: while parsing"),
        (["list.yaml"], "list.yaml: Sweep config must be parsable as a JSON object."),
        ([written(), "--processes=0"], "argument --processes: must be an integer of at least 1, got 0"),
        ([written(), "--runs=0"], "argument --runs: must be an integer of at least 1, got 0"),
        ([written(command=with_args(f"--{config.ROOT}=file"))], "cannot write in file/sweeps/try-"),
    ):
        with pytest.raises(SystemExit, match="2"):
            sweep.main(args)
        error = capsys.readouterr().err
        assert error.startswith("train.py sweep: error: ")
        assert message in error
        assert error.count("\n") == 1


def test_without_the_engine_the_error_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sweeps", None)
    with pytest.raises(SystemExit, match="2"):
        sweep.main([written()])
    assert "pip install --no-deps sweeps" in capsys.readouterr().err


def test_the_last_root_of_a_command_counts(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    Path("root.yaml").write_text("trainer:\n  default_root_dir: from_config\n")
    Path("other.yaml").write_text("model: null\ntrainer:\n  max_epochs: 1\n")
    Path("list.yaml").write_text("[]")
    flag = f"--{config.ROOT}"
    for args, expected in (
        ([], "runs"),
        ([f"{flag}=a"], "a"),
        ([flag, "a", "--x=2"], "a"),
        (["--config", "root.yaml", "--config=other.yaml"], "from_config"),
        (["--config=absent.yaml", "-c", "root.yaml", "--config", "list.yaml"], "from_config"),
        ([f"{flag}=a", "--config", "root.yaml"], "from_config"),
        (["--config", "root.yaml", f"{flag}=a"], "a"),
        ([f"{flag}=${{envvar:SCRATCH}}/runs"], "/scratch/runs"),
    ):
        assert config.root({**GRID, "command": with_args(*args)}) == Path(expected), args
    parameters = {"x": {"values": [1, 2]}, config.ROOT: {"value": "b"}}
    assert config.root({**GRID, "parameters": parameters, "command": with_args(f"{flag}=a")}) == Path("b")
