"""Every yaml in configs/ is a run: it opens with its header, and trains, saves and tests on a few samples."""

import re
from pathlib import Path

import pytest
import torch

from nonlocal_nets.cli import main

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "configs").glob("*/*.yaml"))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_experiments():
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=relative)
def test_header_names_source_command_time_and_number(path):
    header = re.match(r"(#.*\n)+", path.read_text())[0]
    for word in ("Source", "Command", "Time", "Reached"):
        assert re.search(rf"^# {word} +\S", header, re.M), f"the header has no line '# {word} ...'"
    assert f"python train.py fit --config {relative(path)}" in header


@pytest.mark.parametrize("path", EXPERIMENTS, ids=relative)
def test_experiment_trains_and_tests(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batches = [f"--trainer.limit_{stage}_batches={count}" for stage, count in (("train", 2), ("val", 1), ("test", 1))]
    small = ["--data.batch_size=4", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", *batches]
    cli = main(["fit", "--config", str(path), "--id=try", "--trainer.enable_progress_bar=false", *small])
    assert cli.trainer.global_step == 2
    main(["test", "--config", str(cli.run_folder / "config.yaml"), "--ckpt_path=last"])
    checkpoint = torch.load(cli.run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert any(".non_local." in name for name in checkpoint["state_dict"])
