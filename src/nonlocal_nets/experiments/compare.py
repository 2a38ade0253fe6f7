r"""Train several variants of one config with several seeds, test each run, and print mean and spread side by side.

    python train.py compare configs/image/cued_digits.yaml --seeds 5 \
        --variant "no block: --model.blocks.at=none" --variant "dot product: --model.blocks.pairwise=dot_product"

Each run is the `train.py fit` and `train.py test` that are printed, in a folder of its own. The checkpoint that was the
best in validation is tested. The runs take turns in this process, which imports everything once, or share `--processes`
workers, which divide the cores: small networks train faster on one core each.
"""

import contextlib
import io
import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from nonlocal_nets.experiments.arguments import ExperimentError, Parser, count
from nonlocal_nets.experiments.table import Outcome, save_csv, table
from nonlocal_nets.experiments.workers import run_all
from nonlocal_nets.run.cli import main as command
from nonlocal_nets.run.errors import masked
from nonlocal_nets.run.folder import CONFIG
from nonlocal_nets.run.help import program


@dataclass(frozen=True)
class Job:
    """A variant to be trained with a seed and tested."""

    config: str
    variant: str
    args: list[str]  # what the variant and the user add to the command
    seed: int
    id: str
    metric: str | None  # None: the one that the task monitors, in the test


@dataclass(frozen=True)
class Result:
    """The result of a job."""

    variant: str
    seed: int
    metric: str
    mode: str | None  # "max" or "min"; None if it is not known which values are better
    value: float
    seconds: float  # of training
    folder: Path


def run(job: Job) -> Result:
    """Fit and test one variant with one seed.

    Raises:
        ExperimentError: the test has no such metric, or the model monitors none.
    """
    fit = ["fit", "--config", job.config, *job.args, "--seed_everything", str(job.seed), "--id", job.id]
    started = time.monotonic()
    folder = announced(fit).run_folder
    seconds = time.monotonic() - started
    tested = announced(["test", "--config", str(folder / CONFIG), "--ckpt_path", "best"])
    metrics = tested.trainer.callback_metrics
    monitored = re.sub("^val/", "test/", getattr(tested.model, "monitor", ""))
    metric = job.metric or monitored
    if not metric:
        raise ExperimentError(f"{type(tested.model).__name__} does not say what it monitors; choose by --metric")
    if metric not in metrics:
        raise ExperimentError(f"no metric {metric!r} after the test; there are: {', '.join(metrics)}")
    mode = getattr(tested.model, "mode", None) if metric == monitored else None
    return Result(job.variant, job.seed, metric, mode, float(metrics[metric]), seconds, folder)


def announced(args: list[str]) -> Any:
    print(masked(f"\n$ python {program()} {shlex.join(args)}"), flush=True)
    return command(args)


def main(args: list[str]) -> list[dict[str, str | float]]:
    """Run `train.py compare`; the rows of the csv: seed by seed, in the order of the variants."""
    parser = build_parser()
    end = args.index("--") if "--" in args else len(args)
    options, common = parser.parse_args(args[:end]), args[end + 1 :]
    try:
        variants = {name: common + own for name, own in parse_variants(options.variant).items()}
        check(options.config, variants)
        results, path = compare(options.config, variants, options.seeds, options.metric, options.processes)
    except ExperimentError as error:
        parser.error(str(error))
    report(results, options.processes, path)
    return [row(result) for result in results]


def build_parser() -> Parser:
    description, epilog = __doc__.split("\n\n")[0], "Arguments after -- are added to the command of every run."
    parser = Parser(prog="train.py compare", description=description, epilog=epilog)
    parser.add_argument("config", help="a config of train.py")
    parser.add_argument("--seeds", type=count, default=1, help="how many seeds, from 0 (default: %(default)s)")
    parser.add_argument("--metric", help="what to compare (default: the metric that the task monitors, in the test)")
    parser.add_argument("--processes", type=count, default=1, help="how many runs at once (default: %(default)s)")
    text = "a name, a colon, and the arguments that it adds to the command; repeat for each variant"
    parser.add_argument("--variant", action="append", required=True, metavar="'NAME: ARGS'", help=text)
    return parser


def parse_variants(texts: list[str]) -> dict[str, list[str]]:
    """The names of the variants and their arguments.

    Raises:
        ExperimentError: no name or no colon, two variants that would share a folder, or an unclosed quotation.
    """
    variants: dict[str, list[str]] = {}
    for text in texts:
        name, colon, args = text.partition(":")
        name = name.strip()
        if not colon or not slug(name):
            raise ExperimentError(
                f"--variant must be a name, a colon and arguments, such as 'wide: --x=1', got {text!r}"
            )
        if slug(name) in map(slug, variants):
            raise ExperimentError(f"two variants are named {name!r}, or differ only in case and punctuation")
        try:
            variants[name] = shlex.split(args)
        except ValueError as error:
            raise ExperimentError(f"--variant {text!r}: {error}") from error
    return variants


def slug(name: str) -> str:
    """A name as a part of a run's id."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def check(config: str, variants: dict[str, list[str]]) -> None:
    """Have the command line parse the command of each variant, so that no mistake shows up after hours of other runs.

    Raises:
        ExperimentError: there is no such config, or a command is refused.
    """
    if not Path(config).is_file():
        raise ExperimentError(f"no config file {config!r}")
    for name, args in variants.items():
        resolved, errors = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(resolved), contextlib.redirect_stderr(errors):
                command(["fit", "--config", config, *args, "--print_config"])
        except SystemExit as end:
            if end.code:
                reason = re.sub(r"^\S+: error: ", "", errors.getvalue())
                raise ExperimentError(f"variant {name!r}: {reason}") from end
        if yaml.safe_load(resolved.getvalue())["trainer"]["enable_checkpointing"] is False:
            reason = "compare tests the best checkpoint, so trainer.enable_checkpointing cannot be false"
            raise ExperimentError(f"variant {name!r}: {reason}")


def compare(
    config: str, variants: dict[str, list[str]], seeds: int, metric: str | None, processes: int
) -> tuple[list[Result], Path]:
    """Run all variants with all seeds; the results, seed by seed, and the csv, which gets a row whenever a run ends.

    Raises:
        ExperimentError: the test has no such metric, or the tasks of two variants monitor different ones.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    jobs = [
        Job(config, name, args, seed, f"{stamp}-{slug(name)}-{seed}", metric)
        for seed in range(seeds)
        for name, args in variants.items()
    ]
    order = [(job.seed, job.variant) for job in jobs]
    ended: list[Result] = []
    for result in run_all(run, jobs, processes):
        ended.append(result)
        if result.metric != ended[0].metric:
            raise ExperimentError(f"variants monitor {ended[0].metric!r} and {result.metric!r}; choose one by --metric")
        results = sorted(ended, key=lambda result: order.index((result.seed, result.variant)))
        path = ended[0].folder.parent / f"{stamp}.csv"
        save_csv([row(result) for result in results], path)
    return results, path


def row(result: Result) -> dict[str, str | float]:
    """A row of the csv."""
    return {
        "variant": result.variant,
        "seed": result.seed,
        result.metric: result.value,
        "fit seconds": result.seconds,
        "folder": str(result.folder),
    }


def report(results: list[Result], processes: int, path: Path) -> None:
    """Print the table, and where everything is."""
    outcomes = [Outcome(result.variant, result.value, result.seconds) for result in results]
    print(f"\n{table(outcomes, 'variant', results[0].metric, results[0].mode)}\n")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processes} at once; every run: {path}")
    for result in results:
        pictures = ", ".join(map(str, sorted(result.folder.glob("*.png"))))
        end = f", picture: {pictures}" if pictures else ""
        print(f"{result.variant}, seed {result.seed}: {result.folder}{end}")
