"""Which network a command uses, and what is refused because it is another than the user means."""

import csv
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from nonlocal_nets import data
from nonlocal_nets.data import ImageFolder, image_folder
from nonlocal_nets.run.checkpoints import load
from nonlocal_nets.run.cli import main
from nonlocal_nets.run.identity import _samples, check_checkpoint
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
LAST = Path("runs/default/x/checkpoints/last.ckpt")
FIRST_IS_BEST = ["--checkpoint.monitor=epoch", "--checkpoint.mode=min"]


def fit(*args):
    return main(["fit", *SMALL, "--id=x", *args])


def of_the_run(verb, *args):
    return main([verb, "--config", CONFIG, *args])


def is_of(cli, path):
    weight = torch.load(path, weights_only=True)["state_dict"]["network.fc.weight"]
    return torch.equal(cli.model.network.fc.weight, weight)


@pytest.fixture(scope="module")
def run_of_the_module(tmp_path_factory):
    """Two epochs, of which the first is the best."""
    folder = tmp_path_factory.mktemp("run")
    here = Path.cwd()
    os.chdir(folder)
    try:
        image_folder.fake("data")
        fit(*FIRST_IS_BEST)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def trained(run_of_the_module, tmp_path):
    """A copy of that run, and the folder of its checkpoints."""
    shutil.copytree(run_of_the_module / "runs", tmp_path / "runs")
    return LAST.parent


def test_the_best_checkpoint_is_taken_and_named(trained, caplog, refused):
    (best,) = trained.glob("epoch=*.ckpt")
    for verb, more in (("test", []), ("predict", ["--data.path=data/val"])):
        caplog.clear()
        cli = of_the_run(verb, *more)
        assert is_of(cli, best)
        assert not is_of(cli, LAST)
        assert f"from the best checkpoint, {best}" in caplog.text
    best.unlink()
    caplog.clear()
    assert is_of(of_the_run("validate"), LAST)
    assert "from the last checkpoint, runs/default/x/checkpoints/last.ckpt" in caplog.text
    shutil.rmtree(trained)
    table = Path("runs/default/x/predictions.csv").read_bytes()
    advice = "give --config=<run>/config.yaml or --ckpt_path=<file>; an untrained network: --ckpt_path=initial"
    assert refused(of_the_run, "predict", "--data.path=data/val") == f"no checkpoint in {trained}; {advice}"
    assert Path("runs/default/x/predictions.csv").read_bytes() == table


def test_a_command_without_a_run_leaves_no_folder(refused):
    assert "no checkpoint in " in refused(main, ["test", *SMALL])
    assert not Path("runs").exists()


def test_weights_to_start_from_may_be_tested_but_a_run_s_checkpoints_come_first(trained, caplog):
    (best,) = trained.glob("epoch=*.ckpt")
    weights = f"--model.weights={LAST}"
    main(["test", *SMALL, weights, "--id=y"])
    assert "from the weights runs/default/x/checkpoints/last.ckpt" in caplog.text
    assert of_the_run("test", weights).checkpoint.samefile(best)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model.blocks.pairwise=dot_product"], "blocks.pairwise=embedded_gaussian, here dot_product"),
        (["--data.mean=[0.5,0.5,0.5]"], "mean=[0.485, 0.456, 0.406], here [0.5, 0.5, 0.5]"),
    ],
)
def test_weights_of_a_run_are_of_its_network_and_its_data(trained, refused, caplog, options, named):
    """Training may begin from others."""
    weights = [*SMALL, f"--model.weights={LAST}", "--id=y", *options]
    assert refused(main, ["test", *weights]) == f"{LAST} was trained with {named}"
    main(["test", *weights, "--ckpt_path=initial"])
    if "pairwise" in named:  # one kind is enough
        main(["fit", *weights, "--trainer.max_epochs=0"])
        line = f"beginning from weights of another network or other data: {LAST} was trained with {named}"
        assert caplog.text.count(line) == 1


def test_weights_of_a_run_with_other_classes(trained, refused):
    rename("ant", "zebra")
    line = refused(main, ["predict", *SMALL, f"--model.weights={LAST}", "--data.path=data/val"])
    assert line.endswith("only in the checkpoint: ant; only in the data: zebra")
    shutil.rmtree("data/train")
    main(["predict", *SMALL, f"--model.weights={LAST}", "--data.path=data/val", "--id=y"])
    table = Path("runs/default/y/predictions.csv").read_text()
    assert "ant" in table


def test_a_run_that_was_moved_is_not_begun_anew(trained, refused):
    Path("runs/default/x").rename("moved")
    line = refused(main, ["fit", "--config=moved/config.yaml", "--ckpt_path=last"])
    advice = "give --trainer.default_root_dir, --project and --id"
    assert line == f"the run in moved is runs/default/x in its config: {advice}"
    assert not Path("runs/default/x").exists()
    new = main(["fit", "--config=moved/config.yaml", "--ckpt_path=last", "--id=new", "--trainer.max_epochs=0"])
    assert new.checkpoint is None


def test_a_resumed_run_is_tested_by_its_best_checkpoint_too(trained, caplog):
    """And what has changed of its options is said."""
    more = ["--model.optimizer.lr=0.5", "--model.mixup=0.2", "--model.loss.label_smoothing=0.1"]
    cli = fit("--ckpt_path=last", "--trainer.max_epochs=3", *FIRST_IS_BEST, *more)
    assert cli.trainer.global_step == 9
    named = "loss.label_smoothing=0.0, here 0.1; optimizer.lr=0.001, here 0.5; mixup=0.0, here 0.2"
    assert f"which was trained with {named}; its learning rate is kept" in caplog.text
    assert cli.trainer.optimizers[0].param_groups[0]["initial_lr"] == 0.001
    assert yaml.safe_load(Path(CONFIG).read_text())["ckpt_path"] is None
    assert Path(of_the_run("test").args.ckpt_path).name.startswith("epoch=")


def rename(before, after):
    for part in ("train", "val"):
        Path("data", part, before).rename(Path("data", part, after))


def check(data, resume=False, network=None):
    """What a command does once it has the network and the data."""
    check_checkpoint(LAST, load(LAST), network or model(), data, resume)


def test_classes_with_other_names(trained, refused):
    rename("ant", "zebra")
    expected = "was trained on other classes than the data have; only in the checkpoint: ant; only in the data: zebra"
    assert expected in refused(of_the_run, "predict", "--data.path=data/val")
    for resume in (False, True):
        with pytest.raises(ValueError, match=expected):
            check(ImageFolder("data", 16), resume)
    rename("zebra", "ant")
    for part in ("train", "val"):
        shutil.copytree(f"data/{part}/ant", f"data/{part}/ape")
    four = ImageClassification(4, "local_convnet", (3, 16, 16), Blocks(at="layer3"))
    with pytest.raises(ValueError, match="only in the checkpoint: none; only in the data: ape"):
        check(ImageFolder("data", 16), network=four)


def test_predict_needs_no_training_data(trained):
    rows = []
    for k in range(2):
        of_the_run("predict", "--data.path=data/val" if k == 0 else "--data.path=kept")
        with open("runs/default/x/predictions.csv") as file:
            rows.append([(row["class"], row["probability_1"]) for row in csv.DictReader(file)])
        if k == 0:
            Path("data/val").rename("kept")
            shutil.rmtree("data")
    assert rows[0] == rows[1]


def test_another_normalisation(trained):
    line = re.escape("was trained with mean=[0.485, 0.456, 0.406], here [0.5, 0.5, 0.5]")
    with pytest.raises(ValueError, match=line):
        check(ImageFolder("data", 16, mean=(0.5, 0.5, 0.5)))
    of_the_run("test", "--data.image_size=20")


def model(blocks=None, **arguments):
    blocks = Blocks(**{"at": "layer3"} | (blocks or {}))
    return ImageClassification(3, "local_convnet", (3, 16, 16), blocks, **arguments)


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
            check(ImageFolder("data", 16), resume, model(blocks))


def test_whatever_the_verb(refused, trained):
    named = "was trained with blocks.pool=None, here 2"
    assert refused(of_the_run, "predict", "--data.path=data/val", "--model.blocks.pool=2").endswith(named)
    line = refused(of_the_run, "fit", "--ckpt_path=last", "--trainer.max_epochs=3", "--model.blocks.pool=2")
    assert line.endswith(f"{named}; to start from its weights: --model.weights=<file>")


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
        check(ImageFolder("data", 16), True, other)
    check(ImageFolder("data", 16), False, other)


def test_a_file_of_weights_is_no_checkpoint(trained, refused):
    """In the three formats that `--model.weights` takes."""
    weights = torch.load(LAST, weights_only=True)["state_dict"]
    save_file(weights, "weights.safetensors")
    torch.save(weights, "weights.pt")
    torch.save({"state_dict": weights}, "old.ckpt", _use_new_zipfile_serialization=False)
    starts, ends = (
        "{} cannot be tested, it is without pytorch-lightning_version",
        "; --model.weights=<file> takes its weights",
    )
    line = refused(of_the_run, "test", "--ckpt_path=weights.safetensors")
    assert line.startswith(starts.format("weights.safetensors"))
    assert line.endswith(ends)
    for name in ("weights.pt", "old.ckpt"):
        with pytest.raises(ValueError, match=f"^{re.escape(starts.format(name))}.*{re.escape(ends)}$"):
            check_checkpoint(Path(name), load(Path(name)), model(), ImageFolder("data", 16), resume=False)


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
        check(ImageFolder("data", 16), resume)


def test_other_batches(trained, refused, caplog):
    more = ["--data.batch_size=2", "--trainer.accumulate_grad_batches=2"]
    resumed = fit("--ckpt_path=last", "--trainer.max_epochs=3", *FIRST_IS_BEST, *more)
    assert resumed.trainer.global_step == 2 * 3 + 4, "two epochs of 3 batches, one of 7, in 4 steps"
    change = "samples in a batch of all processes: 4 before, 2 now"
    assert f"resuming with other batches; {change}; batches in a step: 1 before, 2 now\n" in caplog.text
    middle = ["--id=y", "--trainer.max_steps=2"]
    fit(*middle)
    line = refused(fit, "--id=y", "--ckpt_path=last", "--data.batch_size=2")
    assert line == f"an epoch cannot go on in its middle with other batches; {change}"


def test_the_rest_of_an_epoch_is_trained_with_another_accumulation(trained, caplog):
    fit("--id=y", "--trainer.max_steps=1")
    (all_of_them,) = re.findall(r"\((\d+) samples\)", caplog.text)
    assert all_of_them == "4"
    caplog.clear()
    fit("--id=y", "--ckpt_path=last", "--trainer.max_epochs=1", "--trainer.accumulate_grad_batches=2")
    assert "resuming with other batches; batches in a step: 1 before, 2 now" in caplog.text
    assert "(8 samples)" in caplog.text, "an epoch has three batches of 4"


@pytest.mark.parametrize("name", ["ListOps", "CIFAR", "CuedDigits", "CuedClips", "ImageFolder"])
def test_other_samples_of_each_kind_of_data_are_told(name, tmp_path):
    """Of another seed: of what is generated, or of the split."""
    cls = getattr(data, name)
    fake = getattr(sys.modules[cls.__module__], "fake", None)
    generated = {"train_samples": 20, "val_samples": 2, "test_samples": 2}
    arguments = generated if name in ("ListOps", "CuedDigits", "CuedClips") else fake(tmp_path)
    if name == "ImageFolder":  # without folders for the parts
        shutil.rmtree(tmp_path / "val")
        arguments["root"] = str(tmp_path / "train")

    def samples(seed):
        return _samples(cls(**arguments | {"seed": seed}).train_dataloader().dataset)

    first, again, other = samples(0), samples(0), samples(1)
    assert first == again
    assert first["digest of the training samples"] != other["digest of the training samples"]


def test_other_samples_or_another_seed(trained, refused, caplog):
    middle = ["--id=y", "--trainer.max_steps=2"]
    fit(*middle)
    line = refused(fit, "--id=y", "--ckpt_path=last", "--seed_everything=1")
    assert line == "an epoch cannot go on in its middle with other batches; seed: 0 before, 1 now"
    picture = next(Path("data/train/ant").iterdir())
    picture.rename(picture.with_name(f"another{picture.suffix}"))
    line = refused(fit, "--id=y", "--ckpt_path=last")
    assert "with other batches; digest of the training samples: " in line
    picture.with_name(f"another{picture.suffix}").unlink()
    fit("--ckpt_path=last", "--trainer.max_epochs=3", *FIRST_IS_BEST)
    said = re.search(
        r"with other batches; training samples: (\d+) before, (\d+) now; digest of the training samples: ", caplog.text
    )
    assert int(said[1]) == int(said[2]) + 1
