"""Which network a command uses, and what is refused because it is another than the user means."""

import csv
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from nonlocal_nets.data import ImageFolder, image_folder
from nonlocal_nets.run.checkpoints import load
from nonlocal_nets.run.cli import main
from nonlocal_nets.run.identity import check_checkpoint
from nonlocal_nets.tasks import Blocks, ImageClassification, Optimizer
from tests.run.conftest import SMALL

pytestmark = [
    pytest.mark.usefixtures("small_images"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # it should, on a resume
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # a copy of a run
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key"),  # of a run that ends before validation
]
CONFIG = "runs/default/x/config.yaml"


def fit(*args):
    return main(["fit", *SMALL, "--id=x", *args])


def of_the_run(verb, *args):
    return main([verb, "--config", CONFIG, *args])


def is_of(cli, path):
    weight = torch.load(path, weights_only=True)["state_dict"]["network.fc.weight"]
    return torch.equal(cli.model.network.fc.weight, weight)


def test_the_best_checkpoint_is_taken_and_named(caplog, refused):
    assert "no checkpoint in " in refused(main, ["test", *SMALL])
    assert not Path("runs").exists()
    run = fit("--checkpoint.monitor=epoch", "--checkpoint.mode=min")
    checkpoints = run.run_folder / "checkpoints"
    (best,) = checkpoints.glob("epoch=*.ckpt")
    for verb, more in (("test", []), ("validate", []), ("predict", ["--data.path=data/val"])):
        caplog.clear()
        cli = of_the_run(verb, *more)
        assert is_of(cli, best)
        assert not is_of(cli, checkpoints / "last.ckpt")
        assert f"from the best checkpoint, {best}" in caplog.text
    best.unlink()
    caplog.clear()
    assert is_of(of_the_run("test"), checkpoints / "last.ckpt")
    assert "from the last checkpoint, runs/default/x/checkpoints/last.ckpt" in caplog.text
    shutil.rmtree(checkpoints)
    table = (run.run_folder / "predictions.csv").read_bytes()
    advice = "give --config=<run>/config.yaml or --ckpt_path=<file>; an untrained network: --ckpt_path=initial"
    assert refused(of_the_run, "predict", "--data.path=data/val") == f"no checkpoint in {checkpoints}; {advice}"
    assert (run.run_folder / "predictions.csv").read_bytes() == table
    assert of_the_run("validate", "--ckpt_path=initial").checkpoint is None


def test_weights_to_start_from_may_be_tested_but_a_run_s_checkpoints_come_first(caplog):
    first = fit()
    weights = f"--model.weights={first.run_folder}/checkpoints/last.ckpt"
    main(["test", *SMALL, weights, "--id=y"])
    assert "from the weights runs/default/x/checkpoints/last.ckpt" in caplog.text
    tuned = fit("--id=z", weights)
    cli = main(["test", "--config", str(tuned.run_folder / "config.yaml")])
    assert Path(cli.args.ckpt_path).parent == tuned.run_folder / "checkpoints"


def test_a_resumed_run_is_tested_by_its_best_checkpoint_too():
    fit()
    fit("--trainer.max_epochs=3", "--ckpt_path=last")
    assert yaml.safe_load(Path(CONFIG).read_text())["ckpt_path"] is None
    assert Path(of_the_run("test").args.ckpt_path).name.startswith("epoch=")


def rename(before, after):
    for part in ("train", "val"):
        Path("data", part, before).rename(Path("data", part, after))


def test_classes_with_other_names(refused):
    fit()
    rename("ant", "zebra")
    expected = "was trained on other classes than the data have; only in the checkpoint: ant; only in the data: zebra"
    for verb, *args in (("test",), ("validate",), ("predict", "--data.path=data/val")):
        assert expected in refused(of_the_run, verb, *args)
    assert expected in refused(fit, "--ckpt_path=last", "--trainer.max_epochs=3")
    rename("zebra", "ant")
    for part in ("train", "val"):
        shutil.copytree(f"data/{part}/ant", f"data/{part}/ape")
    assert "only in the checkpoint: none; only in the data: ape" in refused(of_the_run, "test")


def test_predict_needs_no_training_data():
    fit("--trainer.max_epochs=1")
    rows = []
    for k in range(2):
        of_the_run("predict", "--data.path=data/val" if k == 0 else "--data.path=kept")
        with open("runs/default/x/predictions.csv") as file:
            rows.append([(row["class"], row["probability_1"]) for row in csv.DictReader(file)])
        if k == 0:
            Path("data/val").rename("kept")
            shutil.rmtree("data")
    assert rows[0] == rows[1]


def test_another_normalisation(refused):
    fit("--trainer.max_epochs=1")
    line = refused(of_the_run, "test", "--data.mean=[0.5,0.5,0.5]")
    assert "was trained with mean=[0.485, 0.456, 0.406], here [0.5, 0.5, 0.5]" in line
    of_the_run("test", "--data.image_size=20")


def model(blocks=None, **arguments):
    blocks = Blocks(**{"at": "layer3"} | (blocks or {}))
    return ImageClassification(3, "local_convnet", (3, 16, 16), blocks, **arguments)


LAST = Path("runs/default/x/checkpoints/last.ckpt")


@pytest.mark.parametrize(
    ("blocks", "named"),
    [
        ({"pairwise": "dot_product"}, "blocks.pairwise=embedded_gaussian, here dot_product"),
        ({"scale": True}, "blocks.scale=False, here True"),
        ({"pool": 2}, "blocks.pool=None, here 2"),
        ({"pool_position": "embedding"}, "blocks.pool_position=input, here embedding"),
        ({"window": [1, None]}, "blocks.window=None, here [1, None]"),
        ({"at": "layer2"}, "blocks.at=layer3, here layer2"),
        ({"norm": "layer"}, "blocks.norm=batch, here layer"),
    ],
)
def test_another_network(trained, blocks, named):
    for resume in (False, True):
        with pytest.raises(ValueError, match=re.escape(f"was trained with {named}")):
            check_checkpoint(LAST, load(LAST), model(blocks), ImageFolder("data", 16), resume)


def test_whatever_the_verb(refused, trained):
    named = "was trained with blocks.pool=None, here 2"
    assert refused(of_the_run, "predict", "--data.path=data/val", "--model.blocks.pool=2").endswith(named)
    line = refused(of_the_run, "fit", "--ckpt_path=last", "--trainer.max_epochs=3", "--model.blocks.pool=2")
    assert line.endswith(f"{named}; to start from its weights: --model.weights=<file>")


@pytest.fixture(scope="module")
def run_of_the_module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    here = Path.cwd()
    os.chdir(folder)
    try:
        image_folder.fake("data")
        fit("--trainer.max_epochs=1")
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def trained(run_of_the_module, tmp_path):
    shutil.copytree(run_of_the_module / "runs", tmp_path / "runs")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"name": "lion"}, "optimizer.name=adamw, here lion"),
        ({"decay_all": False}, "optimizer.decay_all=True, here False"),
        ({"weight_decay": 0.5}, "optimizer.weight_decay=0.0001, here 0.5"),
    ],
)
def test_another_optimiser(trained, option, named):
    other = model(optimizer=Optimizer(**option))
    line = re.escape(f"{LAST} was trained with {named}; to start from its weights: --model.weights=<file>")
    with pytest.raises(ValueError, match=line):
        check_checkpoint(LAST, load(LAST), other, ImageFolder("data", 16), resume=True)
    check_checkpoint(LAST, load(LAST), other, ImageFolder("data", 16), resume=False)


def test_a_file_of_weights_is_no_checkpoint(trained, refused):
    """In the three formats that `--model.weights` takes."""
    weights = torch.load(LAST, weights_only=True)["state_dict"]
    save_file(weights, "weights.safetensors")
    torch.save(weights, "weights.pt")
    torch.save({"state_dict": weights}, "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "weights.pt", "old.ckpt"):
        line = refused(of_the_run, "test", f"--ckpt_path={name}")
        assert line.startswith(f"{name} cannot be tested, it is without pytorch-lightning_version")
        assert line.endswith("; --model.weights=<file> takes its weights")


@pytest.mark.parametrize(
    ("left_out", "resume", "line"),
    [
        ("optimizer_states", True, "cannot be resumed, it is without optimizer_states; --model.weights=<file> takes"),
        ("loops", True, "cannot be resumed, it is without loops"),
        ("pytorch-lightning_version", False, "cannot be tested, it is without pytorch-lightning_version"),
    ],
)
def test_half_a_checkpoint(trained, left_out, resume, line):
    saved = torch.load(LAST, weights_only=True)
    del saved[left_out]
    torch.save(saved, LAST)
    with pytest.raises(ValueError, match=line):
        check_checkpoint(LAST, load(LAST), model(), ImageFolder("data", 16), resume)


def test_other_options_of_training_are_said(trained, caplog):
    more = ["--model.optimizer.lr=0.5", "--model.mixup=0.2", "--model.loss.label_smoothing=0.1"]
    cli = fit("--ckpt_path=last", "--trainer.max_epochs=2", *more)
    assert cli.trainer.global_step == 6
    named = "loss.label_smoothing=0.0, here 0.1; optimizer.lr=0.001, here 0.5; mixup=0.0, here 0.2"
    assert f"which was trained with {named}; its learning rate is kept" in caplog.text
    assert cli.trainer.optimizers[0].param_groups[0]["initial_lr"] == 0.001


def test_other_batches(trained, refused, caplog):
    resumed = fit("--ckpt_path=last", "--trainer.max_epochs=2", "--data.batch_size=2")
    assert resumed.trainer.global_step == 3 + 7, "one epoch of 3 batches, one of 7"
    change = "samples in a batch of all processes: 4 before, 2 now"
    assert f"resuming with other batches; {change}" in caplog.text
    middle = ["--id=y", "--trainer.max_steps=2"]
    fit(*middle)
    line = refused(fit, "--id=y", "--ckpt_path=last", "--data.batch_size=2")
    assert line == f"an epoch cannot go on in its middle with other batches; {change}"
    caplog.clear()
    fit("--ckpt_path=last", "--trainer.max_epochs=3", "--data.batch_size=2", "--trainer.accumulate_grad_batches=2")
    assert "resuming with other batches; batches in a step: 1 before, 2 now" in caplog.text
