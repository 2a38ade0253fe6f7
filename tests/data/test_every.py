"""What each data module promises to the command line and to the tasks."""

import inspect
import sys

import pytest
import pytorch_lightning as pl
import torch

import nonlocal_nets.data
from nonlocal_nets.data import CuedClips
from nonlocal_nets.data.base import listed
from nonlocal_nets.data.sequences import SequenceDataModule
from nonlocal_nets.data.videos import VideoDataModule

MODULES = [
    cls for cls in vars(nonlocal_nets.data).values() if inspect.isclass(cls) and issubclass(cls, pl.LightningDataModule)
]
VIEWS = {"train": (), "val": (1,), "test": (4,)}  # axis of views of the videos that `fake` writes
CUED_VIEWS = VIEWS | {"test": (1,)}


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_every_data_module(cls, tmp_path):
    fake = getattr(sys.modules[cls.__module__], "fake", None)
    data = cls(**(fake(tmp_path) if fake else {}), batch_size=2)
    assert len(data.class_names) == data.num_classes > 1
    assert not data.hparams, "Lightning refuses hyperparameters that the model has too, with another value"
    for part in ("train", "val", "test"):
        with pytest.raises(IndexError):  # by which `for sample in dataset` ends
            data.dataset(part)[len(data.dataset(part))]
        loader = getattr(data, f"{part}_dataloader")()
        inputs, labels = next(iter(loader))
        if isinstance(data, SequenceDataModule):
            inputs = check_padded(data, *inputs)
        else:
            views = CUED_VIEWS if cls is CuedClips else VIEWS if issubclass(cls, VideoDataModule) else {}
            assert inputs.shape == (loader.batch_size, *views.get(part, ()), *data.input_size)
            assert inputs.dtype == torch.float32
        if getattr(data, "multi_label", False):
            assert (labels.dtype, labels.shape) == (torch.float32, (len(inputs), data.num_classes))
        else:
            assert (labels.dtype, labels.shape) == (torch.int64, (len(inputs),))
        assert 0 <= labels.min() <= labels.max() < data.num_classes


def check_padded(data, inputs, mask):
    """Check signals (B, C, L) or tokens (B, L), which are zero where the mask is False; return them."""
    assert inputs.dtype == (torch.int64 if data.tokens else torch.float32)
    assert inputs.shape == ((2, inputs.shape[1]) if data.tokens else (2, data.input_size[0], inputs.shape[2]))
    if mask is not None:
        assert (mask.dtype, mask.shape) == (torch.bool, (2, inputs.shape[-1]))
        assert not inputs.movedim(-1, 1)[~mask].any()
    if data.tokens:
        assert 0 <= inputs.min() <= inputs.max() < data.input_size[0]
    return inputs


def test_all_data_modules_are_exported():
    names = {"CIFAR", "Charades", "CuedClips", "CuedDigits", "ELPV", "ImageFolder", "Kinetics", "VideoFolder"}
    names |= {"ListOps", "SpeechCommands", "Text", "UCR"}
    assert {cls.__name__ for cls in MODULES} == names


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_loader_has_its_batch_size_and_workers(tmp_path, num_workers):
    fake = sys.modules["nonlocal_nets.data.video_folder"].fake
    data = nonlocal_nets.data.VideoFolder(
        **fake(tmp_path) | {"num_workers": num_workers}, batch_size=5, test_batch_size=4, path=str(tmp_path)
    )
    loaders = [getattr(data, f"{part}_dataloader")() for part in ("train", "val", "test", "predict")]
    assert [loader.batch_size for loader in loaders] == [5, 5, 4, 4]
    assert [loader.num_workers for loader in loaders] == [num_workers] * 4


def test_long_lists_in_messages_are_cut_and_counted():
    assert listed([]) == ""
    assert listed(["a", "b"]) == "a, b"
    assert listed("abcdef", 7) == "a, b, c (+3 more)"
    assert listed("abcdef", 6) == "a, b (+4 more)"
    assert listed(["a long one", "b"], 3) == "a long one (+1 more)"
