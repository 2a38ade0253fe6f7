"""The .ts format: the files in aeon compared with aeon's own reader, and errors that name the file and the line."""

import importlib
import re
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.data.ts_files import read_ts
from nonlocal_nets.data.ucr import package_folder

HEADER = "@problemName Walks\n@timeStamps false\n@univariate false\n@classLabel true slow fast\n@data\n"  # five lines


@pytest.fixture(scope="module")
def oracle():
    """aeon's reader, without its module for conversions, which needs numba."""
    pytest.importorskip("aeon")
    folder = package_folder().parents[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, path in {"aeon": ".", "aeon.datasets": "datasets", "aeon.utils": "utils"}.items():
            package = types.ModuleType(name)
            package.__path__, package.__file__ = [str(folder / path)], str(folder / path / "__init__.py")
            patch.setitem(sys.modules, name, package)
        conversion = types.ModuleType("aeon.utils.conversion")
        conversion.convert_collection = None
        patch.setitem(sys.modules, conversion.__name__, conversion)
        reader = importlib.import_module("aeon.datasets._data_loaders").load_from_ts_file
    for name in [name for name in sys.modules if name.startswith("aeon.")]:
        del sys.modules[name]
    return reader


def test_the_files_in_aeon_are_read_as_by_aeon(oracle):
    read = []
    for path in sorted(package_folder().glob("*/*.ts")):
        if "targetlabel true" in path.read_text(encoding="utf-8").lower() or "TimeStamps" in path.name:
            continue
        values, labels = oracle(str(path))
        file = read_ts(path)
        assert len(file.series) == len(values)
        for series, expected, label in zip(file.series, values, labels, strict=True):
            np.testing.assert_array_equal(series.values, expected)
            assert series.label.lower() == label
        read.append(path.stem)
    assert len(read) == 24
    names = ["ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "JapaneseVowels", "OSULeaf", "ACSF1"]
    assert {f"{name}_{part}" for name in [*names, "PickupGestureWiimoteZ"] for part in ("TRAIN", "TEST")} <= set(read)


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.just(float("nan"))


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 3), st.sampled_from(["?", "NaN", "nan", " ? "]), st.sampled_from(["", "\ufeff"]))
def test_any_series_survives_a_file(tmp_path_factory, data, channels, missing, mark):
    shapes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    series = [
        data.draw(st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=channels, max_size=channels))
        for n in shapes
    ]
    labels = data.draw(st.lists(st.sampled_from(["slow", "Fast"]), min_size=len(series), max_size=len(series)))
    rows = [":".join(",".join(repr(x) if x == x else missing for x in row) for row in rows) for rows in series]
    text = "".join(f"{row}:{label.swapcase()}\n\n" for row, label in zip(rows, labels, strict=True))
    path = tmp_path_factory.mktemp("ts") / "x.ts"
    path.write_text(f"{mark}# Jos\u00e9\n\n@CLASSLABEL  true slow\tFast\n@Data\n{text}# the end", encoding="utf-8")
    file = read_ts(path)
    assert file.labels == ("slow", "Fast")
    assert [found.label for found in file.series] == labels
    assert [found.line for found in file.series] == [5 + 2 * k for k in range(len(series))]
    for found, expected in zip(file.series, series, strict=True):
        np.testing.assert_array_equal(found.values, np.array(expected))


def test_invalid_utf8_in_a_comment_is_ignored(tmp_path):
    (tmp_path / "x.ts").write_bytes(b"# Jos\xe9\n" + f"{HEADER}1,2:slow\n".encode())
    assert read_ts(tmp_path / "x.ts").series[0].values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": empty file"),
        ("0.5,0.7:slow\n", ": no line @data"),
        (HEADER, ": no series after @data"),
        ("@classLabel false\n@data\n1,2\n", ": the header has no line '@classLabel true <label> <label> ...'"),
        ("@data\n1,2:slow\n", ": the header has no line '@classLabel true <label> <label> ...'"),
        (
            "\n@TimeStamps  True\n@data\n(0,1),(1,2):slow",
            ", line 2: time stamps, expected values at equal intervals only",
        ),
        ("@targetlabel true\n@data\n1,2:0.5", ", line 1: targets of a regression, expected @classLabel"),
        (f"{HEADER}1,2:slow\n1,x,3:slow\n", ", line 7, dimension 1: value 2 is not a finite number: 'x'"),
        (f"{HEADER}1,2:1,:slow\n", ", line 6, dimension 2: value 2 is not a finite number: ''"),
        (f"{HEADER}1,2:?,-inf:slow\n", ", line 6, dimension 2: value 2 is not a finite number: '-inf'"),
        (f"{HEADER}(0,1),(1,2):slow\n", ", line 6, dimension 1: value 1 is not a finite number: '(0'"),
        (f"{HEADER}1,2:3,4:slow\n1,2:slow\n", ", line 7: 1 dimension, but previous lines have 2"),
        (f"{HEADER}1,2,3:3,4:slow\n", ", line 6: dimensions of different lengths: 3, 2"),
        (f"{HEADER}1,2:quick\n", ", line 6: label 'quick', expected one of @classLabel: slow, fast"),
        (f"{HEADER}1,2\n", ", line 6: a single field, expected <values>:<label>"),
    ],
)
def test_invalid_files_are_named_with_the_line(tmp_path, text, message):
    path = tmp_path / "x.ts"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=f"^{re.escape(str(path) + message)}$"):
        read_ts(path)


@pytest.mark.parametrize("header", [HEADER, "@classLabel false\n@data\n", "@data\n"])
def test_labels_may_be_missing_or_unknown_in_a_file_to_predict(tmp_path, header):
    path = tmp_path / "x.ts"
    path.write_text(f"{header}1,2:3,4\n5:6:quick\n7,8:9,?:\n1:2:?\n")
    series = read_ts(path, channels=2).series
    values = [[[1, 2], [3, 4]], [[5], [6]], [[7, 8], [9, np.nan]], [[1], [2]]]
    for found, expected in zip(series, values, strict=True):
        np.testing.assert_array_equal(found.values, expected)
        assert found.label is None
    for line, counts in (("1,2", "1 dimension"), ("1,2:1,2:1,2", "3 dimensions"), ("1:2:3:4", "4 dimensions")):
        path.write_text(f"@data\n1:2\n{line}\n")
        with pytest.raises(CorruptFileError, match=f", line 3: {counts}, expected 2 and an optional label"):
            read_ts(path, channels=2)
