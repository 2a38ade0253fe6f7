"""wandb by one switch. No server here: offline runs by the real client, read back by its own tool."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from nonlocal_nets.run import wandb as run_wandb
from nonlocal_nets.run.cli import NonLocalCLI, SaveConfig, main

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "image" / "cued_digits.yaml")
OVERLAY = str(ROOT / "configs" / "trainer" / "wandb.yaml")


def inspect(path, *args):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *args, str(path)]
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
    args = [*small, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    cli = main(["fit", "--config", CONFIG, *args, "--id=logged", "--trainer.logger=WandbLogger"])
    folder, metrics = cli.run_folder, cli.trainer.callback_metrics
    (path,) = folder.glob("wandb/offline-run-*/run-logged.wandb")

    summary = json.loads(inspect(path, "--summary"))
    assert (summary["project"], summary["run_id"], summary["state"]) == ("cued_digits", "logged", "finished")
    for name in ("val/accuracy", "val/loss", "train/accuracy"):
        assert summary["summary"][name] == pytest.approx(metrics[name].item())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["lr"] == 0.002
    for name in ("project", "seed_everything", "model", "data"):
        assert summary["config"][name] == config[name]

    records = [json.loads(line) for line in inspect(path).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    curve = {row["trainer/global_step"]: row["train/loss_step"] for row in rows if "train/loss_step" in row}
    with (folder / "metrics.csv").open() as file:  # the local loggers are there as well
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
    for args in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message=first"]):
        subprocess.run([*git, *args], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    fit = ["fit", "--config", CONFIG, "--config", OVERLAY, "--data.train_samples=176", "--data.val_samples=8"]
    fit += ["--data.test_samples=8", "--data.batch_size=4", "--trainer.log_every_n_steps=1", "--id=logged"]
    fit += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--ckpt_path=last"]
    fit += ["--trainer.logger.init_args.log_model=true", "--trainer.devices=2", "--trainer.strategy=ddp"]
    test = ["test", "--config", "runs/cued_digits/logged/config.yaml", "--ckpt_path=best", "--trainer.devices=1"]
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_DATA_DIR": str(tmp_path / "staged"), "OMP_NUM_THREADS": "1"}
    fresh = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | quiet
    paths = []
    for args in (fit, [*fit, "--trainer.max_epochs=2"], test):
        command = [sys.executable, str(ROOT / "train.py"), *args]
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


def wandb_logger(**arguments):
    """What a config says of one; these three are None or "." where the user leaves them open."""
    given = {"project": None, "id": None, "save_dir": "."} | arguments
    return Namespace(class_path="pytorch_lightning.loggers.WandbLogger", init_args=Namespace(**given))


def placed(loggers, folder):
    run_wandb.complete(SimpleNamespace(logger=loggers), "digits", "first", folder)


def test_what_is_left_open_is_of_the_run_and_nothing_else(tmp_path, no_key, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    folder = tmp_path / "run"
    open_, given = wandb_logger(), wandb_logger(project="mine", id="same", save_dir="here")
    csv = Namespace(class_path="pytorch_lightning.loggers.CSVLogger", init_args=Namespace(save_dir="."))
    placed([csv, open_, given], folder)
    assert vars(open_.init_args) == {"project": "digits", "id": "first", "save_dir": str(folder)}
    assert vars(given.init_args) == {"project": "mine", "id": "same", "save_dir": "here"}
    assert vars(csv.init_args) == {"save_dir": "."}
    assert folder.is_dir(), "else wandb takes another"
    alone = wandb_logger()
    placed(alone, folder)
    assert alone.init_args.id == "first"
    assert os.environ["WANDB_MODE"] == "online", "the user's"


def test_offline_only_where_there_is_no_key(tmp_path, no_key, monkeypatch):
    placed(True, tmp_path)
    assert "WANDB_MODE" not in os.environ, "no logger of wandb's"
    placed(wandb_logger(), tmp_path)
    assert os.environ["WANDB_MODE"] == "offline"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    placed(wandb_logger(), tmp_path)
    assert "WANDB_MODE" not in os.environ


def test_the_key_of_another_host_is_none(no_key):
    no_key.write_text("machine example.org login user password secret")
    no_key.chmod(0o600)
    assert not run_wandb.has_key()


def test_the_command_line_hands_the_run_to_wandb(tmp_path, no_key, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pl.Trainer, "_fit_impl", lambda *_, **__: None)
    finished = []
    monkeypatch.setattr(run_wandb, "finish", finished.append)
    cli = main(["fit", "--config", CONFIG, "--id=logged", "--trainer.logger=WandbLogger"])
    logger = cli.trainer.loggers[-1]
    assert (logger.version, logger.save_dir) == ("logged", str(cli.run_folder))
    assert logger._wandb_init["project"] == "cued_digits"
    assert finished == [cli.trainer]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_run_ends_with_each_command(monkeypatch, command):
    ended = []
    monkeypatch.setattr("wandb.finish", lambda: ended.append(command))
    for loggers in ([CSVLogger(".")], [CSVLogger("."), create_autospec(WandbLogger, instance=True)]):
        assert ended == []
        getattr(NonLocalCLI, f"after_{command}")(SimpleNamespace(trainer=SimpleNamespace(loggers=loggers)))
    assert ended == [command]


def test_wandb_gets_the_config_that_is_saved(tmp_path):
    logger, checkpoint = create_autospec(WandbLogger, instance=True), ModelCheckpoint(tmp_path / "checkpoints")
    trainer = SimpleNamespace(
        is_global_zero=True,
        checkpoint_callback=checkpoint,
        default_root_dir=str(tmp_path),
        loggers=[CSVLogger(tmp_path), logger],
    )
    parser = SimpleNamespace(dump=lambda config, **_: yaml.safe_dump(config.as_dict()))
    config = Namespace(project="digits", model={"lr": 0.5}, ckpt_path="last")
    SaveConfig(parser, config).on_fit_start(trainer, None)
    logged = {"project": "digits", "model": {"lr": 0.5}, "ckpt_path": None}
    logger.log_hyperparams.assert_called_once_with(logged)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == logged
