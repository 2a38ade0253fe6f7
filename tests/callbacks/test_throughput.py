"""Speeds as Lightning's monitor logs them, and the operations that they are made of."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import nonlocal_nets as nln
from nonlocal_nets.callbacks import Throughput
from nonlocal_nets.callbacks.throughput import flops, positions
from nonlocal_nets.tasks import ImageClassification


@pytest.mark.parametrize(
    ("shape", "mask", "expected"),
    [
        ((2, 3, 4, 5), None, 40),
        ((2, 3, 8, 4, 5), None, 320),
        ((2, 6, 3, 8, 4, 5), None, 6 * 320),
        ((2, 3, 7), None, 14),
        ((2, 7), None, 14),
        ((2, 3, 7), [7, 2], 9),
    ],
    ids=["images", "clips", "views", "signals", "tokens", "padded"],
)
def test_positions_of_a_batch(shape, mask, expected):
    x = torch.zeros(shape)
    valid = None if mask is None else torch.arange(7) < torch.tensor(mask)[:, None]
    inputs = (x, valid) if len(shape) < 4 else x
    assert positions((inputs, torch.zeros(2))) == expected


@pytest.mark.parametrize("training", [True, False])
def test_operations_of_a_batch_are_those_of_the_layers(training):
    """A convolution of 3 x 3 from 3 to 5 channels, and a block of width 2 on 4 x 4 positions, in matrix products."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), nln.NonLocalBlock(5, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x, mask = torch.zeros(7, 3, 4, 4), torch.zeros(7)
    convolution = 5 * 16 * 27
    pointwise, pairs = 4 * 16 * 5 * 2, 2 * 16 * 16 * 2
    forward = 2 * 7 * (convolution + pointwise + pairs)
    backward = 2 * 7 * (convolution + 2 * pointwise + 2 * pairs)  # the images want no gradient
    assert flops(network, (x, mask), training) == forward + training * backward
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_network_that_looks_at_values_has_none():
    class Looks(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert flops(Looks(), (torch.zeros(1, 2), None), training=False) is None


def test_what_is_logged(tmp_path):
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.randint(3, (8,))), 2)
    model = ImageClassification(3, "local_convnet", (3, 8, 8), blocks="layer3", warmup_steps=0)
    seen = {}

    class Logger(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            seen.update(metrics)

    words = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    words |= {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "logger": Logger(tmp_path)}
    pl.Trainer(callbacks=[Throughput(window_size=2)], **words).fit(model, loader, loader)
    one, several = seen["train/device/samples_per_sec"], seen["train/device/items_per_sec"]
    assert several == pytest.approx(64 * one)
    assert seen["train/samples"] == 16
    per_sample = {
        stage: seen[f"{stage}/device/flops_per_sec"] / seen[f"{stage}/device/samples_per_sec"]
        for stage in ("train", "validate")
    }
    batch = next(iter(loader))
    assert per_sample["train"] == pytest.approx(flops(model.network, batch, True) / 2)
    assert per_sample["validate"] == pytest.approx(flops(model.network, batch, False) / 2)
