"""What every task gets: figures over all samples, each counted once, rates of a resumed run, which value is best."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAccuracy

from nonlocal_nets.tasks import Optimizer, Schedule, Task

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Means(Task):
    """The loss of a batch of numbers is their mean, and so is the one metric."""

    monitor, mode = "val/mean", "max"

    def __init__(self, lr=0.0):
        network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(network.weight)
        super().__init__(
            network, MetricCollection({"mean": MeanMetric()}), Optimizer("sgd", lr, 0.0), Schedule(), "hello"
        )
        self.seen = []

    def num_samples(self, batch):
        return len(batch)

    def training_loss(self, batch):
        return self(batch[:, None]).mean()

    def evaluate(self, batch, metrics):
        self.seen.append(batch.tolist())
        metrics.update(self(batch[:, None])[:, 0])
        return {"loss": batch.mean()}

    def inputs(self, batch, stage):
        return batch[:, None]


class Numbers:
    """Other numbers in each epoch, in batches of 4, the last one smaller."""

    def __init__(self, *epochs):
        self.epochs, self.epoch = [torch.tensor(epoch) for epoch in epochs], 0

    def __iter__(self):
        numbers = self.epochs[self.epoch % len(self.epochs)]
        self.epoch += 1
        yield from numbers.split(4)  # only now: Lightning makes iterators that it does not use

    def __len__(self):
        return len(self.epochs[0].split(4))


FIRST, SECOND = [1.0, 2.0, 3.0, 4.0, 10.0], [5.0, 5.0, 7.0, 7.0, 1.0]  # means of 4 and 5; of their batches 6.25 and 3.5


class Record(pl.Callback):
    def __init__(self):
        self.figures, self.rates = [], []

    def on_train_batch_start(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer, module):
        self.figures.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(model, epochs, *loaders, ckpt_path=None):
    record = Record()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[record], num_sanity_val_steps=0, **QUIET)
    trainer.fit(model, *loaders, ckpt_path=ckpt_path, weights_only=ckpt_path and False)
    return trainer, record


def test_figures_of_an_epoch_are_means_over_its_samples_alone():
    _, record = fit(Means(), 2, Numbers(FIRST, SECOND), Numbers(SECOND, FIRST))
    for figures, train, val in zip(record.figures, (4, 5), (5, 4), strict=True):
        assert figures["train/loss_epoch"] == pytest.approx(train)
        assert (figures["val/loss"], figures["val/mean"]) == pytest.approx((val, val))
        assert not any(name.startswith("test/") or name == "train/mean" for name in figures)


@pytest.mark.parametrize(("verb", "stage"), [("validate", "val"), ("test", "test")])
def test_each_evaluation_begins_anew_under_its_own_names(verb, stage):
    model, updated = Means(), set()

    class See(pl.Callback):  # after an evaluation Lightning resets them
        def on_validation_batch_end(self, trainer, module, *_):
            metrics = {"val": module.val_metrics["mean"], "test": module.test_metrics["mean"]}
            losses = {"val loss": module.val_loss, "test loss": module.test_loss}
            updated.update(name for name, metric in (metrics | losses).items() if metric.update_called)

        on_test_batch_end = on_validation_batch_end

    trainer = pl.Trainer(accelerator="cpu", callbacks=[See()], **QUIET)
    for numbers, mean in ((FIRST, 4), (SECOND, 5)):
        (figures,) = getattr(trainer, verb)(model, Numbers(numbers), verbose=False)
        assert figures == pytest.approx({f"{stage}/loss": mean, f"{stage}/mean": mean})
    assert updated == {stage, f"{stage} loss"}


def test_duplicates_run_through_the_network_and_count_nowhere():
    """Of 3 samples the second of 2 processes has one of its own, and gets the first one, of both, once more."""
    numbers = torch.tensor([1.0, 2.0, 3.0])
    sampler = DistributedSampler(numbers, num_replicas=2, rank=1, shuffle=False)
    outputs = []

    class See(pl.Callback):
        def on_test_batch_end(self, trainer, module, output, *_):
            outputs.append(output)

    model = Means()
    trainer = pl.Trainer(accelerator="cpu", callbacks=[See()], use_distributed_sampler=False, **QUIET)
    (figures,) = trainer.test(model, DataLoader(numbers, 1, sampler=sampler), verbose=False)
    assert figures == {"test/loss": 2, "test/mean": 2}
    assert model.seen == [[2.0], [1.0]]
    assert [output is None for output in outputs] == [False, True]


def test_the_global_batch_is_that_of_all_processes_and_accumulated_batches():
    model = Means()
    model.trainer = SimpleNamespace(train_dataloader=DataLoader(range(8), 4), world_size=3, accumulate_grad_batches=2)
    assert model.global_batch_size == 24


def test_a_resumed_run_keeps_its_rate_and_ends_when_the_command_says(tmp_path):
    """A run of 4 steps whose rate fell from 0.5 to 0 goes on to 8, though another highest rate is given."""
    trainer, _ = fit(Means(lr=0.5), 2, DataLoader(torch.ones(4), 2), DataLoader(torch.ones(1)))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    data = DataLoader(torch.ones(4), 2), DataLoader(torch.ones(1))
    _, record = fit(Means(lr=0.1), 4, *data, ckpt_path=tmp_path / "half.ckpt")
    assert record.rates[1:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 8)) for step in (5, 6, 7)])


def test_which_value_of_a_metric_is_the_best():
    metrics = MetricCollection({"accuracy": BinaryAccuracy(), "mse": MeanSquaredError(), "mean": MeanMetric()})
    model = Means()
    model.val_metrics = metrics.clone(prefix="val/")
    found = {name: model.mode_of(f"val/{name}") for name in ("mean", "accuracy", "mse", "loss")}
    assert found == {"mean": "max", "accuracy": "max", "mse": "min", "loss": "min"}
    model.mode = "min"
    assert model.mode_of("val/mean") == "min", "what is monitored has the direction that the task says"
    assert model.mode_of("val/accuracy") == "max"


def test_the_report_is_logged_where_training_starts(caplog):
    fit(Means(), 1, Numbers(FIRST), Numbers(FIRST))
    assert "hello" in caplog.messages


class Shifted(Means):
    """A parameter of the task itself, outside of its network, and a network that exempts its weight from decay."""

    def __init__(self, decay_all=False):
        super().__init__()
        self.network.no_weight_decay = lambda: {"weight"}
        self.shift = nn.Parameter(torch.zeros(1, 1))
        self.optimizer = Optimizer("sgd", 0.5, 0.25, decay_all=decay_all)

    def training_loss(self, batch):
        return super().training_loss(batch) + self.shift.sum()


@pytest.mark.parametrize("decay_all", [False, True])
def test_parameters_outside_of_the_network_learn(decay_all):
    model = Shifted(decay_all)
    fit(model, 1, Numbers(FIRST, FIRST), Numbers(FIRST, FIRST))
    assert model.shift.item() < 0


def test_what_the_network_exempts_from_weight_decay():
    model = Shifted()
    decay = {id(p): g["weight_decay"] for g in model.optimizer.build(model, 0.1).param_groups for p in g["params"]}
    assert decay == {id(model.network.weight): 0.0, id(model.shift): 0.25}


class Lists(Means):
    """Batches are lists, of which the default takes no part."""

    def evaluate(self, batch, metrics):
        return None


def test_batches_that_the_default_cannot_cut_are_refused():
    model = Lists()
    sampler = DistributedSampler(range(3), num_replicas=2, rank=1, shuffle=False)
    loader = DataLoader([1, 2, 3], 2, sampler=sampler)
    model.trainer = SimpleNamespace(testing=True, test_dataloaders=loader)
    with pytest.raises(
        ValueError, match=r"Lists must define first_samples for .* got 2 samples instead of the first 1"
    ):
        model._without_duplicates(["b", "a again"], 0)
