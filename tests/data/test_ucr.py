"""The data sets in aeon, as the archives describe them, and the same format in a folder."""

from collections import Counter

import numpy as np
import pytest
import torch
from lightning_utilities.core.imports import RequirementCache

from nonlocal_nets.data import CorruptFileError, ucr
from nonlocal_nets.data.ts_files import read_ts
from nonlocal_nets.data.ucr import UCR, fake, find_set

ARCHIVES = [  # name, number of train and test series, channels, shortest, longest, classes: the archives' own tables
    ("ArrowHead", 36, 175, 1, 251, 251, 3),
    ("BasicMotions", 40, 40, 6, 100, 100, 4),
    ("GunPoint", 50, 150, 1, 150, 150, 2),
    ("ItalyPowerDemand", 67, 1029, 1, 24, 24, 2),
    ("JapaneseVowels", 270, 370, 12, 7, 29, 9),
    ("OSULeaf", 200, 242, 1, 427, 427, 6),
    ("ACSF1", 100, 100, 1, 1460, 1460, 10),
    ("PickupGestureWiimoteZ", 50, 50, 1, 29, 361, 10),
]


def write(folder, train, test=None, name="Walks", labels="slow fast"):
    """Write a data set from lines of data; return the arguments that read it."""
    for part, lines in (("TRAIN", train), ("TEST", test or train)):
        (folder / f"{name}_{part}.ts").write_text("\n".join([f"@classLabel true {labels}", "@data", *lines]))
    return {"root": str(folder)}


def values(dataset):
    return [x.tolist() for x in dataset.values]


@pytest.mark.parametrize(("name", "train", "test", "channels", "shortest", "longest", "classes"), ARCHIVES)
def test_sizes_are_those_of_the_archives(name, train, test, channels, shortest, longest, classes):
    pytest.importorskip("aeon")
    data = UCR(name)
    parts = {part: data.dataset(part) for part in ("train", "val", "test")}
    assert (len(parts["train"]) + len(parts["val"]), len(parts["test"])) == (train, test)
    assert data.num_classes == len(data.class_names) == classes
    assert data.input_size == (channels, max(parts["train"].lengths))
    lengths = [length for part in parts.values() for length in part.lengths]
    assert (min(lengths), max(lengths)) == (shortest, longest)
    assert {x.shape[0] for part in parts.values() for x in part.values} == {channels}
    for part in parts.values():
        assert set(part.targets) == set(range(classes))


def test_values_and_labels_are_those_of_the_files_in_their_order(tmp_path):
    args = fake(tmp_path)
    data = UCR(**args, val_fraction=0, normalise="none")
    assert data.class_names == ("slow", "fast", "still")
    for part, file in zip(("train", "test"), find_set(args["name"], args["root"]), strict=True):
        series = read_ts(file).series
        for (x, label), expected in zip(data.dataset(part), series, strict=True):
            np.testing.assert_array_equal(x, expected.values.astype(np.float32))
            assert data.class_names[label] == expected.label


def test_validation_is_a_stratified_share_of_train(tmp_path):
    args = fake(tmp_path)
    whole = UCR(**args, val_fraction=0, normalise="none")
    assert values(whole.dataset("val")) == values(whole.dataset("train"))
    splits = [UCR(**args, normalise="none", seed=seed) for seed in range(3)]
    for data in splits:
        assert Counter(data.dataset("val").targets) == {0: 1, 1: 1, 2: 1}
        both = values(data.dataset("train")) + values(data.dataset("val"))
        assert sorted(both) == sorted(values(whole.dataset("train")))
        assert values(data.dataset("test")) == values(whole.dataset("test"))
    assert values(splits[0].dataset("val")) == values(UCR(**args, normalise="none").dataset("val"))
    assert values(splits[0].dataset("val")) != values(splits[1].dataset("val"))


def test_normalised_by_all_training_values(tmp_path):
    args = fake(tmp_path)
    raw, data = UCR(**args, normalise="none"), UCR(**args)
    seen = torch.cat(raw.dataset("train").values, 1).double()
    for part in ("train", "val", "test"):
        for x, normal in zip(raw.dataset(part).values, data.dataset(part).values, strict=True):
            expected = (x - seen.mean(1, keepdim=True)) / seen.std(1, correction=0, keepdim=True)
            torch.testing.assert_close(normal, expected.float())
            assert abs(normal.mean()) > 1e-3, "not centred by its own mean"


def test_normalised_by_the_values_of_each_series(tmp_path):
    data = UCR(**write(tmp_path, ["1,2,3:-7,-7,-7:slow", "10,30:0.1,0.1:fast"]), val_fraction=0, normalise="series")
    third = 1.5**0.5  # 1 / the standard deviation of 1, 2, 3
    torch.testing.assert_close(data.dataset("train")[0][0], torch.tensor([[-third, 0, third], [0, 0, 0]]))
    torch.testing.assert_close(data.dataset("train")[1][0], torch.tensor([[-1.0, 1], [0, 0]]))


def test_missing_values(tmp_path):
    args = write(tmp_path, ["1,2:slow", "?,2,NaN,?,8,?:fast"]) | {"val_fraction": 0, "normalise": "none"}
    with pytest.raises(
        CorruptFileError, match=r"Walks_TRAIN.ts, line 4, dimension 1: value 1 is missing; missing=linear"
    ):
        UCR(**args)
    assert values(UCR(**args, missing="zero").dataset("train")) == [[[1, 2]], [[0, 2, 0, 0, 8, 0]]]
    assert values(UCR(**args, missing="linear").dataset("test")) == [[[1, 2]], [[2, 2, 4, 6, 8, 8]]]
    normalised = UCR(**args | {"normalise": "series"}, missing="zero").dataset("train")[1][0]
    filled = np.array([0, 2, 0, 0, 8, 0])
    np.testing.assert_allclose(normalised[0], (filled - filled.mean()) / filled.std(), rtol=1e-6)
    write(tmp_path, ["1,2:3,4:slow", "1,2:?,?:fast"])
    with pytest.raises(CorruptFileError, match="line 4: a dimension without any values cannot be interpolated"):
        UCR(**args, missing="linear")


def test_a_data_set_in_a_folder(tmp_path):
    inner = tmp_path / "Walks"
    inner.mkdir()
    write(inner, ["1:slow", "2:fast"])
    for args in (
        {"root": str(inner)},
        {"root": str(tmp_path), "name": "Walks"},
        {"root": str(inner), "name": "Walks"},
    ):
        assert values(UCR(**args, val_fraction=0, normalise="none").dataset("test")) == [[[1]], [[2]]]
    with pytest.raises(ValueError, match=f"no data set in {tmp_path}; expected <name>_TRAIN.ts and <name>_TEST.ts"):
        UCR(root=str(tmp_path))
    with pytest.raises(ValueError, match=f"no files Runs_TRAIN.ts and Runs_TEST.ts in {tmp_path} or {tmp_path}/Runs"):
        UCR("Runs", root=str(tmp_path))
    write(inner, ["1:slow"], name="Runs")
    with pytest.raises(ValueError, match=f"name must be one of the data sets in {inner}: Runs, Walks"):
        UCR(root=str(inner))


def test_the_classes_are_the_labels_of_train_in_the_order_of_the_header(tmp_path):
    args = write(tmp_path, ["1:Fast", "2:still"], ["1:fast"], labels="slow still fast") | {"val_fraction": 0}
    data = UCR(**args)
    assert (data.class_names, data.dataset("train").targets) == (("still", "fast"), [1, 0])
    assert data.dataset("test").targets == [1]
    write(tmp_path, ["1:fast", "2:still"], ["1:fast", "3:slow"], labels="slow still fast")
    with pytest.raises(
        CorruptFileError, match=r"Walks_TEST.ts, line 4: label 'slow' does not occur in train, which has still, fast"
    ):
        UCR(**args)


def test_invalid_arguments_and_files(tmp_path):
    args = write(tmp_path, ["1,2:slow", "1,2,3:fast"]) | {"val_fraction": 0}
    assert UCR(**args, max_length=3).input_size == (1, 3)
    with pytest.raises(CorruptFileError, match=r"Walks_TRAIN.ts, line 4: length 3, more than max_length=2"):
        UCR(**args, max_length=2)
    with pytest.raises(ValueError, match="normalise must be one of train, series, none, got 'all'"):
        UCR(**args, normalise="all")
    with pytest.raises(ValueError, match="missing must be one of error, linear, zero, got 'mean'"):
        UCR(**args, missing="mean")
    with pytest.raises(ValueError, match="got val_fraction=1"):
        UCR(**args | {"val_fraction": 1})
    with pytest.raises(ValueError, match=r"no file nowhere.ts: expected a .ts file to predict"):
        UCR(**args, path="nowhere.ts")
    with pytest.raises(ValueError, match=r"predict needs series: --data.path=<.ts file>"):
        UCR(**args).predict_dataloader()
    write(tmp_path, ["1,2:slow", "1,2,3:fast"], ["1:2:slow"])
    with pytest.raises(CorruptFileError, match=r"Walks_TEST.ts, line 3: 2 dimensions, but train has 1"):
        UCR(**args)


def test_an_unknown_name_and_no_package(monkeypatch):
    pytest.importorskip("aeon")
    message = r"name must be one of ACSF1, ArrowHead, BasicMotions.*GunPoint.*, or root a folder .*; got 'Coffee'"
    with pytest.raises(ValueError, match=message):
        UCR("Coffee")
    monkeypatch.setattr(ucr, "PACKAGE", RequirementCache("no-such-package-of-series"))
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps aeon"):
        UCR("GunPoint")


def test_predict_reads_as_the_test_but_without_labels(tmp_path):
    args = fake(tmp_path)
    tested = UCR(**args)
    path = tmp_path / "new.ts"
    lines = find_set(args["name"], args["root"])[1].read_text().splitlines()
    path.write_text("@data\n" + "\n".join(line.rpartition(":")[0] for line in lines if line[0] not in "@#"))
    data = UCR(**args, path=str(path), batch_size=4)
    (((x, mask), names), (_, last)) = data.predict_dataloader()
    assert [*names, *last] == [f"{path}:{k}" for k in range(1, 7)]
    for padded, valid, expected in zip(x, mask, tested.dataset("test").values, strict=False):
        torch.testing.assert_close(padded[:, valid], expected, rtol=0, atol=0)
