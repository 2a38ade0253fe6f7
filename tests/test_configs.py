"""Every yaml in configs/ does what it is for: experiments train, save and test on a few samples, overlays change it."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import nonlocal_nets.data
import nonlocal_nets.tasks
from nonlocal_nets.run.cli import main
from tests.build import build

ROOT = Path(__file__).parents[1]
OVERLAYS = {path.stem: path for path in sorted((ROOT / "configs" / "trainer").glob("*.yaml"))}
DATA = sorted((ROOT / "configs" / "data").glob("*.yaml"))
EXPERIMENTS = [
    path
    for path in sorted((ROOT / "configs").glob("*/*.yaml"))
    if path.parent.name not in ("trainer", "data", "sweeps")
]
FIRST = ROOT / "configs" / "image" / "cued_digits.yaml"
CLIPS = ROOT / "configs" / "video" / "cued_clips.yaml"
SERIES = ROOT / "configs" / "sequence" / "ucr.yaml"
VIDEOS = ("kinetics", "charades", "video_folder")  # data for the experiments on videos
SEQUENCES = ("ucr", "speech_commands")
EXPRESSIONS = ROOT / "configs" / "sequence" / "listops.yaml"
TOKENS = ("listops", "text")
# Trained in the fast tests; the others are built. Also cued_digits, in tests/run/test_cli.py, and cued_clips with
# video_folder, in tests/run/test_predict_video.py
TRAINED = ("ucr",)
REPLACED = ("kinetics", "speech_commands")
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def few_samples(path: Path, folder: Path) -> list[str]:
    """Words that put a few samples in the data set's own format in place of the data of a config."""
    data = yaml.safe_load(path.read_text())["data"]
    module = sys.modules[getattr(nonlocal_nets.data, data["class_path"].rpartition(".")[2]).__module__]
    arguments = module.fake(folder) if hasattr(module, "fake") else {}
    words = [f"--data.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in arguments.items()]
    if "image_size" not in arguments:
        sizes = [data["init_args"].get("image_size")]
        words += [f"--data.image_size={min(size, 64)}" for size in sizes if size]
    return [*words, "--data.batch_size=4", "--data.num_workers=0"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_there_are_configs_of_each_kind():
    assert EXPERIMENTS
    assert DATA
    assert OVERLAYS
    assert {relative(path).split("/")[1] for path in ROOT.glob("configs/**/*.yaml")} == {
        "data",
        "image",
        "sequence",
        "sweeps",  # tests/experiments/test_sweep_configs.py
        "trainer",
        "video",
    }


@pytest.mark.parametrize("path", EXPERIMENTS, ids=relative)
def test_header_names_source_command_time_and_number(path):
    header = re.match(r"(#.*\n)+", path.read_text())[0]
    for word in ("Source", "Command", "Time", "Reached"):
        assert re.search(rf"^# {word} +\S", header, re.M), f"the header has no line '# {word} ...'"
    assert f"python train.py fit --config {relative(path)}" in header


@pytest.mark.parametrize("path", [*DATA, *OVERLAYS.values()], ids=relative)
def test_header_of_an_overlay_shows_its_command(path):
    header = re.match(r"(#.*\n)+", path.read_text())[0]
    assert f"train.py fit --config <experiment> --config {relative(path)}" in header


def built(words, capsys):
    """The data module and the task of a command, but on the device meta, where weights take no memory and no time."""
    with pytest.raises(SystemExit):
        main(["fit", *words, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    data, model = config["data"], config["model"]
    module = getattr(nonlocal_nets.data, data["class_path"].rpartition(".")[2])(**data["init_args"])
    arguments = model["init_args"] | {"num_classes": module.num_classes, "input_size": module.input_size}
    with torch.device("meta"):
        task = build(getattr(nonlocal_nets.tasks, model["class_path"].rpartition(".")[2]), arguments)
    task.check_data(module)
    return module, task


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # weights to start from
@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path.stem not in TRAINED], ids=relative)
def test_experiment_is_read_and_built(path, tmp_path, capsys):
    _, task = built(["--config", str(path), *SMALL, *few_samples(path, tmp_path / "data")], capsys)
    blocks = yaml.safe_load(path.read_text())["model"]["init_args"]["blocks"]["at"]
    assert bool(nonlocal_nets.blocks(task)) == (blocks != "none")


@pytest.mark.parametrize("path", [path for path in DATA if path.stem not in REPLACED], ids=relative)
def test_any_data_set_is_read_and_built_in_place_of_an_experiments(path, tmp_path, capsys):
    module, task = built(replaced(path, tmp_path), capsys)
    assert type(module).__name__ == yaml.safe_load(path.read_text())["data"]["class_path"]
    assert (task.hparams.num_classes, task.hparams.input_size) == (module.num_classes, module.input_size)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem not in TRAINED)) for path in EXPERIMENTS],
    ids=relative,
)
def test_experiment_trains_and_tests(path, tmp_path):
    words = [*SMALL, *few_samples(path, tmp_path / "data")]
    if path.parent.name == "video":
        words += ["--data.batch_size=2", "--trainer.max_steps=2"]
    cli = main(["fit", "--config", str(path), "--id=try", *words])
    assert cli.trainer.global_step == 2
    one = ["--data.batch_size=1"]  # so that one video is drawn
    main(["test", "--config", str(cli.run_folder / "config.yaml"), "--ckpt_path=last", *one])
    checkpoint = torch.load(cli.run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    blocks = yaml.safe_load(path.read_text())["model"]["init_args"]["blocks"]["at"]
    assert any(".non_local." in name for name in checkpoint["state_dict"]) == (blocks != "none")


def replaced(path, folder):
    """Words for an experiment on a few samples of another data set."""
    kinds = {CLIPS: VIDEOS, SERIES: SEQUENCES, EXPRESSIONS: TOKENS}
    first = next((first for first, names in kinds.items() if path.stem in names), FIRST)
    words = [*SMALL, *few_samples(path, folder / "data")]
    return ["--config", str(first), "--config", str(path), *words, "--data.batch_size=2"]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem not in REPLACED)) for path in DATA],
    ids=relative,
)
def test_any_data_set_in_place_of_an_experiments(path, tmp_path):
    cli = main(["fit", *replaced(path, tmp_path)])
    assert type(cli.datamodule).__name__ == yaml.safe_load(path.read_text())["data"]["class_path"]
    assert cli.trainer.global_step == 2
    model = cli.model.hparams
    assert (model.num_classes, model.input_size) == (cli.datamodule.num_classes, cli.datamodule.input_size)


def test_debug_runs_a_few_batches(tmp_path):
    cli = main(
        ["fit", "--config", str(FIRST), "--config", str(OVERLAYS["debug"]), "--trainer.enable_progress_bar=false"]
    )
    assert (cli.trainer.global_step, cli.args.project) == (3, "debug")


def test_trainer_overlays_choose_the_hardware(capsys):
    for name, accelerator, precision in (("cpu", "cpu", "32-true"), ("gpu", "gpu", "bf16-mixed")):
        with pytest.raises(SystemExit):
            main(["fit", "--config", str(FIRST), "--config", str(OVERLAYS[name]), "--print_config"])
        trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
        assert (trainer["accelerator"], trainer["devices"], trainer["precision"]) == (accelerator, 1, precision)
        assert trainer["max_epochs"] == 4, "the experiment's"


def test_ddp_takes_what_is_there_and_adds_to_the_gpu_overlay(capsys):
    configs = [word for name in ("gpu", "ddp") for word in ("--config", str(OVERLAYS[name]))]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(FIRST), *configs, "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert [trainer[name] for name in ("accelerator", "devices", "precision")] == ["auto", "auto", "bf16-mixed"]
    assert trainer["strategy"]["class_path"] == "pytorch_lightning.strategies.DDPStrategy"


def test_wandb_is_one_overlay(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(FIRST), "--config", str(OVERLAYS["wandb"]), "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer["logger"]["class_path"] == "pytorch_lightning.loggers.WandbLogger"
    names = [item["class_path"].rpartition(".")[2] for item in trainer["callbacks"]]
    assert names == ["AttentionMaps", "ConfusionMatrix", "Throughput"]


def test_an_overlay_adds_callbacks_where_it_says_so(tmp_path):
    experiments = [item["class_path"] for item in yaml.safe_load(FIRST.read_text())["trainer"]["callbacks"]]
    for mark, expected in (("+", [*experiments, "LearningRateMonitor"]), ("", ["LearningRateMonitor"])):
        overlay = tmp_path / "overlay.yaml"
        overlay.write_text(f"trainer:\n  callbacks{mark}:\n    - class_path: LearningRateMonitor\n")
        cli = main(["fit", "--config", str(FIRST), "--config", str(overlay), *SMALL, "--trainer.max_epochs=0"])
        names = [type(callback).__name__ for callback in cli.trainer.callbacks]
        assert [name for name in names if name in {*experiments, *expected}] == expected
        assert {"Repeatable", "Predictions", "Summary", "BestCheckpoint", "LastCheckpoint"} <= set(names), "always on"
