"""Commands of `train.py` that cannot work, from values that an option does not take and from broken files."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from nonlocal_nets.data import image_folder

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "image" / "cued_digits.yaml")
TINY = [
    "--data.train_samples=16",
    "--data.val_samples=8",
    "--data.test_samples=8",
    "--data.batch_size=4",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks=[]",
]
FIT = ["fit", "--config", CONFIG, *TINY]

VALUES = {
    "--seed_everything": ["-1", "1e20", "99999999999999999999", "abc", "1.5"],
    "--trainer.devices": ["-1", "0", "-2", "a", "[]"],
    "--trainer.num_nodes": ["0", "-1"],
    "--trainer.accelerator": ["nope", "gpu", "tpu"],
    "--trainer.strategy": ["nope"],
    "--trainer.precision": ["8", "nope"],
    "--trainer.max_epochs": ["-5", "1.5"],
    "--trainer.max_steps": ["-7", "a"],
    "--trainer.max_time": ["abc", "-1", "99"],
    "--trainer.limit_train_batches": ["-1", "1.5", "-0.5", "0", "0.0", "nan", "a"],
    "--trainer.limit_val_batches": ["-1", "1.5"],
    "--trainer.overfit_batches": ["-1", "1.5", "nan", "-0.5"],
    "--trainer.val_check_interval": ["0", "0.0", "-1", "5", "1000", "1.5", "nan"],
    "--trainer.check_val_every_n_epoch": ["0", "-1"],
    "--trainer.num_sanity_val_steps": ["-2", "a"],
    "--trainer.log_every_n_steps": ["-1"],
    "--trainer.accumulate_grad_batches": ["0", "-1", "1.5"],
    "--trainer.gradient_clip_val": ["-1", "nan", "a"],
    "--trainer.gradient_clip_algorithm": ["nope"],
    "--trainer.reload_dataloaders_every_n_epochs": ["-1"],
    "--trainer.deterministic": ["maybe"],
    "--trainer.profiler": ["nope"],
    "--trainer.fast_dev_run": ["-1"],
    "--trainer.logger": ["nope", "nosuch.Logger"],
    "--trainer.plugins": ["nope"],
    "--trainer": ["nope", "[]"],
    "--trainer.callbacks": ["nope", "{}"],
    "--trainer.callbacks+": [
        "nope",
        "EarlyStopping",
        "RichProgressBar",
        "RichModelSummary",
        '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/nope"}}',
        '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "mode": "nope"}}',
        '{"class_path": "Timer", "init_args": {"duration": "nope"}}',
        '{"class_path": "GradientAccumulationScheduler", "init_args": {"scheduling": {}}}',
        '{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": -1}}',
        '{"class_path": "AttentionMaps", "init_args": {"samples": -1}}',
        '{"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -3}}',
    ],
    "--checkpoint.monitor": ["val/nope", "[]"],
    "--checkpoint.mode": ["nope", "min"],
    "--checkpoint.save_top_k": ["-3", "a"],
    "--checkpoint.every_n_train_steps": ["-1"],
    "--checkpoint.every_n_epochs": ["-1"],
    "--checkpoint.filename": ["{", "{epoch:q}", "a{epoch"],
    "--checkpoint": ["nope"],
    "--id": ["", "../x", "a/b", "x" * 300, "a\nb"],
    "--project": ["", ".."],
    "--data": ["nope", "null", "[]", "nosuch.Data"],
    "--data.train_samples": ["0", "-1", "1000000000000000000", "1e18", "a"],
    "--data.batch_size": ["0", "-1", "1.5", "1000000000000000000000"],
    "--data.num_workers": ["-1", "a", "100000"],
    "--data.seed": ["-1", "a"],
    "--model": ["nope", "null", "[]"],
    "--model.backbone": ["nope", "", "null"],
    "--model.optimizer.lr": ["-1", "nan", "inf", "a"],
    "--model.optimizer.momentum": ["1", "2", "-1", "nan"],
    "--model.optimizer.weight_decay": ["-1", "nan", "inf"],
    "--model.optimizer.lr_base_size": ["0", "-1"],
    "--model.optimizer.name": ["", "nope"],
    "--model.schedule.name": ["nope"],
    "--model.schedule.warmup_steps": ["-1", "1.5"],
    "--model.loss.label_smoothing": ["1.5", "-1", "nan"],
    "--model.loss.class_weights": ["[1,-1]", "[nan,1]", "[0,0]", "[inf,1]", "[1,2,3]", "a"],
    "--model.blocks.at": ["nope", "{layer3: -1}", "{layer3: 1000}", "[]", "{}"],
    "--model.blocks.inner_channels": ["0", "-1"],
    "--model.blocks.pool": ["0", "-1", "1000"],
    "--model.blocks.window": ["0", "[0,0]", "[1,2,3]"],
    "--model.blocks.pairwise": ["nope", "nosuch.Pairwise", ""],
    "--model.weights": ["nope.pt", "."],
    "--ckpt_path": [
        "",
        "nope.ckpt",
        ".",
        "best",
        "s3://key:secret@host/a.ckpt",
        "https://me:secret@nowhere.invalid/a.ckpt",
    ],
    "--unknown": ["1"],
}
YAMLS = {
    "duplicate keys": "trainer:\n  max_epochs: 1\n  max_epochs: 2\n",
    "duplicate groups": "trainer:\n  max_epochs: 1\ntrainer:\n  max_epochs: 2\n",
    "100,000 unknown keys": "".join(f"key{k}: 1\n" for k in range(100_000)),
    "100,000 unknown keys of a group": "trainer:\n" + "".join(f"  key{k}: 1\n" for k in range(100_000)),
    "100,000 unknown keys of a class": "model:\n  init_args:\n" + "".join(f"    key{k}: 1\n" for k in range(100_000)),
    "nested anchors": "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 40)),
    "nested anchors of a class": "model:\n  init_args:\n    a0: &a0 [x, x]\n"
    + "".join(f"    a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, 40)),
    "an anchor in itself": "trainer: &a\n  callbacks: [*a]\n",
    "an alias of nothing": "trainer: *nothing\n",
    "deep": "trainer: " + "[" * 5000 + "]" * 5000 + "\n",
    "a list": "- 1\n- 2\n",
    "a word": "trainer\n",
    "two documents": "trainer: {}\n---\ntrainer: {}\n",
    "a tab": "trainer:\n\tmax_epochs: 1\n",
    "a NUL": "trainer: \0\n",
    "a Python object": "trainer: !!python/object/apply:os.getcwd []\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a number for a group": "model: 1\n",
    "a long unknown value": "model:\n  class_path: " + "x" * 5000 + "\n",
    "a long unknown key": "x" * 5000 + ": 1\n",
    "linked to the data": "model:\n  init_args:\n    num_classes: 7\n",
    "null groups": "trainer: null\nmodel: null\ndata: null\n",
}


def one_option() -> dict[str, list[str]]:
    """Values that one option of a fit does not take."""
    given = [(name, value) for name, values in VALUES.items() for value in values]
    return {f"{name}={value[:60]}": [*FIT, f"{name}={value}"] for name, value in given}


def broken_files(folder: Path) -> dict[str, list[str]]:
    """Configs, checkpoints, images and folders that are not what they should be."""
    return dict([*_configs(folder), *_checkpoints(folder), *_images(folder), *_places(folder), *_verbs()])


def _configs(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for k, (name, text) in enumerate(YAMLS.items()):
        path = folder / f"{k}.yaml"
        path.write_text(text)
        yield f"config: {name}", [*FIT, f"--config={path}"]
    binary = folder / "binary.yaml"
    binary.write_bytes(bytes(range(128, 256)))
    yield "config: binary", [*FIT, f"--config={binary}"]
    for name, path in {"a folder": folder, "not there": folder / "none.yaml", "a device": Path("/dev/null/a")}.items():
        yield f"config: {name}", [*FIT, f"--config={path}"]
    yield "config: none", ["fit"]
    yield "config: none, but options", ["fit", "--trainer.max_epochs=1"]
    yield "config: no name", ["fit", "--config"]


def _checkpoints(folder: Path) -> Iterator[tuple[str, list[str]]]:
    whole = {"state_dict": {}, "optimizer_states": [], "loops": {}, "pytorch-lightning_version": "2.6.0", "epoch": 0}
    contents = {name: {k: v for k, v in whole.items() if k != name} for name in whole}
    contents |= {
        "whole": whole,
        "plain": {"network.fc.weight": torch.zeros(2, 32)},
        "a list": [1],
        "a tensor": torch.ones(2),
    }
    for name, content in contents.items():
        path = folder / f"{name.replace(' ', '_')}.ckpt"
        torch.save(content, path)
        yield f"checkpoint without {name}" if name in whole else f"checkpoint: {name}", [*FIT, f"--ckpt_path={path}"]
        yield f"weights: {name}", [*FIT, f"--model.weights={path}"]
    text, archive = folder / "text.ckpt", folder / "zip.ckpt"
    text.write_text("<html>not found</html>")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", "b")
    for path in (text, archive):
        yield f"checkpoint: {path.name}", [*FIT, f"--ckpt_path={path}"]
        yield f"test: {path.name}", ["test", *FIT[1:], f"--ckpt_path={path}"]
    yield "test without a checkpoint", ["test", *FIT[1:]]
    yield "validate without a checkpoint", ["validate", *FIT[1:]]


def _images(folder: Path) -> Iterator[tuple[str, list[str]]]:
    root = image_folder.fake(folder / "images")["root"]
    data = ["--data=ImageFolder", f"--data.root={root}", "--data.image_size=16", "--data.batch_size=2", *TINY[4:]]
    images = ["fit", "--config", CONFIG, *data]
    for option, values in {
        "--data.std": ["[nan,1,1]", "[0,1,1]", "[-1,1,1]", "[1,1]", "[inf,1,1]"],
        "--data.mean": ["[nan,0,0]", "[0]", "a"],
        "--data.image_size": ["0", "-1", "1000000"],
        "--data.root": [str(folder / "none"), "", "/dev/null"],
        "--data.max_corrupt": ["-1", "2", "nan"],
        "--data.corrupt": ["nope"],
    }.items():
        for value in values:
            yield f"images: {option}={value}", [*images, f"{option}={value}"]
    predict = ["predict", *images[1:], "--ckpt_path=initial"]
    empty = folder / "empty"
    empty.mkdir()
    yield "predict without files", predict
    yield "predict of an empty folder", [*predict, f"--data.path={empty}"]
    yield "predict of nothing", [*predict, f"--data.path={folder / 'none'}"]
    yield "predict without a data set of files", ["predict", *FIT[1:], "--ckpt_path=initial"]


def _places(folder: Path) -> Iterator[tuple[str, list[str]]]:
    file = folder / "a file"
    file.write_text("")
    for option in ("--checkpoint.dirpath", "--trainer.default_root_dir"):
        for name, place in {"a file": file, "in a file": file / "a", "no disk": Path("/proc/none")}.items():
            yield f"{option} is {name}", [*FIT, f"{option}={place}"]
    for logger in ("LearningRateMonitor", "DeviceStatsMonitor"):
        yield f"{logger} without a logger", [*FIT, "--trainer.logger=false", f"--trainer.callbacks+={logger}"]


def _verbs() -> Iterator[tuple[str, list[str]]]:
    yield "an unknown verb", ["train", *FIT[1:]]
    yield "an option for a verb", FIT[1:]
    yield "another word", [*FIT, "nope"]
    yield "a long word", [*FIT, "x" * 5000]
    yield "an option without a value", [*FIT, "--trainer.max_epochs"]
    yield "1,000 unknown options", [*FIT, *(f"--unknown{k}=1" for k in range(1000))]
    yield "a dictionary for an option", [*FIT, "--trainer.max_epochs=" + json.dumps({"a": 1})]
    yield "a mapping of 10,000 keys", [*FIT, "--model.blocks.at=" + json.dumps({f"layer{k}": 1 for k in range(3000)})]
