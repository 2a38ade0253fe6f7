"""Table "scaling": two processes over one. And, by calculation, what a link between nodes costs (`link`)."""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import nonlocal_nets as nln
from benchmarks.measure import Target, markdown, ratio

ROOT = Path(__file__).parents[1]
RUNS = {  # small networks, one thread per process
    "configs/image/cued_digits.yaml": ["--data.batch_size=64", "--trainer.limit_train_batches=60"],
    "configs/video/cued_clips.yaml": ["--data.batch_size=32", "--trainer.limit_train_batches=40"],
}


def table(_target: Target, rounds: int = 3) -> str:
    """Samples per second of each of two DDP processes over those of a single one; complete fits that take turns."""
    rows = []
    for config, arguments in RUNS.items():
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for processes, mine in rates.items():
                mine.append(_rate(config, arguments, processes))
        first, both = sum(rates[1]) / rounds, 2 * sum(rates[2]) / rounds
        rows.append([config, f"{first:.0f}", f"{both:.0f}", ratio(rates[2], rates[1])])
    return markdown(["config", "samples per second, 1 process", "2 processes", "efficiency"], rows)


def _rate(config: str, arguments: list[str], processes: int) -> float:
    """Samples per second of one process, over the last batches of a fit."""
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(ROOT / config), *arguments, "--id=run"]
    command += [
        f"--trainer.devices={processes}",
        "--trainer.strategy=ddp",
        "--trainer.max_epochs=1",
        "--project=scaling",
    ]
    command += ["--trainer.callbacks=[{class_path: Throughput}]", "--trainer.limit_val_batches=0"]
    command += ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--checkpoint.monitor=null"]
    with tempfile.TemporaryDirectory() as folder:
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env=alone)
        with open(f"{folder}/runs/scaling/run/metrics.csv") as file:
            seen = [row["train/device/samples_per_sec"] for row in csv.DictReader(file)]
    return float([rate for rate in seen if rate][-1])


NODES, CARDS, LINK = 8, 8, 25e9  # bytes per second between two nodes, in each direction
CLIPS = 8  # per GPU, as in the paper
PEAK, SHARES = 989e12, (0.3, 0.1)  # operations per second of an H100 in bfloat16, and two achieved shares
NETWORKS: dict[str, tuple[str, int, str | None]] = {
    "C2D R50": ("c2d", 50, None),
    "NL C2D R50, 5 blocks": ("c2d", 50, "paper-5"),
    "I3D R50": ("i3d", 50, None),
    "NL I3D R50, 5 blocks": ("i3d", 50, "paper-5"),
    "NL I3D R101, 5 blocks": ("i3d", 101, "paper-5"),
}


def link(_target: Target | None = None) -> str:
    """The time of a gradient's all-reduce between nodes beside that of the arithmetic, for the paper's networks.

    A calculation: nothing is run.
    """
    rows = []
    for name, (arch, depth, blocks) in NETWORKS.items():
        with torch.device("meta"):
            network = nln.video_resnet(arch, depth, blocks, "32x2").eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(torch.empty(1, 3, 32, 224, 224))
        parameters = sum(p.numel() for p in network.parameters())
        gradient = 4 * parameters  # float32
        sent = 2 * (NODES - 1) / NODES * gradient
        reduce = sent / LINK
        numbers = [f"{parameters:,}", f"{gradient / 1e6:.0f}", f"{sent / 1e6:.0f}", f"{1e3 * reduce:.1f}"]
        for share in SHARES:
            compute = 3 * CLIPS * counter.get_total_flops() / (share * PEAK)
            exposed = max(reduce - 2 / 3 * compute, 0)  # what the backward pass does not hide
            numbers += [f"{1e3 * compute:.0f}", f"{compute / (compute + exposed):.0%}"]
        rows.append([name, *numbers])
    head = ["network", "parameters", "gradient, MB", "sent by a node, MB", "on the link, ms"]
    shares = [text for share in SHARES for text in (f"arithmetic at {share:.0%} of the peak, ms", "efficiency")]
    return markdown([*head, *shares], rows)


if __name__ == "__main__":
    print(link())
