"""wandb by one switch. No server here: offline runs by the real client, read back by its own tool."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nonlocal_nets.cli import main

CONFIG = str(Path(__file__).parents[1] / "configs" / "image" / "cued_digits.yaml")


def inspect(path, *words):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *words, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what wandb imports
def test_the_offline_run_holds_config_curves_and_summary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    small = ["--data.train_samples=12", "--data.batch_size=4", "--trainer.limit_val_batches=1", "--model.lr=0.002"]
    words = [*small, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    cli = main(["fit", "--config", CONFIG, *words, "--id=logged", "--trainer.logger=WandbLogger"])
    folder, metrics = cli.run_folder, cli.trainer.callback_metrics
    (path,) = folder.glob("wandb/offline-run-*/run-logged.wandb")

    summary = json.loads(inspect(path, "--summary"))
    assert (summary["project"], summary["run_id"], summary["state"]) == ("cued_digits", "logged", "finished")
    for name in ("val/accuracy", "val/loss", "train/accuracy"):
        assert summary["summary"][name] == pytest.approx(metrics[name].item())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.002
    for name in ("project", "seed_everything", "model", "data"):
        assert summary["config"][name] == config[name]

    records = [json.loads(line) for line in inspect(path).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    curve = {row["trainer/global_step"]: row["train/loss_step"] for row in rows if "train/loss_step" in row}
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:  # the local loggers are there as well
        local = {
            int(row["step"]): float(row["train/loss_step"]) for row in csv.DictReader(file) if row["train/loss_step"]
        }
    assert curve == pytest.approx(local)
    assert len(curve) == 6

    main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path=last", "--trainer.limit_test_batches=1"])
    assert len(list(folder.glob("wandb/offline-run-*/run-logged.wandb"))) == 2, "the first run had ended"
