"""wandb's own package `sweeps`, by which its server proposes runs and ends them early."""

import hashlib
import json
import random
import warnings
from typing import Any

import numpy as np

from nonlocal_nets.experiments.arguments import ExperimentError
from nonlocal_nets.experiments.sweep.state import Run

INSTALL = "pip install --no-deps sweeps && pip install jsonref jsonschema pydantic scikit-learn scipy"


def engine() -> Any:
    """The package.

    Raises:
        ExperimentError: it, or something that it needs, is not installed.
    """
    with warnings.catch_warnings():  # sweeps 0.3.0 configures pydantic as pydantic 1 wanted it
        warnings.simplefilter("ignore")
        try:
            import sweeps
        except ModuleNotFoundError as error:  # without its dependencies: it asks for numpy < 2, which it does not need
            raise ExperimentError(f"{error}: {INSTALL}") from error
    return sweeps


def violations(config: Any) -> list[str]:
    """The objections of wandb's schema to a config, and those of the engine to its first proposal."""
    sweeps = engine()
    try:
        found = list(sweeps.config.schema_violations_from_proposed_config(config))
        if not found and config["method"] != "custom":
            sweeps.next_run(config, [])
    except Exception as error:  # some objections are exceptions, of any type
        found = [str(error)]
    return list(dict.fromkeys(found))


def propose(config: dict[str, Any], runs: list[Run], seed: str) -> dict[str, Any] | None:
    """The parameters of the next run, given those so far; None where a grid ends. What is drawn depends on the seed."""
    number = int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  # the engine uses it
    with warnings.catch_warnings():  # bayes fits a few runs as well as that goes
        warnings.filterwarnings("ignore", "The optimal value found for dimension")
        proposed = engine().next_run(config, known(config, runs))
    if proposed is None:
        return None
    values = {name: item["value"] for name, item in proposed.config.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=lambda number: number.item()))  # numpy's numbers
    return plain


def given_up(config: dict[str, Any], runs: list[Run]) -> list[str]:
    """The ids of the runs that `early_terminate` wants to end."""
    if "early_terminate" not in config:
        return []
    return [run.name for run in engine().stop_runs(config, known(config, runs))]


def known(config: dict[str, Any], runs: list[Run]) -> list[Any]:
    """The runs in the engine's form."""
    metric = config["metric"]["name"]
    return [
        engine().SweepRun(
            name=run.id,
            state="killed" if run.state == "stopped" else run.state,
            config={name: {"value": value} for name, value in run.parameters.items()},
            history=[{metric: value} for value in run.values],
            summary_metrics={metric: run.values[-1]} if run.values else {},
        )
        for run in runs
    ]
