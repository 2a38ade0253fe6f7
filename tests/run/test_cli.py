"""What a user of train.py relies on: where a run's files are, that the command line wins, that a run repeats itself."""

import os
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import nonlocal_nets as nln
from nonlocal_nets.run import claim
from nonlocal_nets.run.checkpoints import LastCheckpoint
from nonlocal_nets.run.cli import main
from tests.conftest import LEFT_BY_MAIN

TRAIN = Path(__file__).parents[2] / "train.py"
CONFIG = str(TRAIN.parent / "configs" / "image" / "cued_digits.yaml")
SMALL = [
    "--data.batch_size=4",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def fit(*words: str):
    return main(["fit", "--config", CONFIG, *SMALL, *words])


def last(cli) -> dict:
    return torch.load(cli.run_folder / "checkpoints" / "last.ckpt", weights_only=True)


FIRST_IS_BEST = ["--checkpoint.monitor=epoch", "--checkpoint.mode=min"]


@pytest.fixture(scope="module")
def run_of_the_module(tmp_path_factory):
    """Its folder, and the command line: two epochs, of which the first is the best."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("run")
    os.chdir(folder)
    try:
        return folder, fit("--id=worse", "--trainer.max_epochs=2", *FIRST_IS_BEST, "--model.optimizer.lr=0.01")
    finally:
        os.chdir(here)


@pytest.fixture
def worse(run_of_the_module):
    """The command line of that run, and a copy of its folder here."""
    folder, cli = run_of_the_module
    shutil.copytree(folder / "runs", "runs")
    return cli


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (lambda: runpy.run_path(str(TRAIN), run_name="__main__"), "train.py"),
        (lambda: runpy.run_module("nonlocal_nets", run_name="__main__"), "-m nonlocal_nets"),
    ],
    ids=["train.py", "-m"],
)
def test_the_program_alone_prints_the_manual(monkeypatch, capsys, start, name):
    monkeypatch.setattr("sys.argv", ["train.py" if name == "train.py" else "nonlocal_nets/__main__.py"])
    with pytest.raises(SystemExit) as stop:
        start()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for verb in ("fit", "test", "predict", "compare", "sweep"):
        assert f"python {name} {verb} " in printed


def test_a_run_leaves_everything_in_its_folder(caplog):
    cli = fit("--id=first", "--model.optimizer.lr=0.01")
    folder = Path("runs/cued_digits/first")
    assert cli.run_folder == folder
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert list(folder.glob("events.out.tfevents*"))
    assert "train/loss_epoch" in (folder / "metrics.csv").read_text().splitlines()[0]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["project"], config["id"], config["model"]["init_args"]["optimizer"]["lr"]) == (
        "cued_digits",
        "first",
        0.01,
    )
    assert config["ckpt_path"] is None, "also what was left open"
    assert [path.name for path in Path().iterdir()] == ["runs"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "epoch=0-step=3.ckpt"}
    assert "12 samples" in caplog.text, "the summary"
    checkpoint = cli.trainer.checkpoint_callback
    assert (checkpoint.monitor, checkpoint.mode) == ("val/accuracy", "max")
    left = {name: os.environ[name] for name in LEFT_BY_MAIN if name in os.environ}
    assert left == {"PL_GLOBAL_SEED": "0", "PL_SEED_WORKERS": "1", "NONLOCAL_NETS_RUN_ID": "first"}, "to its processes"
    assert torch.tensor(1e-30) * 1e-10 == 0, "no denormal numbers"

    logs = {path: path.read_bytes() for path in folder.rglob("*") if "tfevents" in path.name or path.suffix == ".csv"}
    assert len(logs) == 2
    tested = main(["test", "--config", str(folder / "config.yaml"), "--ckpt_path=last"])
    assert "test/accuracy" in tested.trainer.callback_metrics
    assert (folder / "attention.png").stat().st_size > 10_000
    left = {path: path.read_bytes() for path in folder.rglob("*") if "tfevents" in path.name or path.suffix == ".csv"}
    assert {path: left.get(path) for path in logs} == logs
    assert {path.name for path in left.keys() - logs.keys()} <= {"classes.csv"}, "a test logs to no file"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_root_and_the_checkpoints_may_be_elsewhere():
    """Config, logs and pictures stay in the run's folder; "last" and "best" find the checkpoints."""
    elsewhere = ["--trainer.default_root_dir=scratch", "--checkpoint.dirpath=far/a", "--id=a"]
    cli = fit(*elsewhere)
    assert cli.run_folder == Path("scratch/cued_digits/a") == Path(cli.trainer.default_root_dir)
    assert sorted(path.name for path in Path().iterdir()) == ["far", "scratch"]
    assert sorted(path.name for path in Path("far/a").iterdir()) == ["epoch=0-step=3.ckpt", "last.ckpt"]
    assert {path.suffix for path in cli.run_folder.rglob("*") if path.is_file()} >= {".yaml", ".csv"}
    assert not list(cli.run_folder.rglob("*.ckpt"))
    assert fit(*elsewhere, "--trainer.max_epochs=2", "--ckpt_path=last").trainer.global_step == 6
    config = str(cli.run_folder / "config.yaml")
    best = main(["test", "--config", config, "--ckpt_path=best"])
    assert best.run_folder == cli.run_folder
    assert Path(best.config_init["test"].ckpt_path).parent == Path("far/a").resolve()
    assert (cli.run_folder / "attention.png").is_file()


def test_a_value_two_levels_down_is_changed_alone(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    blocks:\n      pool: 2\n    optimizer:\n      weight_decay: 0.5\n")
    args = ["--config", str(overlay), "--model.blocks.pool_position=embedding", "--model.blocks.inner_channels=null"]
    cli = fit("--id=nested", "--trainer.max_epochs=0", *args)
    saved = yaml.safe_load((cli.run_folder / "config.yaml").read_text())["model"]["init_args"]
    changed = {"pool": 2, "pool_position": "embedding", "inner_channels": None}
    assert saved["blocks"].items() >= ({"at": "layer3", "pairwise": "embedded_gaussian"} | changed).items()
    assert (saved["optimizer"]["lr"], saved["optimizer"]["weight_decay"]) == (0.0015, 0.5)
    (block,) = nln.blocks(cli.model).values()
    assert (block.pool, block.pool_position) == (2, "embedding")


def test_one_batch_is_a_count_and_not_the_whole_epoch():
    names = [f"limit_{name}_batches" for name in ("train", "val", "test", "predict")]
    cli = fit("--trainer.max_epochs=0", *(f"--trainer.{name}=1" for name in names), "--id=one")
    saved = yaml.safe_load((cli.run_folder / "config.yaml").read_text())["trainer"]
    for name in names:
        assert (saved[name], type(saved[name])) == (1, int)
        limit = getattr(cli.trainer, name)
        assert (limit, type(limit)) == (1, int)
    cli = fit("--id=all", "--trainer.limit_train_batches=1.0", "--data.train_samples=8")
    assert cli.trainer.global_step == 2


def test_the_saved_config_repeats_the_run_bit_for_bit():
    first = fit("--id=first", "--seed_everything=3", "--model.blocks.pairwise=dot_product")
    again = main(["fit", "--config", str(first.run_folder / "config.yaml"), "--id=again"])
    ours, theirs = last(first)["state_dict"], last(again)["state_dict"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = fit("--id=other", "--seed_everything=4", "--model.blocks.pairwise=dot_product")
    assert not torch.equal(ours["network.fc.weight"], last(other)["state_dict"]["network.fc.weight"])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it should, on a resume
def test_ckpt_path_last_goes_on_where_the_run_stopped():
    half = fit("--id=half", "--trainer.max_epochs=2", "--trainer.max_steps=3")
    assert last(half)["global_step"] == 3
    resumed = fit("--id=half", "--trainer.max_epochs=2", "--ckpt_path=last")
    assert last(resumed)["global_step"] == resumed.trainer.global_step == 6
    config = yaml.safe_load((resumed.run_folder / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == -1, "the config is that of the last start"


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # another run's checkpoint
def test_the_command_line_beats_the_checkpoint(worse):
    checkpoint = f"--ckpt_path={worse.run_folder}/checkpoints/last.ckpt"
    cli = fit("--id=second", "--model.optimizer.lr=0.02", "--trainer.max_epochs=3", *FIRST_IS_BEST, checkpoint)
    assert cli.trainer.global_step == 9
    assert worse.model.optimizer.lr == 0.01
    assert cli.model.optimizer.lr == 0.02, "the guard against Lightning's _parse_ckpt_path"


def test_the_number_of_classes_comes_from_the_data(worse):
    assert worse.model.network.fc.out_features == 2


def test_without_blocks_and_with(worse):
    bare = fit("--id=bare", "--model.blocks.at=none")
    bare_names, names = set(last(bare)["state_dict"]), set(last(worse)["state_dict"])
    assert bare_names < names
    assert {name.split(".")[4] for name in names - bare_names} == {"theta", "phi", "g", "out", "norm"}


def test_id_defaults_to_the_time():
    """Runs with such ids, and those of SLURM jobs: tests/run/test_choice.py."""
    assert re.fullmatch(r"\d{8}-\d{6}", claim.stamp())


def test_blocks_as_counts_on_the_command_line():
    words = (
        "--model.backbone=resnet10t",
        "--model.blocks.at={layer1: 1, layer2: 1}",
    )
    cli = fit("--id=counts", "--trainer.max_epochs=0", *words, "--model.blocks.window=[2, null]")
    assert [block.window for block in nln.blocks(cli.model).values()] == [(2, None)] * 2


def test_last_is_the_last_though_it_is_not_the_best(worse):
    """Lightning 2.6 writes its last.ckpt only together with a new best one: a run would go on from there."""
    checkpoints = worse.run_folder / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"last.ckpt", "epoch=0-step=3.ckpt"}
    assert last(worse)["global_step"] == 6


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a copy of a run
def test_best_is_that_of_the_run_and_tests_its_weights(worse):
    config, checkpoints = str(worse.run_folder / "config.yaml"), worse.run_folder / "checkpoints"
    best, newest = (
        main(["test", "--config", config, f"--ckpt_path={given}"]).model.network.fc.weight.clone()
        for given in ("best", "last")
    )
    named = torch.load(checkpoints / "epoch=0-step=3.ckpt", weights_only=True)["state_dict"]["network.fc.weight"]
    assert torch.equal(best, named)
    assert torch.equal(newest, last(worse)["state_dict"]["network.fc.weight"])
    assert not torch.equal(best, newest)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_last_is_written_at_the_end_of_an_epoch_that_is_not_validated(monkeypatch):
    monkeypatch.setattr(LastCheckpoint, "on_train_end", lambda *_: None)  # as where the run was killed before its end
    assert last(fit("--trainer.check_val_every_n_epoch=2"))["global_step"] == 3


def test_last_is_written_as_often_as_the_user_wants_checkpoints_and_at_the_end(monkeypatch):
    words = "--checkpoint.every_n_train_steps=2", "--checkpoint.monitor=step"
    assert last(fit("--id=whole", *words))["global_step"] == 3, "all of the 3 steps"
    monkeypatch.setattr(LastCheckpoint, "on_train_end", lambda *_: None)  # as where the run was killed before its end
    assert last(fit("--id=often", *words))["global_step"] == 2


def check_loggers(cli, names, folders):
    assert [type(logger).__name__ for logger in cli.trainer.loggers] == names
    for logger, folder in zip(cli.trainer.loggers, folders, strict=True):
        assert Path(logger.log_dir).is_relative_to(folder)


def test_loggers(worse):
    names, run = ["TensorBoardLogger", "Curve"], Path("runs/cued_digits")
    check_loggers(worse, names, [run / "worse"] * 2)
    more = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=more"]
    cli = fit("--id=more", "--trainer.max_epochs=0", *more)
    check_loggers(cli, [*names, "CSVLogger"], [run / "more", run / "more", Path("more")])
    check_loggers(fit("--id=none", "--trainer.max_epochs=0", "--trainer.logger=false"), [], [])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_overfit_batches_trains_with_the_same_batch_again_and_again():
    assert fit("--id=over", "--trainer.overfit_batches=1", "--trainer.max_epochs=4").trainer.global_step == 4
