"""From a .ts file, recordings, expressions or texts to a table of predictions, by the commands that a user types."""

import csv
import re

import pytest
import torch

import nonlocal_nets.data
from nonlocal_nets.data import CorruptFileError, listops, speech_commands, text, ucr
from nonlocal_nets.run.cli import main

SETS = ["UCR", "SpeechCommands", "ListOps", "Text"]
FITTED = [pytest.param(name, marks=[pytest.mark.slow] * (name != SETS[0])) for name in SETS]


def fake(name, folder):
    """A few samples: arguments that read them, what to predict, and how its samples are called."""
    if name == "UCR":
        arguments, path = ucr.fake(folder), folder / "Fake_TEST.ts"
        return arguments, path, [f"{path}:{k}" for k in range(1, 7)]
    if name == "ListOps":
        arguments, path = listops.fake(folder), folder / "basic_test.tsv"
        return arguments, path, [f"{path}:{k}" for k in range(2, 6)]
    module, part = (speech_commands, "up") if name == "SpeechCommands" else (text, "test/pos")
    arguments, path = module.fake(folder), folder / part
    return arguments, path, sorted(str(file) for file in path.iterdir())


@pytest.mark.parametrize("name", FITTED)
def test_predict_as_each_sample_alone(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, path, names = fake(name, tmp_path / "data")
    args = [f"--data.{option}={value}" for option, value in arguments.items()]
    args += ["--model.backbone=token_resnet"] * (name in ("ListOps", "Text"))
    args += ["--data.batch_size=4", "--model.widths=[8,8]", "--model.blocks.at={layer2: 1}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    cli = main(["fit", f"--data={name}", "--model=SequenceClassification", *args, *quiet, *few, "--id=try"])
    folder = cli.run_folder
    predict = ["predict", "--config", str(folder / "config.yaml"), "--ckpt_path=last"]
    cli = main([*predict, f"--data.path={path}"])
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == names
    model = cli.model.eval()
    for row, (x, sample) in zip(rows, cli.datamodule.predict_dataset(), strict=True):
        assert sample == row["path"]
        with torch.no_grad():
            probabilities = model((x[None], None)).softmax(1)[0]
        assert row["class"] == cli.datamodule.class_names[probabilities.argmax()]
        assert float(row["probability_1"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
    if name == "UCR":
        bad, place = bad_file(name, tmp_path)
        with pytest.raises(SystemExit) as stop:
            main([*predict, f"--data.path={bad}"])
        assert stop.value.code == 2
        assert place in capsys.readouterr().err.splitlines()[-1]


def bad_file(name, folder):
    """A file that cannot be read, and what is said of it."""
    file, content, place = {
        "SpeechCommands": ("bad.wav", b"", "bad.wav: empty file"),
        "UCR": ("bad.ts", b"@data\n1,2:1,2\n1,2:1,?\n", "bad.ts, line 3, dimension 2: value 2 is missing"),
        "ListOps": ("bad.tsv", b"[MIN 1 2 ]\n[MIN 1 2\n", "bad.tsv, line 2: not one balanced expression"),
        "Text": ("bad.txt", b"", "bad.txt: the text is empty"),
    }[name]
    (folder / file).write_bytes(content)
    return folder / file, place


def test_series_are_normalised_as_those_of_their_own_training_set(tmp_path, monkeypatch):
    """Where training begins from the weights of another set; a test of these weights takes theirs."""
    monkeypatch.chdir(tmp_path)
    arguments = ucr.fake(tmp_path / "data")
    args = ["--data=UCR", *(f"--data.{option}={value}" for option, value in arguments.items())]
    args += ["--model=SequenceClassification", "--model.widths=[8,8]", "--model.blocks.at=none"]
    args += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    args += ["--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
    first = main(["fit", *args, "--id=a"])
    for part in ("TRAIN", "TEST"):
        path = tmp_path / f"data/Fake_{part}.ts"
        head, data = path.read_text().split("@data\n")
        path.write_text(head + "@data\n" + re.sub(r"-?\d+\.\d+", lambda number: str(float(number[0]) + 5), data))
    weights = [*args, "--model.weights=runs/default/a/checkpoints/last.ckpt"]
    again = main(["fit", *weights, "--id=b", "--trainer.max_epochs=0"])
    tested = main(["test", *weights, "--id=c"])
    means = [cli.datamodule.moments[0].mean() for cli in (first, again, tested)]
    assert means[1] == pytest.approx(means[0] + 5, abs=0.01)
    assert means[2] == pytest.approx(means[0])


@pytest.mark.parametrize("name", SETS)
def test_what_cannot_be_read_is_named_in_one_line(name, tmp_path):
    """Of those errors that the command line shows."""
    arguments, _, _ = fake(name, tmp_path / "data")
    bad, place = bad_file(name, tmp_path)
    with pytest.raises(CorruptFileError, match=re.escape(place)) as error:
        list(getattr(nonlocal_nets.data, name)(**arguments, path=bad).predict_dataset())
    assert "\n" not in str(error.value)
