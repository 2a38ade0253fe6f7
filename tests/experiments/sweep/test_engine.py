"""What is asked of wandb's engine, and what is made of its answers."""

import warnings

import pytest

pytest.importorskip("sweeps", reason="an extra of its own, see pyproject.toml", exc_type=ImportError)

from nonlocal_nets.experiments.sweep import engine
from nonlocal_nets.experiments.sweep.state import Run
from tests.experiments.sweep.examples import GRID, HYPERBAND, RANGE


def test_a_grid_ends_when_all_of_it_has_been_proposed():
    runs = []
    while (parameters := engine.propose(GRID, runs, "seed")) is not None:
        runs.append(Run(str(len(runs)), parameters, state="running"))
    combinations = [(run.parameters["x"], run.parameters["seed_everything"]) for run in runs]
    assert sorted(combinations) == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]


def test_a_draw_depends_on_its_seed_and_is_a_plain_number():
    config = {**GRID, "method": "random", "parameters": RANGE}
    a, again, b = (engine.propose(config, [], seed)["x"] for seed in ("a", "a", "b"))
    assert a == again != b
    assert type(a) is float


@pytest.mark.parametrize(("goal", "expected"), [("maximize", ["low"]), ("minimize", ["high"])])
def test_the_worse_running_run_is_given_up(goal, expected):
    config = {**GRID, "metric": {"name": "m", "goal": goal}}
    values = {"high": [3.0, 3.1], "low": [1.0, 1.1]}
    runs = [Run(name, {"x": 1}, values=values[name]) for name in values]
    assert engine.given_up(config, runs) == []
    assert engine.given_up({**config, "early_terminate": HYPERBAND}, runs) == expected
    runs = [Run(name, {"x": 1}, "stopped", values=values[name]) for name in values]
    assert engine.given_up({**config, "early_terminate": HYPERBAND}, runs) == []


def test_the_engine_gets_states_histories_and_last_values():
    runs = [Run("a", {"x": 1}, "stopped", values=[2.0, 1.0]), Run("b", {"x": 2}, "failed"), Run("c", {"x": 3})]
    a, b, c = engine.known({"metric": {"name": "m"}}, runs)
    assert (a.name, a.state, a.config) == ("a", "killed", {"x": {"value": 1}})
    assert (a.history, a.summary_metrics) == ([{"m": 2.0}, {"m": 1.0}], {"m": 1.0})
    assert (b.state, b.history, b.summary_metrics, c.state) == ("failed", [], {}, "running")


def test_a_poor_fit_of_bayes_is_not_the_users_concern(monkeypatch):
    """It depends on the order in which runs end whether scikit-learn warns of one."""
    original = engine.engine().next_run

    def warned(config, runs):
        warnings.warn("The optimal value found for dimension 0 of parameter length_scale is close", stacklevel=1)
        return original(config, runs)

    monkeypatch.setattr(engine.engine(), "next_run", warned)
    assert engine.propose(GRID, [], "seed") == {"seed_everything": 0, "x": 1}
