"""Texts as bytes, from csv files or from text files in class folders, as IMDb's reviews (Maas et al. 2011).

The text task of the Long Range Arena (Tay et al. 2021) is IMDb's folder with too_long="cut" and max_length=4000. There
the test set is used for validation too; here validation is a share of train.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from nonlocal_nets.data.base import CorruptFileError, check_minimum, find_files, listed, split
from nonlocal_nets.data.sequences import SequenceDataModule, Sequences
from nonlocal_nets.data.trained import MissingDataError, training_data

UNLABELLED = "unsup"  # IMDb's folder of reviews without labels
EXPECTED = "expected a csv file, or a folder with train.csv or train/<class>/*.txt, and the same for test"


class Row(NamedTuple):
    """A text, its label, and where it is from."""

    text: str
    label: str
    path: Path
    line: int | None = None  # the first line of a row of a csv file

    @property
    def where(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}, line {self.line}"

    @property
    def name(self) -> str:
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"


class Text(SequenceDataModule):
    """Texts as bytes of UTF-8, 0 to 255, and their labels; the classes are the sorted labels of train.

    There are three layouts:

    - a csv file with a header, split at random into train, val and test, in the same proportions for each class;
    - a folder with train.csv, test.csv and, optionally, val.csv;
    - a folder with train/<class>/*.txt, test/<class>/*.txt and, optionally, val/<class>/*.txt; IMDb's unsup is ignored.

    Without val, validation is a random share of train, in the same proportions for each class.

    Args:
        root: the csv file or the folder.
        max_length: maximum length of a text, in bytes.
        too_long: what to do with a longer text, also in `predict`: "error" refuses it, "cut" takes its first max_length
            bytes.
        text_column: name of the column of texts in csv files.
        label_column: name of the column of labels in csv files; files for `predict` need none.
        val_fraction: the share for validation, of the csv file or of train.
        test_fraction: the share for the test; only for the first layout, since the others have a test set.
        seed: seed of the split.
        batch_size: samples per batch. In training an incomplete last batch is dropped.
        num_workers: number of processes that load; 0, the main process, is fast enough here.
        path: for `predict`, a text file, a csv file, or a folder that is searched for .txt and .csv files. Each text
            of a csv file is named <file>:<line>.

    Raises:
        ValueError: an invalid argument, or none of these layouts.
        CorruptFileError: a file that is not UTF-8 or not csv, a text that is empty or too long, a row without a label,
            or a label in val or test that train lacks. The message names the file and the line.
    """

    tokens = True
    token_names = tuple(repr(bytes([byte]))[2:-1] for byte in range(256))

    def __init__(
        self,
        root: str,
        max_length: int = 4_000,
        too_long: Literal["error", "cut"] = "error",
        text_column: str = "text",
        label_column: str = "label",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        batch_size: int = 32,
        num_workers: int = 0,
        path: str | None = None,
    ) -> None:
        if too_long not in ("error", "cut"):
            raise ValueError(f"too_long must be 'error' or 'cut', got {too_long!r}")
        check_minimum({"max_length": (max_length, 1)})
        cut = too_long == "cut"
        fractions = {"test": test_fraction, "val": val_fraction}
        columns = (text_column, label_column)
        read_all = partial(read_encoded, Path(root), columns, max_length, cut, fractions, seed)
        classes, self.parts, length = training_data(
            read_all, lambda trained: (trained["class_names"], {}, trained["input_size"][1])
        )
        self.to_predict = None
        if path is not None:
            files = find_files(path, (".txt", ".csv"), "text")
            texts = [row for file in files for row in read(Path(file), (text_column,))]
            self.to_predict = Sequences([encode(row, max_length, cut) for row in texts], [row.name for row in texts])
        super().__init__(classes, 256, length, batch_size, num_workers)

    def dataset(self, part: str) -> Sequences:
        return self.parts[part]

    def predict_dataset(self) -> Sequences:
        if self.to_predict is None:
            raise ValueError("predict needs texts: --data.path=<text file, csv file or folder>")
        return self.to_predict


def read_encoded(
    root: Path, columns: Sequence[str], max_length: int, cut: bool, fractions: Mapping[str, float], seed: int
) -> tuple[list[str], dict[str, Sequences], int]:
    """Classes, the texts and labels of each part, and the length of the longest training text."""
    rows = {
        part: [(row, encode(row, max_length, cut)) for row in found]
        for part, found in read_parts(root, columns).items()
    }
    if missing := {part: fractions[part] for part in fractions if part not in rows}:
        whole = rows["train"]
        chosen = split([row.label for row, _ in whole], missing, seed)
        rows |= {part: [whole[k] for k in indices] for part, indices in chosen.items()}
    classes = sorted({row.label for row, _ in rows["train"]})
    parts = {
        part: Sequences([tokens for _, tokens in pairs], [number(row, classes) for row, _ in pairs])
        for part, pairs in rows.items()
    }
    return classes, parts, max(parts["train"].lengths)


def read_parts(root: Path, columns: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of "train", "test" and, if it exists, "val"; all rows of a single csv file are "train"."""
    if root.is_file() and root.suffix.lower() == ".csv":
        return {"train": read(root, columns)}
    found = {}
    for part in ("train", "test", "val"):
        if (root / f"{part}.csv").is_file():
            found[part] = read(root / f"{part}.csv", columns)
        elif (root / part).is_dir():
            found[part] = read_classes(root / part)
        elif part != "val":
            raise MissingDataError(f"no {part}.csv and no folder {part} in {root}: {EXPECTED}")
    return found


def read_classes(folder: Path) -> list[Row]:
    """The texts of folder/<class>/*.txt."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != UNLABELLED)
    if not classes:
        raise MissingDataError(f"no class folder in {folder}: expected {folder}/<class>/*.txt")
    rows = []
    for label in classes:
        files = sorted((folder / label).glob("*.txt"))
        if not files:
            raise MissingDataError(f"no text in {folder / label}: expected {folder / label}/*.txt")
        rows += [Row(decode(file), label, file) for file in files]
    return rows


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a file: one for a text file; for a csv file, from the columns of texts and, if given, of labels."""
    if path.suffix.lower() != ".csv":
        return [Row(decode(path), "", path)]
    rows = [Row(text, "".join(label).strip(), path, line) for line, (text, *label) in read_csv(path, columns)]
    if len(columns) > 1 and (unlabelled := next((row for row in rows if not row.label), None)):
        raise CorruptFileError(f"{unlabelled.where}: no value in the column {columns[1]}")
    if not rows:
        raise CorruptFileError(f"{path} is empty: expected a header with {', '.join(columns)}, and rows")
    return rows


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The number of the first line, and the fields in some columns, of each row."""
    csv.field_size_limit(2**31 - 1)  # 128 KiB by default; the limit is global
    reader = csv.reader(io.StringIO(decode(path), newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            if not header:
                header = [field.strip() for field in row]
                if missing := [column for column in columns if column not in header]:
                    problem = f"no column {' and no column '.join(missing)}"
                    raise CorruptFileError(f"{path}, line {line}: {problem}; the columns are {listed(header)}")
            elif len(row) == len(header):
                yield line, [row[header.index(column)] for column in columns]
            elif row:
                raise CorruptFileError(f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise CorruptFileError(f"{path}, line {line}: {error}") from error


def decode(path: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CorruptFileError(f"{path}, line {line}: not UTF-8") from error


def encode(row: Row, max_length: int, cut: bool) -> Tensor:
    """The bytes (L,) of a text."""
    text = row.text.encode()
    if not text.strip():
        raise CorruptFileError(f"{row.where}: the text is empty")
    if len(text) > max_length and not cut:
        hint = "too_long=cut cuts such texts"
        raise CorruptFileError(f"{row.where}: {len(text)} bytes, more than max_length={max_length}; {hint}")
    return torch.frombuffer(bytearray(text[:max_length]), dtype=torch.uint8)


def number(row: Row, classes: Sequence[str]) -> int:
    """The label of a row as a number."""
    if row.label not in classes:
        given = f"label {row.label[:40]!r}"
        raise CorruptFileError(f"{row.where}: {given} does not occur in train, which has {listed(classes)}")
    return classes.index(row.label)


def fake(root: str | Path) -> dict[str, Any]:
    """Write IMDb's layout: 6 training and 3 test reviews each of neg and pos, and 6 without a label.

    Returns:
        The arguments with which `Text` reads them.
    """
    adjectives = {"neg": ("dull", "poor"), "pos": ("fine", "great"), UNLABELLED: ("odd", "new")}
    for part, count in (("train", 6), ("test", 3)):
        for label in adjectives if part == "train" else ("neg", "pos"):
            folder = Path(root) / part / label
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(count):
                text = f"A {adjectives[label][k % 2]} film" + ", and long" * k + "."
                (folder / f"{k}_{k + 1}.txt").write_text(text, encoding="utf-8")
    return {"root": str(root)}
