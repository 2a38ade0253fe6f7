"""Stands in for train.py in tests of sweeps: logs its metric as a run does, and resumes by --ckpt_path=last."""

import argparse
import csv
import os
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("command")
parser.add_argument("--x", type=float, required=True)
parser.add_argument("--seed_everything", type=int, default=0)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seconds", type=float, default=0)
parser.add_argument("--until", help="a file without which it waits after its first epoch")
parser.add_argument("--metric", default="val/accuracy")
parser.add_argument("--ckpt_path")
parser.add_argument("--trainer.default_root_dir", dest="root", default="runs")
options = parser.parse_args()

folder = Path(options.root) / "project" / os.environ["WANDB_RUN_ID"]
epoch = folder / "epoch"
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write("\n")
if options.x > 1000:
    raise SystemExit(f"error: x is {options.x}")
with (folder / "metrics.csv").open("a", newline="") as file:
    rows = csv.writer(file)
    if not file.tell():
        rows.writerow(["epoch", "step", "train/loss", options.metric])
    first = int(epoch.read_text()) if options.ckpt_path == "last" and epoch.exists() else 0
    for k in range(first, options.epochs):
        rows.writerow([k, 10 * k, 0.5, ""])
        rows.writerow([k, 10 * k + 9, "", options.x + k / 10 + options.seed_everything / 100])
        file.flush()
        epoch.write_text(str(k + 1))
        time.sleep(options.seconds)
        while options.until and not Path(options.until).exists():
            time.sleep(0.05)
