"""Statistics are the plain averages over training batches, of the weights as they are when validation begins."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from nonlocal_nets.callbacks import PreciseBN
from nonlocal_nets.callbacks.precise_bn import update


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))


def test_averages_of_means_and_variances_without_dropout():
    net, batches = network(), [torch.randn(5, 2, 7) * k for k in (1, 2, 5)]
    net[1].weight.data.uniform_(0.5, 2)
    update(net, batches)
    first = [net[0](x) for x in batches]
    normed = [
        (y - y.mean((0, 2), keepdim=True)) / (y.var((0, 2), unbiased=False, keepdim=True) + 1e-5).sqrt() for y in first
    ]
    second = [net[3](net[1].weight[:, None] * y + net[1].bias[:, None]) for y in normed]
    for norm, seen in ((net[1], first), (net[4], second)):
        mean = torch.stack([y.mean((0, 2)) for y in seen]).mean(0)
        variance = torch.stack([y.var((0, 2)) for y in seen]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, variance.detach(), rtol=1e-5, atol=1e-6)
        assert norm.momentum == 0.1


def test_modes_stay_and_what_is_frozen_stays():
    net = network().train()
    net[1].eval().requires_grad_(False)
    before = net[1].running_mean.clone()
    update(net, [torch.randn(4, 2, 3)])
    assert torch.equal(net[1].running_mean, before)
    assert [m.training for m in net] == [True, False, True, True, True]
    assert net[4].running_mean.any()


def test_a_network_of_several_inputs():
    """Such as padded sequences and their mask: the padding does not count."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x, mask):
            return self.norm(x.movedim(1, -1)[mask])

    net, x = Masked(), torch.randn(3, 2, 7)
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    update(net, [(x, mask)])
    valid = torch.cat([x[0], x[1, :, :4], x[2, :, :5]], 1)
    torch.testing.assert_close(net.norm.running_mean, valid.mean(1))
    torch.testing.assert_close(net.norm.running_var, valid.var(1))


def test_all_frozen_looks_at_no_batch():
    net = network().requires_grad_(False)

    def batches():
        raise AssertionError("a batch was asked for")
        yield

    update(net, batches())


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network, self.seen = network(), []

    def inputs(self, batch, stage):
        assert stage == "train"
        return batch["x"] - 1

    def training_step(self, batch, batch_idx):
        return self.network(self.inputs(batch, "train")).square().mean()

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.network[1].running_mean.clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def loader(samples, batch_size):
    return DataLoader([{"x": x} for x in torch.randn(samples, 2, 3) + 5], batch_size=batch_size)


def test_in_a_fit_before_each_validation(tmp_path):
    torch.manual_seed(1)
    train, module = loader(12, 4), Module()
    trainer = pl.Trainer(
        max_epochs=2, default_root_dir=tmp_path, callbacks=[PreciseBN(2)], num_sanity_val_steps=1, **QUIET
    )
    trainer.fit(module, train, loader(2, 2))
    assert not module.seen[0].any(), "not in the sanity check"
    batches = [batch["x"] - 1 for batch in list(train)[:2]]
    expected = torch.stack([module.network[0](x).mean((0, 2)) for x in batches]).mean(0).detach()
    torch.testing.assert_close(module.seen[2], expected)
    before = module.network[1].running_mean.clone()
    trainer.validate(module, loader(2, 2), verbose=False)
    assert torch.equal(module.network[1].running_mean, before), "only in a fit"


def test_the_mean_of_all_processes():
    """As if each buffer were one higher in a second process."""
    net, alone, x = network(), network(), torch.randn(4, 2, 3)
    update(net, [x], reduce=lambda value: value + 0.5)
    update(alone, [x])
    for norm, other in ((net[1], alone[1]), (net[4], alone[4])):
        torch.testing.assert_close(norm.running_mean, other.running_mean + 0.5)
        torch.testing.assert_close(norm.running_var, other.running_var + 0.5)


def test_momenta_and_modes_come_back_where_a_batch_fails():
    net = network().train()
    net[1].momentum = 0.3
    with pytest.raises(RuntimeError):
        update(net, [torch.zeros(1, 9, 3)])
    assert (net[1].momentum, net[4].momentum) == (0.3, 0.1)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("missing", ["network", "inputs"])
def test_a_module_that_is_no_task(missing):
    """Refused before training, in a line."""
    given = {"network": nn.Identity(), "inputs": lambda self, batch, stage: batch}
    del given[missing]
    module = type("Mine", (pl.LightningModule,), given)()
    with pytest.raises(ValueError, match=rf"PreciseBN needs .* network, inputs, .*; Mine has no {missing}$"):
        PreciseBN().setup(None, module, "fit")


def test_refused():
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        PreciseBN(0)
