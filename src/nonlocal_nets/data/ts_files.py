"""The .ts files of the UCR and UEA archives: a header, @data, and one line per series.

    # a comment
    @problemName Walks
    @timeStamps false
    @univariate false
    @dimensions 2
    @equalLength false
    @classLabel true slow fast
    @data
    0.5,0.7,?:1.0,1.1,1.2:slow
    0.1,0.2:1.3,1.4:fast

Values are separated by commas, and each dimension ends with a colon, after which comes the next one or the label. `?`
and NaN are missing values. Of the header, only @timeStamps, @targetLabel, @classLabel and @data are read; the rest
follows from the data.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nonlocal_nets.data.base import CorruptFileError, listed

Array = np.ndarray[Any, np.dtype[np.float64]]
Lines = Iterator[tuple[int, str]]  # line numbers, from 1, and lines


class TimeSeries(NamedTuple):
    """A line of data: values (C, L), NaN if missing; the label, None if it is not read; the line number."""

    values: Array
    label: str | None
    line: int


class TsFile(NamedTuple):
    """A file: its path, the labels in its header, and its series."""

    path: str
    labels: tuple[str, ...]
    series: list[TimeSeries]

    def at(self, series: TimeSeries) -> str:
        """The position of a series, for messages."""
        return f"{self.path}, line {series.line}"


def read_ts(path: str | Path, channels: int | None = None) -> TsFile:
    """Read a .ts file.

    Args:
        path: path of the file, in UTF-8; invalid bytes, as they occur in comments, are ignored.
        channels: required number of dimensions, for a file to predict, whose labels are optional and not read. None:
            each series must have a label from the header, and as many dimensions as the first series.

    Raises:
        CorruptFileError: an empty file, no @data or no series after it, time stamps, targets of a regression, no
            @classLabel, a label that it does not list, a value that is neither a finite number nor missing, a wrong
            number of dimensions, or dimensions of different lengths. The message names the file and the line.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        lines = enumerate(file, 1)
        labels = _header(str(path), lines)
        if channels is None and not labels:
            raise CorruptFileError(f"{path}: the header has no line '@classLabel true <label> <label> ...'")
        series: list[TimeSeries] = []
        for number, line in lines:
            if line.strip() and not line.startswith("#"):
                series.append(_series(f"{path}, line {number}", number, line, labels, channels))
                if channels is None and len(series[0].values) != len(series[-1].values):
                    counts = f"{_dimensions(len(series[-1].values))}, but previous lines have {len(series[0].values)}"
                    raise CorruptFileError(f"{path}, line {number}: {counts}")
    if not series:
        raise CorruptFileError(f"{path}: no series after @data")
    return TsFile(str(path), labels, series)


def _header(path: str, lines: Lines) -> tuple[str, ...]:
    """Read the header, up to @data; return the labels of @classLabel."""
    labels: tuple[str, ...] = ()
    number = 0
    for number, line in lines:
        key, value, *rest = [*line.split(), "", ""]
        match key.lower(), value.lower():
            case "@data", _:
                return labels
            case "@timestamps", "true":
                raise CorruptFileError(f"{path}, line {number}: time stamps, expected values at equal intervals only")
            case "@targetlabel", "true":
                raise CorruptFileError(f"{path}, line {number}: targets of a regression, expected @classLabel")
            case "@classlabel", "true":
                labels = tuple(rest[:-2])
    raise CorruptFileError(f"{path}: no line @data" if number else f"{path}: empty file")


def _series(where: str, number: int, line: str, labels: tuple[str, ...], channels: int | None) -> TimeSeries:
    fields = line.strip().split(":")
    if channels is None:
        *fields, last = fields
        if not fields:
            raise CorruptFileError(f"{where}: a single field, expected <values>:<label>")
        return TimeSeries(_values(where, fields), _label(where, last.strip(), labels), number)
    labelled = len(fields) == channels + 1 and "," not in fields[-1]  # else the last field is a dimension
    if len(fields) != channels and not labelled:
        raise CorruptFileError(f"{where}: {_dimensions(len(fields))}, expected {channels} and an optional label")
    return TimeSeries(_values(where, fields[:channels]), None, number)


def _label(where: str, given: str, labels: Sequence[str]) -> str:
    """The header's spelling of a label, which may differ in upper and lower case."""
    found = [label for label in labels if label == given] or [x for x in labels if x.lower() == given.lower()]
    if not found:
        raise CorruptFileError(f"{where}: label {given[:40]!r}, expected one of @classLabel: {listed(labels)}")
    return found[0]


def _values(where: str, fields: list[str]) -> Array:
    """The values (C, L) of a series from its dimensions."""
    rows = [_row(f"{where}, dimension {k}", field) for k, field in enumerate(fields, 1)]
    lengths = [len(row) for row in rows]
    if min(lengths) < max(lengths):
        raise CorruptFileError(f"{where}: dimensions of different lengths: {listed(map(str, lengths))}")
    return np.array(rows)


def _row(where: str, field: str) -> list[float]:
    texts = field.replace("?", "nan").split(",")
    try:
        row = list(map(float, texts))
    except ValueError:
        row = [math.inf]
    if math.inf in row or -math.inf in row:
        k = next(k for k, text in enumerate(texts) if not _is_value(text))
        given = field.split(",")[k].strip()[:40]
        raise CorruptFileError(f"{where}: value {k + 1} is not a finite number: {given!r}")
    return row


def _is_value(text: str) -> bool:
    try:
        return not math.isinf(float(text))
    except ValueError:
        return False


def _dimensions(count: int) -> str:
    return f"{count} dimension{'s' * (count != 1)}"
