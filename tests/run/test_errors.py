"""Bad input to train.py ends with exit code 2 and one readable line, before anything is trained or written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse._common import debug_mode_active

from nonlocal_nets.data import image_folder
from nonlocal_nets.nn.backbones.image import LocalConvNet
from nonlocal_nets.run.checkpoints import load
from nonlocal_nets.run.cli import main
from nonlocal_nets.run.errors import debug, readable

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "image" / "cued_digits.yaml")

MODEL = "model: ImageClassification: "
WORDS = {
    "--model.pairwize=x": MODEL + "no argument 'pairwize'; nearest: blocks.pairwise",
    "--modle.lr=1": "no argument --modle.lr; nearest: --model",
    "--trainer.max_epocs=3": "no argument --trainer.max_epocs; nearest: --trainer.max_epochs",
    "--model.optimizer.lr=abc": MODEL + "optimizer.lr: expected float, got abc",
    "--model.blocks.pool=x": MODEL + "blocks.pool: expected null or list or int, got x",
    "--model.optimizer.lrr=1": MODEL + "no argument 'optimizer.lrr'; nearest: optimizer.lr",
    "--model.lr=1": MODEL + "no argument 'lr'; nearest: optimizer.lr",
    "--model.blocks=paper-5": MODEL + "blocks is a group of options, got 'paper-5'; it has blocks.at, ",
    "--model.schedule.milestones=[3]": "schedule.milestones go with name='step', got 'cosine' and [3]",
    "--model.optimizer.name=adamv": "optimizer.name must be one of timm's, got 'adamv'; nearest: adam",
    "--trainer.max_epochs=a": "trainer.max_epochs: expected null or int, got a",
    "--model.optimizer.lr=-1": "optimizer.lr must be at least 0, got -1.0",
    "--data.batch_size=0": "batch_size must be at least 1, got 0",
    "--data=Nope": "data: no class Nope",
    "--model.blocks.pairwise=cosine": "pairwise must be one of gaussian, embedded_gaussian, dot_product, concatenation",
    "--model.backbone=resnet5O": "unknown backbone 'resnet5O'",
    "--model.blocks.window=[5,5]": "window (5, 5) does not divide the input's size (12, 12)",
    "--model.blocks.at={layer9: 1}": "no stage 'layer9' in LocalConvNet; insertion points: layer1",
    "--config=nope.yaml": "no config file 'nope.yaml'",
    "--model.num_classes=7": "--model.num_classes comes from the data and cannot be set",
    "--model.loss.class_weights=[1]": "loss.class_weights must be 2 numbers, one for each class, got 1 numbers",
    "--model.weights=nope.pt": "no weight file 'nope.pt'; a file, or one of efficientnet_lite0",
}
YAMLS = {
    "model:\n  init_args:\n    blocks:\n      pol: 2\n": MODEL + "no argument 'blocks.pol'; nearest: blocks.pool",
    "model:\n  a: [1,\n  b": "bad.yaml, line 3, column 4: expected ',' or ']'",
    "trainer:\n  max_epocs: 3\n": "no argument --trainer.max_epocs; nearest: --trainer.max_epochs",
    "model:\n  init_args:\n    input_size: [3, 7, 7]\n": "bad.yaml: model.init_args.input_size comes from the data",
    "model:\n  init_args:\n    pairwize: a\n": MODEL + "no argument 'pairwize'; nearest: blocks.pairwise",
}


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", CONFIG, *words])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert ": error: " in line
    assert not list(Path().iterdir())
    return line.partition(": error: ")[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    monkeypatch.delenv("JSONARGPARSE_DEBUG", raising=False)


# what a constructor refuses, tested there: fast are those of the command line, and one of each kind of class
REFUSED_ELSEWHERE = (
    "schedule",
    "optimizer.name",
    "backbone",
    "blocks.pairwise",
    "blocks.window",
    "blocks.at",
    "weights",
)
WORDS_BY_SPEED = [
    pytest.param(
        word, marks=[pytest.mark.slow] * word.startswith(tuple(f"--model.{name}" for name in REFUSED_ELSEWHERE))
    )
    for word in WORDS
]


@pytest.mark.parametrize("word", WORDS_BY_SPEED)
def test_bad_word(word, capsys):
    assert error_of(capsys, word).startswith(WORDS[word])


@pytest.mark.parametrize("text", YAMLS)
def test_bad_yaml(text, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert error_of(capsys, f"--config={path}").removeprefix(f"{tmp_path}/").startswith(YAMLS[text])


def test_a_network_that_is_not_for_the_data(capsys):
    message = "the data are tokens: backbone must be token_resnet, got signal_resnet"
    series = str(ROOT / "configs" / "sequence" / "ucr.yaml")
    words = ["--config", series, "--data=ListOps", "--data.root=null", "--data.min_length=4", "--data.max_length=40"]
    assert error_of(capsys, *words).startswith(message)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--model=nosuch.Task"], "nosuch.Task"),
        (["--model=nonlocal_nets.tasks.Deblurring"], "nonlocal_nets.tasks.Deblurring"),
        (["--data=nonlocal_nets.data.Blob"], "nonlocal_nets.data.Blob"),
        (["--trainer.callbacks+=nosuch.Callback"], "nosuch.Callback"),
    ],
)
def test_a_class_that_is_not_there(capsys, args, named):
    message = error_of(capsys, "--config", CONFIG, *args)
    assert all(part in message for part in named.rsplit(".", 1))
    assert len(message) < 300


def test_a_typo_in_a_group_of_a_config(capsys, tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text(Path(CONFIG).read_text().replace("\ntrainer:", "\ntraner:"))
    assert error_of(capsys, f"--config={path}").startswith("no argument --traner.")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    assert debug_mode_active(), "jsonargparse accepts it"
    with pytest.raises(ValueError, match=r"optimizer\.lr must be at least 0"):
        main(["fit", "--config", CONFIG, "--model.optimizer.lr=-1"])


def test_checkpoints_that_do_not_fit(tmp_path, capsys):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match=r"broken\.ckpt' is not a checkpoint"):
        load(broken)
    other = tmp_path / "other.ckpt"
    network = LocalConvNet(5)
    torch.save({"state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}}, other)
    message = checkpoint_error(capsys, str(other), "--model.blocks.at=none")
    assert "network.fc.weight (5, 32), here (2, 32)" in message
    with pytest.raises(ValueError, match="no weight file"):
        load(tmp_path / "none.ckpt")
    assert "no checkpoint that can be read in runs/cued_digits/new/checkpoints" in checkpoint_error(capsys, "last")


def checkpoint_error(capsys, path, *words):
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", CONFIG, "--id=new", f"--ckpt_path={path}", *words])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow  # fast, in this process: test_bad_word
def test_a_process_ends_with_code_2_and_one_line_on_stderr():
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", CONFIG, "--model.optimizer.lr=-1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "train.py: error: optimizer.lr must be at least 0, got -1.0\n"


@pytest.fixture
def images(tmp_path):
    """A folder of images, and the words that train a small network on it."""
    root = image_folder.fake(Path(os.path.relpath(tmp_path / "images")))["root"]
    names = ["--data=ImageFolder", f"--data.root={root}", "--data.image_size=16", "--data.batch_size=2", "--id=new"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    return Path(root), ["--config", CONFIG, *names, *quiet]


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].partition(": error: ")[2]


def test_folders_of_images_that_are_missing_or_empty(images, capsys):
    root, words = images
    (root / "train" / "dog").mkdir()
    assert f"{root}/train: Found no valid file for the classes dog" in fails(capsys, "fit", *words)
    words = ["fit", *words, f"--data.root={root}/none"]
    assert (
        fails(capsys, *words) == f"no folder {root}/none: expected {root}/none/train/<class>/* and {root}/none/val/"
        f"<class>/*, or {root}/none/<class>/*"
    )
    assert not list(Path().iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_in_the_middle_of_an_epoch_stops_with_its_path(images, capsys, workers):
    root, words = images
    path = root / "train" / "bee" / "3.png"
    path.write_bytes(path.read_bytes()[:40])
    message = fails(capsys, "fit", *words, f"--data.num_workers={workers}")
    assert message.startswith(f"corrupt image {path}: ")
    assert "Traceback" not in message


def test_a_corrupt_image_is_replaced_and_counted_up_to_a_share(images, capsys, caplog):
    root, words = images
    for k in (0, 2):
        (root / "train" / "bee" / f"{k}.jpg").write_bytes(b"none")
    replace = ["--data.corrupt=replace", "--data.batch_size=3"]  # 15 images: none is dropped
    message = fails(capsys, "fit", *words, *replace, "--data.max_corrupt=0.1")
    assert message.startswith(f"corrupt image {root}/train/bee/")
    listed = message.partition("2 of 15 images so far, more than max_corrupt=0.1: ")[2]
    assert listed == f"{root}/train/bee/0.jpg (+1 more)"
    caplog.clear()
    main(["fit", *words, *replace, "--data.max_corrupt=0.2", "--id=enough"])
    named = [message for message in caplog.messages if message.startswith("corrupt image")]
    assert len(named) == 2
    assert named[1].endswith("replaced by another (2 of 15 images so far)")


def test_what_is_no_image_at_all_stops_before_any_work(images, capsys):
    root, words = images
    path = root / "val" / "cat" / "1.png"
    path.write_bytes(b"<html>not found</html>")
    assert fails(capsys, "fit", *words).startswith(f"corrupt image {path}: ")
    assert not list(Path().iterdir())


def test_a_corrupt_image_to_predict(images, capsys):
    root, words = images
    path = root / "train" / "bee" / "3.png"
    path.write_bytes(b"none")
    quiet = "--trainer.enable_progress_bar=false"
    message = fails(capsys, "predict", *words[:7], quiet, f"--data.path={path}", "--ckpt_path=initial")
    assert message.startswith(f"corrupt image {path}: ")


def test_best_of_a_run_without_a_checkpoint(capsys):
    assert "no last checkpoint in runs/cued_digits/new/checkpoints" in checkpoint_error(capsys, "best")


def test_best_where_the_last_checkpoint_is_none(capsys):
    last = Path("runs/cued_digits/new/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.write_bytes(b"torn")
    assert f"'{last}' is not a checkpoint" in checkpoint_error(capsys, "best")
    torch.save({"state_dict": {}, "callbacks": {}}, last)
    assert f"{last} records no best checkpoint" in checkpoint_error(capsys, "best")


@pytest.mark.filterwarnings("ignore:.*is not a checkpoint.*taking the one before it")
def test_where_all_checkpoints_are_torn_a_run_does_not_begin_again(capsys):
    folder = Path("runs/cued_digits/torn/checkpoints")
    folder.mkdir(parents=True)
    for name in ("last.ckpt", "epoch=0-step=3.ckpt"):
        (folder / name).write_bytes(b"torn")
    message = fails(capsys, "fit", "--config", CONFIG, "--id=torn", "--ckpt_path=last")
    assert message == f"no checkpoint that can be read in {folder}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["fitt"],
            "no verb 'fitt'; nearest: fit; there are fit, validate, test, predict, compare, sweep",
        ),
        (["x.yaml"], "no verb 'x.yaml'; there are fit, validate, test, predict, compare, sweep"),
        (
            ["fit", "--config", CONFIG, "--trainer.max_epoch=1"],
            "no argument --trainer.max_epoch; nearest: --trainer.max_epochs",
        ),
        (["fit", "--config", CONFIG, "--proj=a"], "no argument --proj; nearest: --project"),
        (["compare", CONFIG, "--variant", "a:", "--seed=2"], "unrecognized arguments: --seed=2"),
    ],
)
def test_verbs_and_options_are_whole_words(capsys, args, message):
    line = fails(capsys, *args)
    assert line.startswith(message)


@pytest.mark.parametrize("given", ["", "false", "False"])
def test_words_for_no_debugging(monkeypatch, given):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", given)
    assert not debug()


@pytest.mark.parametrize("words", [["-c", "nope.yaml"], ["--config", "nope.yaml"], ["--config=nope.yaml"]])
def test_a_config_that_is_not_there_however_it_is_given(capsys, words):
    assert fails(capsys, "fit", *words) == "no config file 'nope.yaml'"


@pytest.mark.parametrize("word", ["--model.num_classes=7", "--model.init_args.input_size=[3,7,7]"])
def test_what_only_the_data_know_however_it_is_given(capsys, word):
    assert fails(capsys, "fit", word) == f"{word.partition('=')[0]} comes from the data and cannot be set"


def test_nearest_names_are_of_the_class_that_is_named_last():
    """A model within a model: the inner one refuses the option."""
    message = "\n".join(
        [
            "Problem with given class_path 'nonlocal_nets.tasks.ImageClassification':",
            "  Problem with given class_path 'nonlocal_nets.run.summary.Summary':",
            "    Problem with given class_path 'torch.nn.Linear':",
            "      Option 'in_feature' is not accepted",
        ]
    )
    nearest = "no argument 'in_feature'; nearest: in_features, out_features"
    assert readable(message) == f"ImageClassification: Summary: Linear: {nearest}"
