"""metrics.csv of a run that is resumed is one curve."""

import csv

import pytest

from nonlocal_nets.run.curve import Curve


def read(folder):
    with (folder / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def log(folder, *rows):
    curve = Curve(folder)
    for step, values in rows:
        curve.log_metrics({"epoch": 0, **values}, step)


def test_new_columns_and_values_that_are_absent(tmp_path):
    log(tmp_path / "new", (0, {"loss": 3}), (1, {"loss": 2}), (1, {"val/loss": 4}), (2, {"loss": 1}))
    assert (tmp_path / "new" / "metrics.csv").read_text() == (
        "step,epoch,loss,val/loss\n0,0,3,\n1,0,2,\n1,0,,4\n2,0,1,\n"
    )


LOGGED = [(0, {"loss": 3}), (1, {"loss": 2}), (1, {"val/loss": 4}), (2, {"loss": 1})]


@pytest.mark.parametrize(
    ("first", "kept"),
    [
        ((1, {"loss": 20}), 1),
        ((1, {"val/loss": 40}), 2),
        ((2, {"loss": 10}), 3),
        ((2, {"val/loss": 40}), 4),
        ((3, {"loss": 0}), 4),
        ((0, {"loss": 0, "more": 1}), 0),
        ((1, {"more": 1}), 3),
    ],
    ids=str,
)
def test_a_resumed_run_replaces_what_it_logs_again(first, kept, tmp_path):
    log(tmp_path, *LOGGED)
    log(tmp_path, first, (5, {"loss": 0}))
    rows = [{"step": step, "epoch": 0, **values} for step, values in [*LOGGED[:kept], first, (5, {"loss": 0})]]
    assert read(tmp_path) == rows


def test_a_row_that_is_half_written_is_dropped(tmp_path):
    log(tmp_path, *LOGGED)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "3,0,0.")
    log(tmp_path, (4, {"loss": 5}))
    assert read(tmp_path)[-2:] == [{"step": 2, "epoch": 0, "loss": 1}, {"step": 4, "epoch": 0, "loss": 5}]
