"""The table and the csv of both runners, against figures computed by hand."""

import pytest

from nonlocal_nets.experiments.arguments import Parser, count
from nonlocal_nets.experiments.table import Outcome, save_csv, table, write

HEAD = ["| variant | test/loss, mean ± std | lowest to highest | runs | training, s |", "|---|---|---|---|---|"]
OUTCOMES = [  # a: deviations -2, -2, 4 from 4; variance 24 / 2
    Outcome("a", 2.0, 10.0),
    Outcome("b", 3.5, 1.0),
    Outcome("a", 2.0, 20.0),
    Outcome("b", 3.0, 4.0),
    Outcome("a", 8.0, 60.0),
    Outcome("c|d", 7.0, 7.0),
]
A = "| a | 4.000 ± 3.464 | 2.000 to 8.000 | 3 | 30 |"
B = "| b | 3.250 ± 0.354 | 3.000 to 3.500 | 2 | 2 |"
C = r"| c\|d | 7.000 | 7.000 to 7.000 | 1 | 7 |"


@pytest.mark.parametrize(("mode", "lines"), [(None, [A, B, C]), ("max", [C, A, B]), ("min", [B, A, C])])
def test_mean_sample_deviation_range_and_number_of_the_runs_with_one_label(mode, lines):
    assert table(OUTCOMES, "variant", "test/loss", mode).splitlines() == HEAD + lines


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_diverged_run_shows_and_puts_its_label_last(mode):
    diverged = [Outcome("d", 1.0, 5.0), Outcome("d", float("nan"), 5.0), Outcome("e", 1.0, 5.0)]
    assert table(diverged, "variant", "test/loss", mode).splitlines()[2:] == [
        "| e | 1.000 | 1.000 to 1.000 | 1 | 5 |",
        "| d | nan ± nan | nan to nan | 2 | 5 |",
    ]


def test_small_values_keep_three_digits():
    small = [Outcome("a", 0.000123, 1.0), Outcome("a", 0.000125, 1.0)]
    assert "| a | 0.000124 ± 0.000001 | 0.000123 to 0.000125 | 2 | 1 |" in table(small, "variant", "mse")
    assert "| a | 0.000 | 0.000 to 0.000 | 1 | 1 |" in table([Outcome("a", 0.0, 1.0)], "variant", "mse")


def test_the_csv_has_a_column_for_each_key_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old\n" * 100)
    save_csv([{"run": 1, "x": 0.25}, {"run": 2, "f": "a,b"}], path)
    assert path.read_text() == 'run,x,f\n1,0.25,\n2,,"a,b"\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_to_its_end_is_the_old_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "new, \ud800")  # which UTF-8 has no bytes for
    assert path.read_text() == "old"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two"])
def test_a_count_is_an_integer_of_at_least_one(value, capsys):
    parser = Parser(prog="train.py compare")
    parser.add_argument("--seeds", type=count)
    assert parser.parse_args(["--seeds=12"]).seeds == 12
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([f"--seeds={value}"])
    message = f"train.py compare: error: argument --seeds: must be an integer of at least 1, got {value}\n"
    assert capsys.readouterr().err == message
