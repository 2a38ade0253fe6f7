"""Bad input to train.py ends with exit code 2 and one readable line, before anything is trained or written."""

from pathlib import Path

import pytest
import torch

from nonlocal_nets.cli import main
from nonlocal_nets.nn.backbones.image import LocalConvNet

CONFIG = str(Path(__file__).parents[1] / "configs" / "image" / "cued_digits.yaml")

WORDS = {
    "--model.pairwize=x": "model: ImageClassification: no argument 'pairwize'; nearest: pairwise",
    "--modle.lr=1": "no argument --modle.lr; nearest: --model",
    "--trainer.max_epocs=3": "no argument --trainer.max_epocs; nearest: --trainer.max_epochs",
    "--model.lr=abc": "model: ImageClassification: lr: expected float, got abc",
    "--model.pool=x": "model: ImageClassification: pool: expected null or list or int, got x",
    "--trainer.max_epochs=a": "trainer.max_epochs: expected null or int, got a",
    "--model.lr=-1": "lr must not be negative, got -1.0",
    "--data.batch_size=0": "batch_size must be at least 1, got 0",
    "--data=Nope": "data: no class Nope",
    "--model.pairwise=cosine": "pairwise must be one of gaussian, embedded_gaussian, dot_product, concatenation, got",
    "--model.backbone=resnet5O": "unknown backbone 'resnet5O'",
    "--model.window=[5,5]": "window (5, 5) does not divide the input's size (12, 12)",
    "--model.blocks={layer9: 1}": "no stage 'layer9' in LocalConvNet; places: layer1",
    "--config=nope.yaml": "no config file 'nope.yaml'",
}
YAMLS = {
    "model:\n  a: [1,\n  b": "bad.yaml, line 3, column 4: expected ',' or ']'",
    "trainer:\n  max_epocs: 3\n": "no key 'trainer.max_epocs'; nearest: --trainer.max_epochs",
    "model:\n  init_args:\n    pairwize: a\n": "model: ImageClassification: no argument 'pairwize'; nearest: pairwise",
}


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", CONFIG, *words])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("Seed set to")]
    assert len(lines) == 1
    assert ": error: " in lines[0]
    assert not list(Path().iterdir())
    return lines[0].partition(": error: ")[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    monkeypatch.delenv("JSONARGPARSE_DEBUG", raising=False)


@pytest.mark.parametrize("word", WORDS)
def test_bad_word(word, capsys):
    assert error_of(capsys, word).startswith(WORDS[word])


@pytest.mark.parametrize("text", YAMLS)
def test_bad_yaml(text, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert error_of(capsys, f"--config={path}").removeprefix(f"{tmp_path}/").startswith(YAMLS[text])


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "1")
    with pytest.raises(ValueError, match="lr must not be negative"):
        main(["fit", "--config", CONFIG, "--model.lr=-1"])


def test_checkpoints_that_do_not_fit(tmp_path, capsys):
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint at all")
    assert "broken.ckpt' is not a checkpoint" in checkpoint_error(capsys, str(broken))
    other = tmp_path / "other.ckpt"
    network = LocalConvNet(5)
    torch.save({"state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}}, other)
    message = checkpoint_error(capsys, str(other), "--model.blocks=none")
    assert "network.fc.weight (5, 32), here (2, 32)" in message
    assert "no weight file" in checkpoint_error(capsys, str(tmp_path / "none.ckpt"))
    assert "no last checkpoint in runs/cued_digits/new/checkpoints" in checkpoint_error(capsys, "last")


def checkpoint_error(capsys, path, *words):
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", CONFIG, "--id=new", f"--ckpt_path={path}", *words])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]
