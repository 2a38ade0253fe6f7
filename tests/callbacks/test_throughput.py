"""Speeds as Lightning's monitor logs them, and the operations that they are made of."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import nonlocal_nets as nln
from nonlocal_nets.callbacks import Throughput
from nonlocal_nets.callbacks.throughput import flops, positions

MASK = torch.arange(7) < torch.tensor([7, 2])[:, None]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.zeros(2, 3, 4, 5), 40),
        (torch.zeros(2, 3, 8, 4, 5), 320),
        ((torch.zeros(2, 3, 7), None), 14),
        ((torch.zeros(2, 7, dtype=torch.long), None), 14),
        ((torch.zeros(2, 3, 7), MASK), 9),
        ([torch.zeros(2, 7, dtype=torch.long), MASK], 9),
        ((torch.zeros(2, 3, 4, 5), torch.zeros(2, 9)), 40),
    ],
    ids=["images", "clips", "signals", "tokens", "padded", "padded tokens", "two inputs"],
)
def test_positions_of_inputs(inputs, expected):
    assert positions(inputs) == expected


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("others", [(), (None,), (torch.ones(7, 4, 4, dtype=torch.bool),)])
def test_operations_of_a_batch_are_those_of_the_layers(training, others):
    """A convolution of 3 x 3 from 3 to 5 channels, and a block of width 2 on 4 x 4 positions, in matrix products."""
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nln.NonLocalBlock(5, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.zeros(7, 3, 4, 4)
    convolution = 5 * 16 * 27
    pointwise, pairs = 4 * 16 * 5 * 2, 2 * 16 * 16 * 2
    forward = 2 * 7 * (convolution + pointwise + pairs)
    backward = 2 * 7 * (convolution + 2 * pointwise + 2 * pairs)  # the images want no gradient
    assert flops(network, (x, *others) if others else x, training) == forward + training * backward
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_network_that_looks_at_values_has_none():
    class Looks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert flops(Looks(), torch.zeros(1, 2), training=False) is None


class Task(pl.LightningModule):
    """Samples are halves of what the batch has; evaluation has three views of each as samples of the network."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 5, 1)

    def num_samples(self, batch):
        return len(batch["x"]) // 2

    def inputs(self, batch, stage):
        return batch["x"] if stage == "train" else batch["x"].repeat_interleave(3, 0)

    def training_step(self, batch, batch_idx):
        return self.network(self.inputs(batch, "train")).square().mean()

    def validation_step(self, batch, batch_idx):
        self.network(self.inputs(batch, "val"))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.network(self.inputs(batch, "predict"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Logger(pl.loggers.CSVLogger):
    def __init__(self, folder):
        super().__init__(folder)
        self.seen = {}

    def log_metrics(self, metrics, step=None):
        self.seen.update(metrics)


def test_what_is_logged(tmp_path):
    logger = Logger(tmp_path)
    loader = DataLoader([{"x": torch.randn(3, 8, 8)} for _ in range(16)], batch_size=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        callbacks=[Throughput(window_size=2)],
        accelerator="cpu",
        max_epochs=2,
        val_check_interval=2,
        log_every_n_steps=1,
        logger=logger,
        **quiet,
    )
    task = Task()
    trainer.fit(task, loader, loader)
    trainer.test(task, loader, verbose=False)
    seen = logger.seen
    assert (seen["train/batches"], seen["train/samples"]) == (8, 16)
    assert (seen["test/batches"], seen["test/samples"]) == (4, 8)
    layer = 2 * 4 * 64 * 3 * 5  # of 4 images
    for stage, views, passes in (("train", 1, 2), ("validate", 3, 1), ("test", 3, 1)):
        batches = seen[f"{stage}/device/batches_per_sec"]
        assert seen[f"{stage}/device/samples_per_sec"] == pytest.approx(2 * batches)
        assert seen[f"{stage}/device/items_per_sec"] == pytest.approx(views * 4 * 64 * batches)
        assert seen[f"{stage}/device/flops_per_sec"] == pytest.approx(passes * views * layer * batches)
    assert task.flops_per_batch == 3 * layer
    trainer.predict(task, loader, return_predictions=False)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch(tmp_path):
    loader = DataLoader([{"x": torch.randn(3, 8, 8)} for _ in range(16)], batch_size=4)
    checkpoint, task = None, None
    for steps in (2, 4):
        logger, task = Logger(tmp_path), Task()
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = pl.Trainer(
            callbacks=[Throughput(window_size=2)],
            accelerator="cpu",
            max_steps=steps,
            limit_val_batches=0,
            log_every_n_steps=1,
            logger=logger,
            **quiet,
        )
        trainer.fit(task, loader, loader, ckpt_path=checkpoint)
        checkpoint = tmp_path / "half.ckpt"
        trainer.save_checkpoint(checkpoint)
    assert task.flops_per_batch == 2 * 2 * 4 * 64 * 3 * 5


@pytest.mark.parametrize("missing", ["network", "inputs", "num_samples"])
def test_a_module_that_is_no_task(missing):
    given = {"network": nn.Identity(), "inputs": None, "num_samples": None}
    del given[missing]
    module = type("Mine", (pl.LightningModule,), given)()
    message = rf"^Throughput needs a LightningModule with network, inputs, num_samples, .*; Mine has no {missing}$"
    with pytest.raises(ValueError, match=message):
        Throughput().setup(None, module, "fit")
