"""A task that is no classification, in a user's own package, does all that `train.py` does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.functional import mse_loss

from nonlocal_nets.run.cli import main
from tests.denoising import Denoising, Stripes

TASK = ["--model=tests.denoising.Denoising", "--data=tests.denoising.Stripes", "--trainer.accelerator=cpu"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def error_of(model):
    """The mean squared error over all samples, at once."""
    noisy, clean = Stripes().data.tensors
    with torch.no_grad():
        return mse_loss(model.eval()(noisy), clean).item()


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it should, on a resume
def test_it_fits_and_tests_and_resumes():
    cli = main(["fit", *TASK, *QUIET, "--trainer.max_epochs=2", "--id=a"])
    assert (cli.trainer.checkpoint_callback.monitor, cli.trainer.checkpoint_callback.mode) == ("val/mse", "min")
    assert float(cli.trainer.callback_metrics["val/mse"]) == pytest.approx(error_of(cli.model), rel=1e-5)
    config = ["--config", "runs/default/a/config.yaml"]
    resumed = main(["fit", *config, "--ckpt_path=last", "--trainer.max_epochs=3"])
    assert resumed.trainer.global_step == 15
    for verb in ("validate", "test"):
        done = main([verb, *config, "--ckpt_path=best"])
        figure = float(done.trainer.callback_metrics[f"{verb[:4].removesuffix('i')}/mse"])
        assert figure == pytest.approx(error_of(done.model), rel=1e-5)
        assert figure == pytest.approx(float(resumed.trainer.checkpoint_callback.best_model_score), rel=1e-5)
    assert yaml.safe_load(Path("runs/default/a/config.yaml").read_text())["model"]["init_args"]["blocks"]["at"] == "1"
    again = Denoising.load_from_checkpoint("runs/default/a/checkpoints/last.ckpt")
    assert error_of(again) == pytest.approx(error_of(resumed.model))


@pytest.mark.slow
def test_two_processes_count_each_sample_once():
    """9 samples in two processes: DistributedSampler adds a duplicate."""
    root = Path(__file__).parents[2]
    two = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=1", "--id=two"]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "train.py"), "fit", *TASK, *QUIET, *two]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    best = torch.load("runs/default/two/checkpoints/last.ckpt", weights_only=True)
    (score,) = (s["best_model_score"] for s in best["callbacks"].values() if s.get("best_model_score") is not None)
    model = Denoising.load_from_checkpoint("runs/default/two/checkpoints/last.ckpt")
    assert float(score) == pytest.approx(error_of(model), rel=1e-5)


@pytest.mark.slow
def test_it_is_compared_by_what_it_monitors(capsys):
    Path("own.yaml").write_text(
        "model: {class_path: tests.denoising.Denoising}\ndata: {class_path: tests.denoising.Stripes}\n"
        "trainer: {accelerator: cpu, max_epochs: 1}\n"
    )
    variants = ["--variant", "without: --model.blocks.at=none", "--variant", "with:"]
    rows = main(["compare", "own.yaml", "--seeds", "1", *variants, "--", *QUIET])
    assert [(row["variant"], row["seed"]) for row in rows] == [("without", 0), ("with", 0)]
    for row in rows:
        model = Denoising.load_from_checkpoint(Path(row["folder"]) / "checkpoints" / "last.ckpt")
        assert row["test/mse"] == pytest.approx(error_of(model), rel=1e-5)
    assert "test/mse" in capsys.readouterr().out


@pytest.mark.slow
def test_it_is_swept_by_what_the_sweep_names(monkeypatch, capsys):
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root}")
    task = {"model": {"class_path": "tests.denoising.Denoising"}, "data": {"class_path": "tests.denoising.Stripes"}}
    Path("own.yaml").write_text(yaml.safe_dump(task | {"trainer": {"accelerator": "cpu", "max_epochs": 1}}))
    sweep = {
        "program": str(root / "train.py"),
        "method": "grid",
        "metric": {"name": "val/mse", "goal": "minimize"},
        "parameters": {"model.optimizer.lr": {"values": [0.0, 0.05]}},
        "command": ["${env}", "python", "${program}", "fit", "--config", "own.yaml", *QUIET, "${args}"],
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    main(["sweep", "sweep.yaml"])
    rows = re.findall(r"^\| lr=(\S+) \| ([\d.]+)", capsys.readouterr().out, re.M)
    errors = {rate: float(error) for rate, error in rows}
    assert list(errors) == sorted(errors, key=errors.get), "the lowest error first"
    for rate in errors:
        (saved,) = (
            path
            for path in Path("runs").glob("default/*/checkpoints/last.ckpt")
            if torch.load(path, weights_only=True)["hyper_parameters"]["optimizer"]["lr"] == float(rate)
        )
        assert errors[rate] == pytest.approx(error_of(Denoising.load_from_checkpoint(saved)), abs=5e-4)
