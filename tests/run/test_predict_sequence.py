"""From a .ts file, recordings, expressions or texts to a table of predictions, by the commands that a user types."""

import csv

import pytest
import torch

from nonlocal_nets.data import listops, speech_commands, text, ucr
from nonlocal_nets.run.cli import main


@pytest.fixture(params=["UCR", "SpeechCommands", "ListOps", "Text"])
def fitted(request, tmp_path, monkeypatch):
    """A run of two steps, what to predict, and how its samples are called."""
    monkeypatch.chdir(tmp_path)
    if request.param == "UCR":
        arguments, path = ucr.fake(tmp_path / "data"), tmp_path / "data" / "Fake_TEST.ts"
        names = [f"{path}:{k}" for k in range(1, 7)]
    elif request.param == "ListOps":
        arguments, path = listops.fake(tmp_path / "data"), tmp_path / "data" / "basic_test.tsv"
        names = [f"{path}:{k}" for k in range(2, 6)]
    else:
        module, folder = (speech_commands, "up") if request.param == "SpeechCommands" else (text, "test/pos")
        arguments, path = module.fake(tmp_path / "data"), tmp_path / "data" / folder
        names = sorted(str(file) for file in path.iterdir())
    args = [f"--data.{name}={value}" for name, value in arguments.items()]
    args += ["--model.backbone=token_resnet"] * (request.param in ("ListOps", "Text"))
    args += ["--data.batch_size=4", "--model.widths=[8,8]", "--model.blocks.at={layer2: 1}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    cli = main(["fit", f"--data={request.param}", "--model=SequenceClassification", *args, *quiet, *few, "--id=try"])
    return cli.run_folder, path, names


def test_predict_as_each_sample_alone(fitted):
    folder, path, names = fitted
    cli = main(["predict", "--config", str(folder / "config.yaml"), "--ckpt_path=last", f"--data.path={path}"])
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == names
    model = cli.model.eval()
    for row, (x, name) in zip(rows, cli.datamodule.predict_dataset(), strict=True):
        assert name == row["path"]
        with torch.no_grad():
            probabilities = model((x[None], None)).softmax(1)[0]
        assert row["class"] == cli.datamodule.class_names[probabilities.argmax()]
        assert float(row["probability_1"]) == pytest.approx(float(probabilities.max()), abs=1e-5)


def test_what_cannot_be_read_is_named_in_one_line(fitted, capsys):
    folder, path, _ = fitted
    suffix = path.suffix or next(path.iterdir()).suffix
    content, place = {
        ".wav": (b"", "bad.wav: empty file"),
        ".ts": (b"@data\n1,2:1,2\n1,2:1,?\n", "bad.ts, line 3, dimension 2: value 2 is missing"),
        ".tsv": (b"[MIN 1 2 ]\n[MIN 1 2\n", "bad.tsv, line 2: not one balanced expression"),
        ".txt": (b"", "bad.txt: the text is empty"),
    }[suffix]
    bad = folder / f"bad{suffix}"
    bad.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--config", str(folder / "config.yaml"), "--ckpt_path=last", f"--data.path={bad}"])
    assert stop.value.code == 2
    assert place in capsys.readouterr().err.splitlines()[-1]
