"""The options, against torch's own optimisers, the numbers of the paper and the formulas of the schedules."""

import math

import pytest
import torch
from torch import nn

import nonlocal_nets as nln
from nonlocal_nets.tasks import Blocks, Loss, Optimizer, Schedule


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def rates(schedule, total_steps, peak=1.0, steps=12):
    """The learning rate of each step, as the training loop moves the schedule on."""
    optimizer = torch.optim.SGD(network().parameters(), peak)
    timm_schedule = schedule.build(optimizer, peak, total_steps)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        timm_schedule.step_update(step + 1)
    return found


def test_decay_of_norms_and_biases_is_a_switch():
    model = network()
    everything = Optimizer(weight_decay=0.5).build(model, 0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in everything.param_groups] == [(5, 0.5)]
    groups = Optimizer(weight_decay=0.5, decay_all=False).build(model, 0.1).param_groups
    decaying = [group for group in groups if group["weight_decay"] == 0.5]
    still = [group for group in groups if group["weight_decay"] == 0.0]
    assert [id(p) for group in decaying for p in group["params"]] == [id(model[0].weight), id(model[2].weight)]
    assert sum(len(group["params"]) for group in still) == 3
    assert len(decaying) + len(still) == len(groups)


@pytest.mark.parametrize("decay_all", [True, False])
def test_frozen_parameters_are_left_out(decay_all):
    model = network()
    model[0].requires_grad_(False)
    groups = Optimizer(decay_all=decay_all).build(model, 0.1).param_groups
    assert sum(len(group["params"]) for group in groups) == 3


def test_optimisers():
    adamw = Optimizer(weight_decay=0.01).build(network(), 0.1)
    sgd = Optimizer(name="sgd", momentum=0.8).build(network(), 0.1)
    plain = Optimizer(name="sgd", momentum=0.0).build(network(), 0.1)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (0.1, 0.01)
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    assert type(sgd) is type(plain) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    assert (plain.defaults["momentum"], plain.defaults["nesterov"]) == (0.0, False)
    assert Optimizer(name="sgd").build(network(), 0.1).defaults["momentum"] == 0.9
    assert type(Optimizer(name="lamb").build(network(), 0.1)).__name__ == "Lamb"


def test_cosine_with_warmup():
    found = rates(Schedule(warmup_steps=3), 11)
    assert found[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert found[3:] == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)])
    assert rates(Schedule(), math.inf, steps=3) == [1, 1, 1]
    assert rates(Schedule(warmup_steps=2), 3, steps=3) == pytest.approx([1 / 3, 2 / 3, 1])


def test_step_schedule_decays_at_its_milestones():
    found = rates(Schedule(name="step", milestones=[5, 7], warmup_steps=1), 10, peak=0.01, steps=9)
    assert found == pytest.approx([0.005, *[0.01] * 4, *[0.001] * 2, *[0.0001] * 2])


def test_step_schedule_of_the_paper():
    optimizer = torch.optim.SGD(network().parameters(), 0.01)
    schedule = Schedule(name="step", milestones=[150_000, 300_000]).build(optimizer, 0.01, 400_000)
    found = []
    for step in (0, 149_999, 150_000, 299_999, 300_000, 399_999):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


def test_the_learning_rate_scales_with_the_global_batch_size():
    scaled = Optimizer(lr=0.1, lr_base_size=256)
    assert scaled.peak(256) == 0.1
    assert scaled.peak(2048) == pytest.approx(0.8)
    assert Optimizer(lr=0.1).peak(2048) == 0.1
    assert rates(Schedule(warmup_steps=4), 10, scaled.peak(2048), 5) == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8])
    with pytest.raises(ValueError, match="lr_base_size=256 needs the size of a batch"):
        scaled.peak(None)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Optimizer, {"lr": -1.0}, "optimizer.lr must be at least 0, got -1.0"),
        (Optimizer, {"lr": math.nan}, "optimizer.lr must be at least 0, got nan"),
        (Optimizer, {"weight_decay": -0.1}, "optimizer.weight_decay must be at least 0, got -0.1"),
        (Optimizer, {"name": "sgd", "momentum": 1.0}, r"optimizer.momentum must be in \[0, 1\), got 1.0"),
        (Optimizer, {"momentum": 0.9}, "optimizer.momentum: adamw has none, got 0.9"),
        (Optimizer, {"name": "lamb", "momentum": 0.9}, "optimizer.momentum: lamb has none, got 0.9"),
        (Optimizer, {"name": "adamww"}, "optimizer.name must be one of timm's, got 'adamww'; nearest: .*adamw"),
        (Optimizer, {"name": "adahessian"}, "adahessian needs second derivatives"),
        (Optimizer, {"name": "fusedsgd"}, "optimizer.name: fusedsgd cannot be used here: "),
        (Optimizer, {"lr_base_size": 0}, "optimizer.lr_base_size must be at least 1, or null, got 0"),
        (Schedule, {"warmup_steps": -1}, "schedule.warmup_steps must be at least 0, got -1"),
        (Schedule, {"name": "linear"}, "schedule.name must be one of cosine, step, got 'linear'"),
        (Schedule, {"milestones": [3]}, r"schedule.milestones go with name='step', got 'cosine' and \[3\]"),
        (Schedule, {"name": "step"}, "schedule.milestones go with name='step', got 'step' and None"),
        (
            Schedule,
            {"name": "step", "milestones": [5, 3]},
            "schedule.milestones must rise from 1 or more",
        ),
        (Loss, {"label_smoothing": 1.0}, r"loss.label_smoothing must be in \[0, 1\), got 1.0"),
        (Loss, {"class_weights": [1.0, 0.0]}, r"loss.class_weights must be above 0, got \[1.0, 0.0\]"),
    ],
)
def test_values_out_of_range(kind, arguments, message):
    with pytest.raises(ValueError, match=message) as refusal:
        kind(**arguments)
    assert len(str(refusal.value)) < 300


def test_class_weights_and_label_smoothing_are_in_the_loss():
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 0, 2])
    log, weights = logits.log_softmax(1), torch.tensor([1.0, 2.0, 4.0])
    plain = -log[torch.arange(5), labels]
    assert Loss().build(3)(logits, labels).item() == pytest.approx(plain.mean().item())
    weighted = Loss(class_weights=[1.0, 2.0, 4.0]).build(3)
    assert weighted(logits, labels).item() == pytest.approx(
        ((plain * weights[labels]).sum() / weights[labels].sum()).item()
    )
    assert not weighted.state_dict()
    smoothed = Loss(label_smoothing=0.2).build(3)(logits, labels)
    assert smoothed.item() == pytest.approx((0.8 * plain - 0.2 * log.mean(1)).mean().item())
    with pytest.raises(ValueError, match="must be 4 numbers, one for each class, got 3 numbers"):
        Loss(class_weights=[1, 2, 3]).build(4)


def test_blocks_are_inserted_with_every_option():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1))
    options = {"pairwise": "embedded_gaussian", "inner_channels": 6, "scale": True, "pool": [1, 2]}
    options |= {"pool_position": "embedding", "window": [4, None], "norm": "layer"}
    report = Blocks(at="0", **options).insert_into(model, torch.zeros(1, 3, 8, 8))
    (block,) = nln.blocks(model).values()
    assert report.startswith("1 non-local block: ")
    assert (block.inner_channels, block.pool, block.pool_position, block.window) == (6, (1, 2), "embedding", (4, None))
    assert block.pairwise.logit_scale == 6**-0.5
    assert isinstance(block.norm, nn.LayerNorm)
    assert Blocks(at="none").insert_into(network(), torch.zeros(1, 3)) == "no non-local blocks"


def test_windows_by_stage():
    model = nn.Sequential()
    for stage in ("layer1", "layer2"):
        model.add_module(stage, nn.Sequential(nn.Sequential(nn.Conv1d(4, 4, 1)), nn.Sequential(nn.Conv1d(4, 4, 1))))
    Blocks(at={"layer1": 1, "layer2": 1}, window={"layer2": [2]}).insert_into(model, torch.zeros(1, 4, 8))
    windows = {name.partition(".")[0]: block.window for name, block in nln.blocks(model).items()}
    assert windows == {"layer1": None, "layer2": (2,)}
