"""The comparison trains each variant with each seed and prints the figures that the tests gave."""

import csv
from pathlib import Path

import pytest

from nonlocal_nets.experiments import compare

CONFIG = str(Path(__file__).parents[2] / "configs" / "image" / "cued_digits.yaml")


def row(variant, seed, value):
    return {"variant": variant, "seed": seed, "test/accuracy": value, "fit seconds": 2.0, "folder": "runs"}


def test_table_has_mean_standard_deviation_and_range():
    rows = [row("a", 0, 0.5), row("b", 0, 0.1), row("a", 1, 0.7)]
    assert compare.table(rows, "test/accuracy").splitlines()[2:] == [
        "| a | 0.600 ± 0.141 | 0.500 to 0.700 | 2 | 2 |",
        "| b | 0.100 | 0.100 to 0.100 | 1 | 2 |",
    ]


def test_two_variants(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    quiet = [
        "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1",
        "--data.batch_size=4",
        "--trainer.enable_progress_bar=false",
    ]
    variants = ["--variant", "with the block:", "--variant", "without: --model.blocks.at=none"]
    rows = compare.main([CONFIG, *variants, "--", *small, *quiet])
    printed = capsys.readouterr().out
    assert [r["variant"] for r in rows] == ["with the block", "without"]
    assert printed.count("$ python train.py fit") == printed.count("$ python train.py test") == 2
    assert "--model.blocks.at=none" in printed
    for r in rows:
        assert f"| {r['variant']} | {r['test/accuracy']:.3f} |" in printed
        assert str(r["folder"]) in printed
    assert f"{rows[0]['folder']}/attention.png" in printed
    (saved,) = Path("runs/cued_digits").glob("*.csv")
    with saved.open() as file:
        assert [float(r["test/accuracy"]) for r in csv.DictReader(file)] == [r["test/accuracy"] for r in rows]


@pytest.mark.slow
def test_two_at_once_give_what_they_give_in_turn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # one thread each, as here
    small = ["--data.train_samples=8", "--data.val_samples=4", "--data.test_samples=40", "--data.batch_size=4"]
    words = ["--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
    variants = ["--variant", "with the block:", "--variant", "without: --model.blocks.at=none"]
    tables = []
    for processes in ("1", "2"):
        found = compare.main([CONFIG, "--processes", processes, "--seeds=2", *variants, "--", *small, *words])
        tables.append([(r["variant"], r["seed"], r["test/accuracy"]) for r in found])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 4


@pytest.mark.parametrize("name", ["seeds", "processes"])
def test_numbers_are_checked(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare.main([CONFIG, f"--{name}=0", "--variant", "a:"])
    assert f"--{name} must be at least 1, got 0" in capsys.readouterr().err
