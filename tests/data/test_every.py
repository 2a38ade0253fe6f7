"""What every data module promises to the command line and to the tasks."""

import inspect
import sys

import pytest
import pytorch_lightning as pl
import torch

import nonlocal_nets.data

MODULES = [
    cls for cls in vars(nonlocal_nets.data).values() if inspect.isclass(cls) and issubclass(cls, pl.LightningDataModule)
]


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_every_data_module(cls, tmp_path):
    fake = getattr(sys.modules[cls.__module__], "fake", None)
    data = cls(**(fake(tmp_path) if fake else {}), batch_size=2)
    assert len(data.class_names) == data.num_classes > 1
    assert not data.hparams, "a name that the model has too, with another value, stops Lightning"
    for part in ("train", "val", "test"):
        images, labels = next(iter(getattr(data, f"{part}_dataloader")()))
        assert images.shape == (2, *data.input_size)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.max() < data.num_classes


def test_there_are_four():
    assert {cls.__name__ for cls in MODULES} == {"CIFAR", "CuedDigits", "ELPV", "ImageFolder"}
