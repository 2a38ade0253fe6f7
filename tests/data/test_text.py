"""Texts as bytes, from csv files and from folders, and errors that name the file and the line."""

import csv
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_nets.data.base import CorruptFileError
from nonlocal_nets.data.text import Text, fake

PARTS = ("train", "val", "test")


def decoded(data, part):
    """The texts and class names of a part, sorted."""
    dataset = data.dataset(part)
    texts = [bytes(tokens.tolist()).decode() for tokens in dataset.values]
    return sorted(zip(texts, [data.class_names[label] for label in dataset.targets], strict=True))


def everything(data):
    return sorted(row for part in PARTS for row in decoded(data, part))


def write_csv(path, rows, header=("text", "label")):
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def many(count=20, start=0):
    return [(f"text {k}, and more\nin a second line", f"class {k % 2}") for k in range(start, start + count)]


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_the_published_folder(tmp_path):
    data = Text(**fake(tmp_path), val_fraction=0.25)
    assert (data.class_names, data.tokens, len(data.token_names)) == (("neg", "pos"), True, 256)
    on_disk = {part: sorted((f.read_text(), f.parent.name) for f in tmp_path.glob(f"{part}/*/*.txt")) for part in PARTS}
    assert decoded(data, "test") == on_disk["test"]
    train = [row for row in on_disk["train"] if row[1] != "unsup"]
    assert len(train) == 12
    assert sorted(decoded(data, "train") + decoded(data, "val")) == train
    assert [len(data.dataset(part)) for part in ("train", "val")] == [9, 3]
    assert data.input_size == (256, max(data.dataset("train").lengths))
    (tmp_path / "train").rename(tmp_path / "val")
    (tmp_path / "test").rename(tmp_path / "train")
    (tmp_path / "val").rename(tmp_path / "test")
    (tmp_path / "val" / "pos").mkdir(parents=True)
    (tmp_path / "val" / "pos" / "1.txt").write_text("nice")
    data = Text(str(tmp_path))
    assert decoded(data, "val") == [("nice", "pos")]
    assert [len(data.dataset(part)) for part in PARTS] == [6, 1, 12]


def test_one_csv_file_is_split_in_the_same_proportions_for_each_class(tmp_path):
    path = write_csv(tmp_path / "all.csv", many(40))
    data = Text(path, val_fraction=0.1, test_fraction=0.2)
    parts = {part: decoded(data, part) for part in PARTS}
    assert [len(parts[part]) for part in PARTS] == [28, 4, 8]
    assert everything(data) == sorted(many(40))
    assert all(sum(label == "class 1" for _, label in rows) == len(rows) / 2 for rows in parts.values())
    again, other = (decoded(Text(path, val_fraction=0.1, test_fraction=0.2, seed=seed), "train") for seed in (0, 1))
    assert parts["train"] == again != other


def test_one_csv_file_per_part_with_other_column_names(tmp_path):
    for start, part in ((0, "train"), (100, "test"), (200, "val")):
        rows = [(label, k, text) for k, (text, label) in enumerate(many(8, start))]
        write_csv(tmp_path / f"{part}.csv", rows, ("stars", "id", "review"))
    args = {"text_column": "review", "label_column": "stars"}
    data = Text(str(tmp_path), **args)
    for start, part in ((0, "train"), (100, "test"), (200, "val")):
        assert decoded(data, part) == sorted(many(8, start))
    (tmp_path / "val.csv").unlink()
    splits = [Text(str(tmp_path), **args, val_fraction=0.25, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (decoded(data, "val") for data in splits)
    assert first == again != other
    assert {label for _, label in first} == {"class 0", "class 1"}
    assert sorted(decoded(splits[0], "train") + first) == sorted(many(8))
    assert decoded(splits[0], "test") == sorted(many(8, 100))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.text(max_size=20).map(lambda text: f"x{text}"), st.sampled_from("ab")), max_size=4))
def test_any_text_survives_a_csv_file(tmp_path_factory, rows):
    """Quotes, commas, line ends and characters of several bytes; lone surrogates cannot be written as UTF-8."""
    rows = [(text.encode("utf-8", "ignore").decode(), label) for text, label in rows]
    rows += [("a", "a"), ("b", "b")] * 10
    data = Text(write_csv(tmp_path_factory.mktemp("csv") / "all.csv", rows))
    assert everything(data) == sorted(rows)


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    path = tmp_path / "all.csv"
    write_csv(path, many())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert everything(Text(str(path))) == sorted(many())


def test_labels_are_the_positions_in_the_sorted_classes_of_train(tmp_path):
    write_csv(tmp_path / "train.csv", [("one", "b"), ("two", "c"), ("three", "a")])
    write_csv(tmp_path / "val.csv", [("four", "c")])
    write_csv(tmp_path / "test.csv", [("five", "b"), ("six", "a")])
    data = Text(str(tmp_path))
    assert data.class_names == ("a", "b", "c")
    assert [data.dataset(part).targets for part in PARTS] == [[1, 2, 0], [2], [1, 0]]


def test_the_names_of_tokens_are_their_characters():
    assert Text.token_names[ord("a")] == "a"
    assert Text.token_names[ord("\n")] == "\\n"
    assert Text.token_names[0xE4] == "\\xe4"


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_batches_have_bytes_and_a_mask(tmp_path):
    data = Text(write_csv(tmp_path / "all.csv", [("äh", "a"), ("x", "b")] * 10), batch_size=20, val_fraction=0.2)
    (x, mask), _ = next(iter(data.train_dataloader()))
    assert x.dtype == torch.int64
    texts = {bytes(tokens[valid].tolist()).decode() for tokens, valid in zip(x, mask, strict=True)}
    assert texts == {"äh", "x"}


def test_long_texts_are_an_error_or_cut(tmp_path):
    rows = [*many(), ("ä" * 24 + "yz", "class 0")]
    path = write_csv(tmp_path / "all.csv", rows)
    message = r"all.csv, line 42: 50 bytes, more than max_length=40; too_long=cut cuts such texts"
    with pytest.raises(CorruptFileError, match=message):
        Text(path, max_length=40)
    data = Text(path, max_length=40, too_long="cut")
    assert everything(data) == sorted([*many(), ("ä" * 20, "class 0")])
    assert everything(Text(path, max_length=50)) == sorted(rows), "50 bytes are not too many"


def test_a_field_may_exceed_the_default_limit_of_pythons_reader(tmp_path):
    rows = [*many(), ("z" * 200_000, "class 1")]
    path = write_csv(tmp_path / "all.csv", rows)
    assert everything(Text(path, max_length=300_000)) == sorted(rows)


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_on_a_file_a_csv_file_and_a_folder(tmp_path):
    root = write_csv(tmp_path / "all.csv", many())
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "b.txt").write_text("in a file")
    (folder / "notes.md").write_text("ignored in a folder")
    write_csv(folder / "a.csv", [("one\ntwo", 1), ("three", 2)], ("text", "id"))

    def predicted(path, **args):
        (((x, mask), names),) = Text(root, path=str(path), **args).predict_dataloader()
        mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        texts = [bytes(tokens[valid].tolist()).decode() for tokens, valid in zip(x, mask, strict=True)]
        return dict(zip(names, texts, strict=True))

    of_file = {str(folder / "inner" / "b.txt"): "in a file"}
    of_csv = {f"{folder / 'a.csv'}:2": "one\ntwo", f"{folder / 'a.csv'}:4": "three"}
    assert predicted(folder / "inner" / "b.txt") == of_file
    assert predicted(folder / "notes.md") == {str(folder / "notes.md"): "ignored in a folder"}
    assert predicted(folder / "a.csv") == of_csv
    assert list(predicted(folder).items()) == [*of_csv.items(), *of_file.items()], "sorted"
    (folder / "inner" / "b.txt").write_text("x" * 50)
    assert predicted(folder / "inner", max_length=45, too_long="cut") == dict.fromkeys(of_file, "x" * 45)
    with pytest.raises(ValueError, match=r"predict needs texts: --data\.path="):
        Text(root).predict_dataset()
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere: expected a text, or a folder with texts"):
        Text(root, path=str(tmp_path / "nowhere"))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"all.csv is empty: expected a header with text, label, and rows"),
        (b"text,label\n", r"all.csv is empty"),
        (b"text,class\nx,a\n", r"all.csv, line 1: no column label; the columns are text, class"),
        (b"a,b\nx,a\n", r"all.csv, line 1: no column text and no column label; the columns are a, b"),
        (b'text,label\n"two\nlines",a\nx\n', r"all.csv, line 4: 1 fields, but the header has 2"),
        (b"text,label\nx,a\n\ny,a,b\n", r"all.csv, line 4: 3 fields, but the header has 2"),
        (b"text,label\nx,a\n  ,b\n", r"all.csv, line 3: the text is empty"),
        (b"text,label\nx,a\ny, \n", r"all.csv, line 3: no value in the column label"),
        (b'text,label\nx,a\n"y,b\n', r"all.csv, line 3: unexpected end of data"),
        (b"text,label\nx,a\n\xff\xfe,b\n", r"all.csv, line 3: not UTF-8"),
    ],
)
def test_a_csv_file_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "all.csv").write_bytes(content)
    with pytest.raises(CorruptFileError, match=message):
        Text(str(tmp_path / "all.csv"), val_fraction=0.3, test_fraction=0.3)


def test_labels_that_train_does_not_have(tmp_path):
    write_csv(tmp_path / "train.csv", many())
    write_csv(tmp_path / "test.csv", [*many(), ("text", "class 7")])
    message = "test.csv, line 42: label 'class 7' does not occur in train, which has class 0, class 1"
    with pytest.raises(CorruptFileError, match=message):
        Text(str(tmp_path))


def test_files_of_a_folder_that_cannot_be_read(tmp_path):
    root = fake(tmp_path)["root"]
    file = tmp_path / "test" / "pos" / "9_9.txt"
    for content, message in ((b"", "9_9.txt: the text is empty"), (b"a\nb\xff", "9_9.txt, line 2: not UTF-8")):
        file.write_bytes(content)
        with pytest.raises(CorruptFileError, match=message):
            Text(root)
    file.unlink()
    (tmp_path / "test" / "so-so").mkdir()
    with pytest.raises(ValueError, match=r"no text in .*so-so: expected .*so-so/\*\.txt"):
        Text(root)
    (tmp_path / "test" / "so-so" / "1.txt").write_text("hm")
    with pytest.raises(
        CorruptFileError, match=r"so-so/1.txt: label 'so-so' does not occur in train, which has neg, pos"
    ):
        Text(root)


def test_invalid_layouts(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere.csv", tmp_path / "notes.txt"):
        if root.suffix == ".txt":
            root.write_text("no table")
        with pytest.raises(ValueError, match=rf"no train.csv and no folder train in {root}: expected a csv file, or"):
            Text(str(root))
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"no class folder in .*train: expected .*train/<class>/\*\.txt"):
        Text(str(tmp_path))
    (tmp_path / "train").rmdir()
    write_csv(tmp_path / "train.csv", many())
    with pytest.raises(ValueError, match=r"no test.csv and no folder test in "):
        Text(str(tmp_path))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"too_long": "drop"}, "too_long must be 'error' or 'cut', got 'drop'"),
        ({"val_fraction": 0.0}, "val_fraction=0.0"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_invalid_arguments(tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        Text(write_csv(tmp_path / "all.csv", many()), **args)
