"""Nothing is taken from another run, or written into it, however its folder and its checkpoints are named."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch

from nonlocal_nets.run.checkpoints import best_checkpoint
from nonlocal_nets.run.cli import main
from nonlocal_nets.run.errors import RunError
from nonlocal_nets.run.predictions import _locked
from tests.run.conftest import SMALL

FIT = ["fit", *SMALL, "--project=p", "--trainer.max_epochs=1"]
RUNS = Path("runs/p")
pytestmark = [
    pytest.mark.usefixtures("small_images"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # it should, on a resume
]


def step(path):
    return torch.load(path, weights_only=True)["global_step"]


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_home_and_variables_are_expanded_once_for_all(monkeypatch, tmp_path, refused):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    words = [*FIT, "--id=a", "--checkpoint.dirpath=~/ck", "--trainer.default_root_dir=$SCRATCH/runs"]
    main(words)
    folder = tmp_path / "scratch/runs/p/a"
    assert {"config.yaml", "metrics.csv"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("events.*"))
    last = tmp_path / "home/ck/last.ckpt"
    first = step(last)
    assert not [path for path in Path().iterdir() if path.name[0] in "~$"]
    cli = main(["fit", "--config", str(folder / "config.yaml"), "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert step(last) == cli.trainer.global_step == 2 * first
    assert "holds another run's checkpoints" in refused(main, [*words, "--id=b"])


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a new run from the checkpoint of another
def test_a_folder_that_holds_a_run_goes_on_with_that_run_only(refused):
    main([*FIT, "--id=a"])
    main([*FIT, "--id=b", "--checkpoint.dirpath=far"])
    before = content(RUNS)
    for other in ("initial", "far/last.ckpt"):
        assert "runs/p/a holds a run: --ckpt_path=last goes on with it" in refused(
            main, [*FIT, "--id=a", f"--ckpt_path={other}", "--trainer.max_epochs=2"]
        )
    shared = refused(main, [*FIT, "--id=c", "--checkpoint.dirpath=far", "--ckpt_path=last", "--seed_everything=1"])
    assert shared.startswith("far holds another run's checkpoints")
    assert content(RUNS) == before
    main([*FIT, "--id=a", "--ckpt_path=runs/p/a/checkpoints/last.ckpt", "--trainer.max_epochs=2"])
    main([*FIT, "--id=new", "--ckpt_path=far/last.ckpt", "--trainer.max_epochs=2"])


def test_weights_of_the_config_are_no_word_for_an_untrained_network(refused):
    main([*FIT, "--id=first"])
    weights = f"--model.weights={RUNS}/first/checkpoints/last.ckpt"
    main([*FIT, "--id=a", weights])
    (RUNS / "a").rename(RUNS / "moved")
    assert refused(main, ["test", "--config", f"{RUNS}/moved/config.yaml"]).startswith("no checkpoint in runs/p/a/")
    main(["test", "--config", f"{RUNS}/moved/config.yaml", weights])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_best_of_a_moved_run_stays_the_best():
    words = ["--checkpoint.monitor=epoch", "--checkpoint.mode=min"]  # the first one is the best
    main([*FIT, "--id=a", *words])
    (RUNS / "a").rename(RUNS / "moved")
    cli = main([*FIT, "--id=moved", *words, "--ckpt_path=last", "--trainer.max_epochs=2"])
    (best,) = (RUNS / "moved" / "checkpoints").glob("epoch=*.ckpt")
    assert best.name.startswith("epoch=0-")
    assert Path(cli.trainer.checkpoint_callback.best_model_path).samefile(best)
    root = f"--trainer.default_root_dir={Path.cwd() / 'runs'}"  # the same folder in another way
    main([*FIT, "--id=moved", root, *words, "--ckpt_path=last", "--trainer.max_epochs=3"])
    assert best_checkpoint(best.with_name("last.ckpt")).samefile(best)


def test_a_checkpoint_callback_of_the_user_is_not_the_best_of_the_run(caplog):
    words = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=train/loss_epoch"]
    main([*FIT, "--id=a", *words, "--trainer.callbacks.filename=mine"])
    assert (RUNS / "a/checkpoints/mine.ckpt").is_file()
    assert "best    val/accuracy" in caplog.text
    assert best_checkpoint(RUNS / "a/checkpoints/last.ckpt").name.startswith("epoch=0-")


def test_the_best_is_not_named_as_the_last(refused):
    line = refused(main, [*FIT, "--id=a", "--checkpoint.filename=last"])
    assert line.endswith("checkpoint.filename='last' is the name of the last checkpoint")


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_refused_resume_leaves_the_config_as_it_was(refused):
    main([*FIT, "--id=a"])
    before = content(RUNS)
    words = ["fit", "--config", f"{RUNS}/a/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"]
    assert "val/typo" in refused(main, [*words, "--checkpoint.monitor=val/typo"])
    assert content(RUNS)[RUNS / "a/config.yaml"] == before[RUNS / "a/config.yaml"]
    main(words)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_is_named_by_test_too():
    main([*FIT, "--id=a", "--checkpoint.monitor=null"])
    folder = RUNS / "a/checkpoints"
    shutil.copy(folder / "last.ckpt", folder / "epoch=0-step=2.ckpt")
    (folder / "last.ckpt").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="last.ckpt' is not a checkpoint: .*; taking the one before it"):
        main(["test", "--config", f"{RUNS}/a/config.yaml"])


def test_only_one_process_writes_a_table():
    path = Path("predictions.part.csv")
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("of another process")
        other.flush()
        with pytest.raises(RunError, match="another process predicts into"):
            _locked(path)
        assert path.read_text() == "of another process"
    path.write_text("of a process that was killed")
    with _locked(path) as file:
        assert path.read_text() == ""
        assert os.path.samestat(path.stat(), os.fstat(file.fileno()))


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.filterwarnings("ignore:Swapping scheduler")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before")
def test_a_callback_may_bring_a_schedule_of_torch():
    words = [
        "--trainer.callbacks+=StochasticWeightAveraging",
        "--trainer.callbacks.swa_lrs=0.01",
        "--trainer.callbacks.device=cpu",
    ]
    cli = main([*FIT, "--id=a", *words, "--trainer.callbacks.swa_epoch_start=1", "--trainer.max_epochs=3"])
    assert cli.trainer.state.finished
