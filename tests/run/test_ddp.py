"""Two real processes give the figures of one."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from nonlocal_nets.data import charades, kinetics
from nonlocal_nets.run.cli import main

ROOT = Path(__file__).parents[2]
SAME = """
import json, sys
import torch

torch.set_num_threads(1)
from nonlocal_nets.run.cli import main

for words in json.loads(sys.argv[1]):
    main(words)
"""
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
TASKS = {
    "image": ("image/cued_digits", ["--data.train_samples=32", "--data.val_samples=5", "--data.test_samples=9"]),
    "video": ("video/cued_clips", ["--data.train_samples=32", "--data.val_samples=5", "--data.test_samples=9"]),
    "sequence": ("sequence/ucr", ["--data.name=JapaneseVowels"]),  # 370 test samples of many lengths, padded
}


class NoStatistics(pl.Callback):
    """Batch norms as in evaluation: in training their statistics are those of each process's own samples."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        for norm in module.modules():
            if isinstance(norm, _BatchNorm):
                norm.eval()


class Draws(pl.Callback):
    """Writes down what is drawn in the steps of each process, and the norm of each parameter's gradient."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with Path(f"{trainer.checkpoint_callback.dirpath}-{trainer.global_rank}").open("a") as file:
            file.write(f"{torch.rand(1).item()}\n")
        assert all(p.grad is not None for p in module.parameters())


def words_of(task, processes, run, *more):
    """A fit and a test of it, with 8 samples a step, all processes together, and 4 or 8 at once in the test."""
    config, data = TASKS[task]
    words = [f"--config={ROOT}/configs/{config}.yaml", f"--id={run}", "--project=same", *data, *QUIET]
    words += [f"--trainer.callbacks=[{', '.join(f'{{class_path: {name}}}' for name in CALLBACKS)}]"]
    words += ["--trainer.precision=64-true", f"--data.batch_size={8 // processes}"]
    words += [f"--trainer.devices={processes}", f"--trainer.strategy={'ddp_fork' if processes > 1 else 'auto'}"]
    fit = ["fit", *words, "--trainer.max_steps=6", "--trainer.check_val_every_n_epoch=1", *more]
    return [fit, ["test", *words, "--ckpt_path=last", *csv_in(f"runs/same/{run}")]]


def csv_in(folder):
    """Arguments of a test, which of itself logs to no file."""
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": folder, "name": "test", "version": ""}}
    return [f"--trainer.logger={json.dumps(logger)}"]


CALLBACKS = [f"{__name__}.NoStatistics", f"{__name__}.Draws"]


def run_in_one_process(commands, folder):
    """Which imports once; its own processes are forked."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SAME, json.dumps(commands)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each task a run in one process and one in two."""
    folder = tmp_path_factory.mktemp("same")
    commands = [words_of(task, processes, f"{task}-{processes}") for task in TASKS for processes in (1, 2)]
    commands.append(words_of("image", 2, "image-again")[:1])
    run_in_one_process([words for pair in commands for words in pair], folder)
    return folder / "runs" / "same"


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_to_the_weights_of_one_with_the_same_global_batch(runs, task):
    one, two = weights(runs / f"{task}-1"), weights(runs / f"{task}-2")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
    moved = [name for name, value in one.items() if name.endswith("out.weight") and value.any()]
    assert moved, "the block has learned"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_count_each_sample_once(runs, task):
    one, two = logged(runs / f"{task}-1", "test/"), logged(runs / f"{task}-2", "test/")
    assert {"test/loss", "test/accuracy"} <= one.keys()
    assert two == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
def test_what_is_drawn_in_a_step_differs_by_process_and_repeats(runs):
    draws = [
        [(runs / run / f"checkpoints-{rank}").read_text() for rank in (0, 1)] for run in ("image-2", "image-again")
    ]
    assert draws[0] == draws[1]
    first, second = (set(text.splitlines()) for text in draws[0])
    assert len(first) == len(second) == 6
    assert not first & second


@pytest.mark.slow
def test_weights_that_are_shared_out_train_as_those_that_are_not(tmp_path):
    """FSDP2 on two processes of the CPU, interrupted and resumed, against DDP; its checkpoint is read without it."""
    words = [f"--config={ROOT}/configs/image/cued_digits.yaml", "--data.train_samples=32", "--data.val_samples=8"]
    # after layer4, as a batch norm after the block would take its norm's bias off again: the bias's gradient would be
    # rounding errors, which AdamW turns into steps of their own
    words += ["--data.batch_size=4", "--model.blocks.at=layer4", "--trainer.callbacks=[]", *QUIET]
    overlay = [f"--config={ROOT}/configs/trainer/fsdp.yaml", "--trainer.strategy.init_args.data_parallel_size=2"]
    fsdp = [*words, *overlay, "--id=fsdp", "--trainer.precision=32-true", "--ckpt_path=last"]
    ddp = [*words, "--trainer.strategy=ddp", "--id=ddp", "--trainer.max_epochs=3"]
    test = ["test", *words, "--data.test_samples=8", "--id=fsdp", "--ckpt_path=last"]
    two = ["--trainer.devices=2", "--trainer.accelerator=cpu"]
    starts = [["fit", *fsdp, "--trainer.max_epochs=2", *two], ["fit", *fsdp, "--trainer.max_epochs=3", *two]]
    for command in (*starts, ["fit", *ddp, *two], test):
        command = [sys.executable, str(ROOT / "train.py"), *command]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    shared_out, whole = (weights(tmp_path / "runs/cued_digits" / run) for run in ("fsdp", "ddp"))
    assert shared_out.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(shared_out[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_processes_that_took_different_folders_do_not_train(tmp_path):
    program = (
        "import os, sys; from nonlocal_nets.run.cli import main; main([*sys.argv[1:], '--id=' + os.environ['RANK']])"
    )
    (tmp_path / "own.py").write_text(program)
    words = ["fit", f"--config={ROOT}/configs/image/cued_digits.yaml", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "own.py", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    for rank in range(2):
        assert f"differ, this one took the folder runs/cued_digits/{rank} and the checkpoint None" in done.stderr
    assert not list(tmp_path.rglob("*.ckpt"))


def logged(run, prefix):
    """The last value of what the test of a run logged, in full precision."""
    rows = list(csv.DictReader((run / "test" / "metrics.csv").read_text().splitlines()))
    return {name: float(row[name]) for row in rows for name in row if name.startswith(prefix) and row[name]}


@pytest.mark.slow
@pytest.mark.parametrize("samples", [33, 1])
def test_a_test_counts_each_sample_once_in_two_processes(samples, tmp_path):
    """33 samples in batches of 4 are 17 and 16; of one sample the second process has none."""
    figures = []
    for devices in (1, 2):
        words = [f"--trainer.devices={devices}", "--trainer.strategy=ddp", f"--id={devices}", "--data.batch_size=4"]
        words += [f"--data.test_samples={samples}", "--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
        words += ["--ckpt_path=initial"]
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "test",
            "--config",
            str(ROOT / "configs/video/cued_clips.yaml"),
        ]
        done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        figures.append(re.search(r"figures (.*)", done.stdout + done.stderr)[1])
    assert figures[0] == figures[1]
    assert "test/accuracy" in figures[0]


def three_of_kinetics(root):
    words = kinetics.fake(root)
    (root / "val" / "abseiling" / "abs1_000001_000011.mp4").unlink()
    return words


def three_of_charades(root):
    """Of three classes, two of which occur."""
    words = charades.fake(root)
    shutil.copy(root / "Charades_v1_480" / "TR3.mp4", root / "Charades_v1_480" / "TE2.mp4")
    rows = 'TE0,"c000 0.00 0.40"\nTE1,"c000 0.00 0.40;c001 0.30 0.80"\nTE2,"c001 0.30 0.80"\n'
    (root / "Charades_v1_test.csv").write_text("id,actions\n" + rows)
    return words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "fake", "names"),
    [
        ("kinetics", three_of_kinetics, {"test/loss", "test/accuracy", "test/balanced_accuracy"}),
        ("charades", three_of_charades, {"test/loss", "test/mAP"}),
    ],
)
def test_views_of_videos_in_two_processes(config, fake, names, tmp_path, monkeypatch):
    """Three videos of 10 x 3 views: two in the first process, one in the second."""
    monkeypatch.chdir(tmp_path)
    arguments = fake(tmp_path / "data") | {"frames": 4, "test_clips": 10, "test_crops": 3}
    words = [f"--data.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in arguments.items()]
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("video/cued_clips", f"data/{config}")]
    words = ["test", "--ckpt_path=initial", *configs, *words]
    words += ["--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
    main([*words, "--id=1", *csv_in("runs/cued_clips/1")])
    command = [sys.executable, str(ROOT / "train.py"), *words, *csv_in("runs/cued_clips/2")]
    command += ["--id=2", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = figures("1"), figures("2")
    assert one.keys() == names
    assert two == pytest.approx(one, rel=1e-6)


def figures(run):
    """What the run's test logged, in full precision."""
    return logged(Path("runs/cued_clips") / run, "test/")
