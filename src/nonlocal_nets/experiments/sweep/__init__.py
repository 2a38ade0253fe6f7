"""Run a sweep of configs/sweeps/ on this machine, without an account: wandb's engine proposes, this starts the runs.

    python train.py sweep configs/sweeps/pairwise.yaml --processes 2

The yaml is that of `wandb sweep`, and each run is the command that `wandb agent` would start. Their output and state,
sweep.csv and sweep.png are in the folder <root>/sweeps/<name>-<digest of the yaml>, where <root> is the command's
`--trainer.default_root_dir`, by default runs. After an interruption or a kill the same command continues: finished runs
stay as they are, and those that had begun go on from their last checkpoints.
"""

from pathlib import Path

from nonlocal_nets.experiments.arguments import ExperimentError, Parser, count
from nonlocal_nets.experiments.sweep.runner import Sweep

__all__ = ["Sweep", "main"]


def main(args: list[str]) -> Sweep:
    """Run `train.py sweep`."""
    parser = Parser(prog="train.py sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=Path, help="a sweep's yaml, such as configs/sweeps/pairwise.yaml")
    parser.add_argument("--processes", type=count, default=1, help="how many runs at once (default: %(default)s)")
    text = "how many runs at most (default: the yaml's run_cap, or the whole grid)"
    parser.add_argument("--runs", type=count, help=text)
    options = parser.parse_args(args)
    try:
        sweep = Sweep(options.config, options.processes, options.runs)
        sweep.run()
    except ExperimentError as error:
        parser.error(str(error))
    return sweep
