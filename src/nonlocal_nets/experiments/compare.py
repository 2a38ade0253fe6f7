r"""Train one config in several variants with several seeds, test each run, and print mean and spread side by side.

    python -m nonlocal_nets.experiments.compare configs/image/cued_digits.yaml --seeds 5 \
        --variant "no block: --model.blocks=none" --variant "dot product: --model.pairwise=dot_product"

Each run is the `train.py fit` and `train.py test` that it prints, with a folder of its own. Tested is the checkpoint
that was the best in validation. All runs share this process, which saves the imports, or `--processes`, which share the
cores: small networks are faster one to a core.
"""

import argparse
import csv
import multiprocessing
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from nonlocal_nets.run.cli import main as command


def run(config: str, name: str, words: list[str], seed: int, stamp: str, metric: str) -> dict[str, str | float]:
    """Fit and test one variant with one seed; what came out, as a row of the results."""
    slug = re.sub(r"\W+", "-", name.lower()).strip("-")
    fit = ["fit", "--config", config, "--seed_everything", str(seed), "--id", f"{stamp}-{slug}-{seed}", *words]
    print(f"\n$ python train.py {shlex.join(fit)}", flush=True)
    started = time.monotonic()
    folder = command(fit).run_folder
    seconds = time.monotonic() - started
    test = ["test", "--config", str(folder / "config.yaml"), "--ckpt_path", "best"]
    print(f"\n$ python train.py {shlex.join(test)}", flush=True)
    metrics = command(test).trainer.callback_metrics
    if metric not in metrics:
        raise SystemExit(f"no metric {metric!r} after the test; there are: {', '.join(metrics)}")
    return {
        "variant": name,
        "seed": seed,
        metric: metrics[metric].item(),
        "fit seconds": seconds,
        "folder": str(folder),
    }


def table(rows: list[dict[str, str | float]], metric: str) -> str:
    """A Markdown table: mean, standard deviation and range over the seeds, one line a variant."""
    lines = [f"| variant | {metric}, mean ± std | lowest to highest | seeds | training, s |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(str(row["variant"]) for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        values = [float(row[metric]) for row in mine]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        seconds = statistics.mean(float(row["fit seconds"]) for row in mine)
        figures = f"{statistics.mean(values):.3f}{spread} | {min(values):.3f} to {max(values):.3f} | {len(values)}"
        lines.append(f"| {name} | {figures} | {seconds:.0f} |")
    return "\n".join(lines)


def run_all(jobs: list[tuple[Any, ...]], processes: int) -> Iterator[dict[str, str | float]]:
    """The rows of all jobs, arguments of `run`, as they come."""
    if processes == 1:
        yield from (run(*job) for job in jobs)
        return
    threads = max((os.cpu_count() or 1) // processes, 1)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, fresh, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for future in as_completed([pool.submit(run, *job) for job in jobs]):
            yield future.result()


def save(rows: list[dict[str, str | float]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(args: list[str] | None = None) -> list[dict[str, str | float]]:
    """The command; returns the rows that it prints and saves."""
    parser = argparse.ArgumentParser(
        prog="python -m nonlocal_nets.experiments.compare",
        description=__doc__.split("\n\n")[0],
        epilog="Words after -- are added to the command of every run.",
    )
    parser.add_argument("config", help="a config of train.py")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0 (default: %(default)s)")
    parser.add_argument("--metric", default="test/accuracy", help="what to compare (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="how many runs at once (default: %(default)s)")
    text = "a name, a colon, and the words that it adds to the command; once a variant"
    parser.add_argument("--variant", action="append", required=True, metavar="'NAME: WORDS'", help=text)
    args = sys.argv[1:] if args is None else args
    end = args.index("--") if "--" in args else len(args)
    given, common = parser.parse_args(args[:end]), args[end + 1 :]
    for name in ("seeds", "processes"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(given, name)}")
    variants = {name.strip(): shlex.split(words) for name, _, words in (v.partition(":") for v in given.variant)}
    stamp = time.strftime("%Y%m%d-%H%M%S")
    jobs = [
        (given.config, name, [*common, *words], seed, stamp, given.metric)
        for seed in range(given.seeds)
        for name, words in variants.items()
    ]
    rows: list[dict[str, str | float]] = []
    for row in run_all(jobs, given.processes):
        rows = sorted([*rows, row], key=lambda row: (row["seed"], list(variants).index(str(row["variant"]))))
        results = Path(str(row["folder"])).parent / f"{stamp}.csv"
        save(rows, results)
    print(f"\n{table(rows, given.metric)}\n")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.processes} at once; every row: {results}"
    )
    for row in rows:
        pictures = ", ".join(str(path) for path in sorted(Path(str(row["folder"])).glob("*.png")))
        print(f"{row['variant']}, seed {row['seed']}: {row['folder']}" + (f", picture: {pictures}" if pictures else ""))
    return rows


if __name__ == "__main__":
    main()
