"""Fixtures for the tests of commands: a folder with a few images, and commands that are refused."""

import pytest

from nonlocal_nets.data import image_folder

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SMALL = [
    "--data=ImageFolder",
    "--data.root=data",
    "--data.image_size=16",
    "--data.batch_size=4",
    "--model=ImageClassification",
    "--model.backbone=local_convnet",
    "--model.blocks.at=layer3",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    *QUIET,
]


@pytest.fixture
def small_images(tmp_path, monkeypatch):
    """The current folder is an empty one with images in `data`, for the arguments SMALL."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    image_folder.fake("data")


@pytest.fixture
def refused(capsys):
    """A function that runs a command, which must end with code 2, and returns its one line."""

    def run(command, *args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            command(*args)
        assert stop.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
        assert len(line) < 300
        return line.partition(": error: ")[2]

    return run
