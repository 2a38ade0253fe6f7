"""wandb by one switch. No server here: offline runs by the real client, read back by its own tool."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nonlocal_nets.run import wandb as run_wandb
from nonlocal_nets.run.cli import main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "image" / "cued_digits.yaml")
OVERLAY = str(ROOT / "configs" / "trainer" / "wandb.yaml")


def inspect(path, *words):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *words, str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what wandb imports
def test_the_offline_run_holds_config_curves_and_summary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    small = [
        "--data.train_samples=12",
        "--data.batch_size=4",
        "--trainer.limit_val_batches=1",
        "--model.optimizer.lr=0.002",
    ]
    small += ["--model.optimizer.lr=0.002"]
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


def records(path):
    """Of an offline run: kind -> what was recorded of it."""
    found = {}
    for line in inspect(path).splitlines():
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


@pytest.fixture
def no_key(tmp_path, monkeypatch):
    """An environment without a key of wandb's."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "x")  # so that it is as it was afterwards, whatever the code under test sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


@pytest.mark.slow
def test_two_processes_make_one_run_that_holds_everything(tmp_path, no_key):
    """By the commands, in a git repository; then the job is started again, and tested."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@n", "-C", str(tmp_path)]
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message=first"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    fit = ["fit", "--config", CONFIG, "--config", OVERLAY, "--data.train_samples=176", "--data.val_samples=8"]
    fit += ["--data.test_samples=8", "--data.batch_size=4", "--trainer.log_every_n_steps=1", "--id=logged"]
    fit += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--ckpt_path=last"]
    fit += ["--trainer.logger.init_args.log_model=true", "--trainer.devices=2", "--trainer.strategy=ddp"]
    test = ["test", "--config", "runs/cued_digits/logged/config.yaml", "--ckpt_path=best", "--trainer.devices=1"]
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_DATA_DIR": str(tmp_path / "staged"), "OMP_NUM_THREADS": "1"}
    fresh = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | quiet
    paths = []
    for words in (fit, [*fit, "--trainer.max_epochs=2"], test):
        command = [sys.executable, str(ROOT / "train.py"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=fresh, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "no key of wandb's: offline" in done.stderr
        (new,) = set(tmp_path.glob("runs/cued_digits/logged/wandb/offline-run-*/*.wandb")) - set(paths)
        paths.append(new)
    assert [path.name for path in paths] == ["run-logged.wandb"] * 3, "one run, however often it is started"

    first, again, tested = (records(path) for path in paths)
    environment = first["environment"][0]
    assert environment["git"]["commit"] == commit
    assert environment["args"] == fit
    assert environment["python"].startswith("CPython 3.")
    assert first["environment"][1]["cpu_count"] >= 1
    packages = (paths[0].parent / "files" / "requirements.txt").read_text()
    assert "torch==" in packages
    (artifact,) = first["artifact"]
    assert (artifact["name"], set(artifact["aliases"])) == ("model-logged", {"latest", "best"})
    best = json.loads(artifact["metadata"])["original_filename"]
    assert (tmp_path / "runs/cued_digits/logged/checkpoints" / best).is_file()
    rows = [record["item"] for record in first["history"]]
    for name in ("train/loss_step", "train/lr", "train/global_batch", "train/samples_per_sec", "train/items_per_sec"):
        assert [row[name] for row in rows if name in row], name
    assert {row["train/global_batch"] for row in rows if "train/global_batch" in row} == {8}
    steps = [row["trainer/global_step"] for row in (r["item"] for r in again["history"]) if "train/lr" in row]
    assert min(steps) == 22, "it went on after the 22 steps of the first start"
    media = [file["path"] for record in tested["files"] for file in record["files"] if "media" in file["path"]]
    assert {Path(path).name.partition("_")[0] for path in media} == {"attention.png", "confusion.png"}
    assert all((paths[2].parent / "files" / path).is_file() for path in media)
    assert any("test/accuracy" in record["item"] for record in tested["history"])


def test_a_key_is_found_where_wandb_finds_it(no_key, monkeypatch):
    assert not run_wandb.has_key()
    no_key.write_text("machine api.wandb.ai login user password secret")
    no_key.chmod(0o600)
    assert run_wandb.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not run_wandb.has_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert run_wandb.has_key()
