"""The sets that aeon ships, as the archives describe them, and the same format in a folder."""

from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_utilities.core.imports import RequirementCache

from nonlocal_nets.data import CorruptFileError, ucr
from nonlocal_nets.data.ts_files import read_ts
from nonlocal_nets.data.ucr import UCR, fake, find_set
from nonlocal_nets.tasks import Blocks, SequenceClassification

ARCHIVES = [  # name, series of train and test, channels, shortest and longest, classes: the archives' own tables
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
    """A set in a folder, of lines of data; the words that read it."""
    for part, lines in (("TRAIN", train), ("TEST", test or train)):
        (folder / f"{name}_{part}.ts").write_text("\n".join([f"@classLabel true {labels}", "@data", *lines]))
    return {"root": str(folder)}


def values(dataset):
    return [x.tolist() for x in dataset.values]


@pytest.mark.parametrize(("name", "train", "test", "channels", "shortest", "longest", "classes"), ARCHIVES)
def test_what_the_archives_say(name, train, test, channels, shortest, longest, classes):
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
    words = fake(tmp_path)
    data = UCR(**words, val_fraction=0, normalise="none")
    assert data.class_names == ("slow", "fast", "still")
    for part, file in zip(("train", "test"), find_set(words["name"], words["root"]), strict=True):
        series = read_ts(file).series
        for (x, label), expected in zip(data.dataset(part), series, strict=True):
            np.testing.assert_array_equal(x, expected.values.astype(np.float32))
            assert data.class_names[label] == expected.label


def test_validation_is_an_even_share_of_train(tmp_path):
    words = fake(tmp_path)
    whole = UCR(**words, val_fraction=0, normalise="none")
    assert values(whole.dataset("val")) == values(whole.dataset("train")), "as the literature"
    data = UCR(**words, normalise="none")
    assert Counter(data.dataset("val").targets) == {0: 1, 1: 1, 2: 1}
    both = values(data.dataset("train")) + values(data.dataset("val"))
    assert sorted(both) == sorted(values(whole.dataset("train")))
    assert values(data.dataset("val")) == values(UCR(**words, normalise="none").dataset("val"))
    assert values(data.dataset("val")) != values(UCR(**words, normalise="none", seed=1).dataset("val"))
    assert values(data.dataset("test")) == values(whole.dataset("test"))


def test_normalised_by_what_is_trained_on(tmp_path):
    words = fake(tmp_path)
    raw, data = UCR(**words, normalise="none"), UCR(**words)
    seen = torch.cat(raw.dataset("train").values, 1).double()
    for part in ("train", "val", "test"):
        for x, normal in zip(raw.dataset(part).values, data.dataset(part).values, strict=True):
            expected = (x - seen.mean(1, keepdim=True)) / seen.std(1, correction=0, keepdim=True)
            torch.testing.assert_close(normal, expected.float())
            assert abs(normal.mean()) > 1e-3, "no series is centred by itself"


def test_normalised_each_by_itself(tmp_path):
    data = UCR(**write(tmp_path, ["1,2,3:-7,-7,-7:slow", "10,30:0.1,0.1:fast"]), val_fraction=0, normalise="series")
    third = 1.5**0.5  # 1 / the standard deviation of 1, 2, 3
    torch.testing.assert_close(data.dataset("train")[0][0], torch.tensor([[-third, 0, third], [0, 0, 0]]))
    torch.testing.assert_close(data.dataset("train")[1][0], torch.tensor([[-1.0, 1], [0, 0]]))


def test_missing_values(tmp_path):
    words = write(tmp_path, ["1,2:slow", "?,2,NaN,?,8,?:fast"]) | {"val_fraction": 0, "normalise": "none"}
    with pytest.raises(
        CorruptFileError, match=r"Walks_TRAIN.ts, line 4, dimension 1: value 1 is missing; missing=linear"
    ):
        UCR(**words)
    assert values(UCR(**words, missing="zero").dataset("train")) == [[[1, 2]], [[0, 2, 0, 0, 8, 0]]]
    assert values(UCR(**words, missing="linear").dataset("test")) == [[[1, 2]], [[2, 2, 4, 6, 8, 8]]]
    write(tmp_path, ["1,2:3,4:slow", "1,2:?,?:fast"])
    with pytest.raises(CorruptFileError, match="line 4: a dimension without any value cannot be interpolated"):
        UCR(**words, missing="linear")


def test_a_set_in_a_folder(tmp_path):
    inner = tmp_path / "Walks"
    inner.mkdir()
    write(inner, ["1:slow", "2:fast"])
    for words in (
        {"root": str(inner)},
        {"root": str(tmp_path), "name": "Walks"},
        {"root": str(inner), "name": "Walks"},
    ):
        assert values(UCR(**words, val_fraction=0, normalise="none").dataset("test")) == [[[1]], [[2]]]
    with pytest.raises(ValueError, match=f"no set in {tmp_path}; expected <name>_TRAIN.ts and <name>_TEST.ts"):
        UCR(root=str(tmp_path))
    with pytest.raises(ValueError, match=f"no files Runs_TRAIN.ts and Runs_TEST.ts in {tmp_path} or {tmp_path}/Runs"):
        UCR("Runs", root=str(tmp_path))
    write(inner, ["1:slow"], name="Runs")
    with pytest.raises(ValueError, match="name must choose one: Runs, Walks"):
        UCR(root=str(inner))


def test_a_class_is_a_label_of_train(tmp_path):
    words = write(tmp_path, ["1:Fast", "2:still"], ["1:fast"], labels="slow still fast") | {"val_fraction": 0}
    data = UCR(**words)
    assert (data.class_names, data.dataset("train").targets) == (("still", "fast"), [1, 0])
    write(tmp_path, ["1:fast", "2:still"], ["1:fast", "3:slow"], labels="slow still fast")
    with pytest.raises(
        CorruptFileError, match=r"Walks_TEST.ts, line 4: label 'slow' is not in train, which has still, f"
    ):
        UCR(**words)


def test_refusals(tmp_path):
    words = write(tmp_path, ["1,2:slow", "1,2,3:fast"]) | {"val_fraction": 0}
    assert UCR(**words, max_length=3).input_size == (1, 3)
    with pytest.raises(CorruptFileError, match=r"Walks_TRAIN.ts, line 4: 3 positions, more than max_length=2"):
        UCR(**words, max_length=2)
    with pytest.raises(ValueError, match="normalise must be one of train, series, none, got 'all'"):
        UCR(**words, normalise="all")
    with pytest.raises(ValueError, match="missing must be one of error, linear, zero, got 'mean'"):
        UCR(**words, missing="mean")
    with pytest.raises(ValueError, match="got val_fraction=1"):
        UCR(**words | {"val_fraction": 1})
    with pytest.raises(ValueError, match=r"no file nowhere.ts: expected a .ts file to predict"):
        UCR(**words, path="nowhere.ts")
    with pytest.raises(ValueError, match=r"predict needs series: --data.path=<.ts file>"):
        UCR(**words).predict_dataloader()
    write(tmp_path, ["1,2:slow", "1,2,3:fast"], ["1:2:slow"])
    with pytest.raises(CorruptFileError, match=r"Walks_TEST.ts, line 3: 2 dimensions, train has 1"):
        UCR(**words)


def test_an_unknown_name_and_no_package(monkeypatch):
    pytest.importorskip("aeon")
    names = ", ".join(sorted(name for name, *_ in ARCHIVES)).replace(", ", ".*")
    with pytest.raises(ValueError, match=f"name must be one of {names}.*, or root a folder .*; got 'Coffee'"):
        UCR("Coffee")
    monkeypatch.setattr(ucr, "PACKAGE", RequirementCache("no-such-package-of-series"))
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps aeon"):
        UCR("GunPoint")


def test_predicts_as_it_tests_without_labels(tmp_path):
    words = fake(tmp_path)
    tested = UCR(**words)
    path = tmp_path / "new.ts"
    lines = find_set(words["name"], words["root"])[1].read_text().splitlines()
    path.write_text("@data\n" + "\n".join(line.rpartition(":")[0] for line in lines if line[0] not in "@#"))
    data = UCR(**words, path=str(path), batch_size=4)
    (((x, mask), names), (_, last)) = data.predict_dataloader()
    assert [*names, *last] == [f"{path}:{k}" for k in range(1, 7)]
    for padded, valid, expected in zip(x, mask, tested.dataset("test").values, strict=False):
        torch.testing.assert_close(padded[:, valid], expected, rtol=0, atol=0)


def test_trains_and_tests(tmp_path):
    torch.manual_seed(0)
    data = UCR(**fake(tmp_path), batch_size=4)
    shape = {"input_size": data.input_size, "widths": (8, 8)}
    model = SequenceClassification(data.num_classes, "signal_resnet", **shape, blocks=Blocks(at={"layer2": 1}))
    trainer = pl.Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, data)
    (figures,) = trainer.test(model, data, verbose=False)
    assert np.isfinite(figures["test/loss"])
