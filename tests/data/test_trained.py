"""Predicting after the training data are gone, for every data module that reads files."""

import json
import shutil
import sys

import pytest
import torch

import nonlocal_nets.data
from nonlocal_nets.data import UCR, MissingDataError, ucr
from nonlocal_nets.data.trained import trained_on

READERS = (
    "CIFAR",
    "Charades",
    "ELPV",
    "ImageFolder",
    "Kinetics",
    "ListOps",
    "SpeechCommands",
    "Text",
    "UCR",
    "VideoFolder",
)


@pytest.mark.parametrize("name", READERS)
def test_the_classes_are_those_of_the_checkpoint(name, tmp_path, caplog):
    cls = getattr(nonlocal_nets.data, name)
    arguments = sys.modules[cls.__module__].fake(tmp_path / "data")
    data = cls(**arguments)
    meaning = json.loads(json.dumps(data.meaning))
    shutil.rmtree(tmp_path / "data")
    for predicting, known in ((False, meaning), (True, {})):
        with trained_on(known, predicting), pytest.raises(MissingDataError):
            cls(**arguments)
    with trained_on(meaning, predicting=True):
        again = cls(**arguments)
    assert again.meaning == meaning
    assert (again.class_names, again.num_classes, again.input_size) == (
        data.class_names,
        data.num_classes,
        data.input_size,
    )
    assert "; the classes are those of the checkpoint" in caplog.text or name == "ELPV"
    with pytest.raises(MissingDataError):
        cls(**arguments)


def test_half_of_the_data_is_as_good_as_none(tmp_path):
    arguments = nonlocal_nets.data.image_folder.fake(tmp_path)
    meaning = nonlocal_nets.data.ImageFolder(**arguments).meaning
    shutil.rmtree(tmp_path / "train")
    with trained_on(meaning, predicting=True):
        assert nonlocal_nets.data.ImageFolder(**arguments).class_names == ("ant", "bee", "cat")


def test_series_are_scaled_as_those_that_the_network_was_trained_on(tmp_path):
    arguments = ucr.fake(tmp_path)
    path = tmp_path / "Fake_TEST.ts"
    data = UCR(**arguments, path=str(path))
    with trained_on(data.meaning, predicting=False):
        other = UCR(**arguments, path=str(path), seed=1)  # another share of train
    apart = UCR(**arguments, path=str(path), seed=1)
    moved = path.rename(tmp_path / "moved.ts")
    with trained_on(data.meaning, predicting=True):
        gone = UCR(**arguments, path=str(moved))
    ours, others, theirs, left = (list(each.predict_dataset()) for each in (data, other, apart, gone))
    for (x, _), (same, _), (different, _), (again, _) in zip(ours, others, theirs, left, strict=True):
        assert torch.equal(x, same)
        assert torch.equal(x, again)
        assert not torch.equal(x, different)
