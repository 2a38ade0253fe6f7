"""Csv, table and picture of runs with known values."""

import math
from pathlib import Path

import numpy as np
import pytest

from nonlocal_nets.experiments.sweep.results import csv_rows, figure, markdown, swept
from nonlocal_nets.experiments.sweep.state import Run, State
from tests.experiments.sweep.examples import RANGE

CONFIG = {"metric": {"name": "m"}, "parameters": {**RANGE, "model.f": {"values": ["a", "b"]}}}


def run(number, f, seed, values, x=0.5, **more):
    return Run(f"try-{number:03}", {"x": x, "model.f": f, "seed_everything": seed}, values=values, seconds=60.0, **more)


RUNS = [  # best of "max": 3, 9, 5, 7; of "min": 1, 8, 2, 7
    run(0, "a", 0, [3.0, 1.0, 2.0]),
    run(1, "b", 0, [8.0, 9.0]),
    run(2, "a", 1, [math.nan, 2.0, math.inf, 5.0]),
    run(3, "b", 1, [7.0], state="stopped"),
    run(4, "b", 2, [math.nan], state="failed"),
    run(5, "a", 2, []),
]


def test_the_csv_has_the_best_and_the_last_value_of_each_run(tmp_path):
    (tmp_path / "project" / "try-001").mkdir(parents=True)
    rows = csv_rows(RUNS, "m", "max", tmp_path)
    assert list(rows[0].items()) == [
        ("run", "try-000"),
        ("x", 0.5),
        ("model.f", "a"),
        ("seed_everything", 0),
        ("m, best", 3.0),
        ("m, last", 2.0),
        ("validations", 3),
        ("state", "running"),
        ("seconds", 60.0),
        ("folder", ""),
    ]
    assert rows[1]["folder"] == tmp_path / "project" / "try-001"
    assert [row["state"] for row in rows[3:]] == ["stopped", "failed", "running"]
    for mode, best in (("max", [3, 9, 5, 7, math.nan, math.nan]), ("min", [1, 8, 2, 7, math.nan, math.nan])):
        found = [row["m, best"] for row in csv_rows(RUNS, "m", mode, tmp_path)]
        np.testing.assert_equal(found, best)
    np.testing.assert_equal([row["m, last"] for row in rows], [2, 9, 5, 7, math.nan, math.nan])


@pytest.mark.parametrize(
    ("mode", "lines"),
    [
        (
            "max",
            ["| f=b | 8.000 ± 1.414 | 7.000 to 9.000 | 2 | 60 |", "| f=a | 4.000 ± 1.414 | 3.000 to 5.000 | 2 | 60 |"],
        ),
        (
            "min",
            ["| f=a | 1.500 ± 0.707 | 1.000 to 2.000 | 2 | 60 |", "| f=b | 7.500 ± 0.707 | 7.000 to 8.000 | 2 | 60 |"],
        ),
    ],
)
def test_seeds_share_a_line_of_the_table_and_the_best_is_first(mode, lines):
    table = markdown(RUNS, "m", mode).splitlines()
    assert table[0] == "| parameters | m, best of each run, mean ± std | lowest to highest | runs | training, s |"
    assert table[2:] == lines


def test_a_sweep_of_seeds_alone_is_one_line():
    assert swept(RUNS[::2]) == ["model.f"]
    assert markdown([RUNS[0], RUNS[2]], "m", "max").splitlines()[2].startswith("| all | 4.000 ± 1.414 |")


def points(axis):
    return [offset for group in axis.collections for offset in np.asarray(group.get_offsets()).tolist()]


def test_a_picture_of_a_range_and_of_choices():
    runs = [run(k, "abb"[k], 0, [value], x) for k, (x, value) in enumerate([(0.01, 0.2), (0.1, 0.7), (0.001, 0.4)])]
    by_range, by_choice = figure(CONFIG, runs, "max").axes
    assert points(by_range) == [[0.01, 0.2], [0.1, 0.7], [0.001, 0.4]]
    assert (by_range.get_xlabel(), by_range.get_xscale()) == ("x", "log")
    assert by_range.get_ylabel() == by_choice.get_ylabel() == "m, best of each run"
    scatters, lines = by_choice.collections[::2], by_choice.collections[1::2]
    assert [group.get_offsets().tolist() for group in scatters] == [[[0, 0.2]], [[1, 0.7], [1, 0.4]]]
    means = [group.get_segments()[0].tolist() for group in lines]
    np.testing.assert_allclose(means, [[[-0.3, 0.2], [0.3, 0.2]], [[0.7, 0.55], [1.3, 0.55]]])
    assert [text.get_text() for text in by_choice.get_xticklabels()] == ["f=a", "f=b"]


def test_a_picture_has_the_values_of_the_mode():
    runs = [RUNS[0], RUNS[1]]
    for mode, expected in (("max", [[0, 3], [1, 9]]), ("min", [[0, 1], [1, 8]])):
        (axis,) = figure(CONFIG, runs, mode).axes
        scatters = axis.collections[::2]
        assert [group.get_offsets().tolist()[0] for group in scatters] == expected
    (axis,) = figure(
        {**CONFIG, "parameters": {"x": {"min": 0, "max": 1}}}, [RUNS[0], run(9, "a", 0, [4.0], 0.9)], "max"
    ).axes
    assert points(axis) == [[0.5, 3.0], [0.9, 4.0]]
    assert axis.get_xscale() == "linear"


def test_the_state_of_the_runs_is_read_back_in_their_order(tmp_path):
    state = State(tmp_path / "sweep")
    lock = state.lock()
    assert lock is not None
    assert state.lock() is None
    many = [*RUNS[:2], run(1000, "a", 0, [1.0]), run(999, "b", 0, [])]
    for saved in many:
        state.save(saved)
    assert state.load() == [*RUNS[:2], many[3], many[2]]
    assert state.log(RUNS[1]) == Path(tmp_path / "sweep" / "001.log")
    lock.close()
    second = state.lock()
    assert second is not None
    second.close()
