"""The optimiser and its schedule, against torch's own and the numbers of the paper."""

import math

import pytest
import torch
from torch import nn

from nonlocal_nets.tasks.optimisation import Optimisation


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def test_decay_of_norms_and_biases_is_a_switch():
    model = network()
    everything, _ = Optimisation(0.1, weight_decay=0.5).build(model, 10)
    assert [len(group["params"]) for group in everything.param_groups] == [5]
    weights, rest = Optimisation(0.1, weight_decay=0.5, decay_all=False).build(model, 10)[0].param_groups
    assert [id(p) for p in weights["params"]] == [id(model[0].weight), id(model[2].weight)]
    assert (weights["weight_decay"], rest["weight_decay"], len(rest["params"])) == (0.5, 0.0, 3)


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    assert [len(g["params"]) for g in Optimisation(0.1).build(model, 10)[0].param_groups] == [3]


def test_optimisers():
    adamw, _ = Optimisation(0.1).build(network(), 10)
    sgd, _ = Optimisation(0.1, optimizer="sgd", momentum=0.8).build(network(), 10)
    assert type(adamw) is torch.optim.AdamW
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)


def test_cosine_with_warmup():
    plan = Optimisation(1.0, warmup_steps=3)
    factors = [plan.factor(step, 11) for step in range(12)]
    assert factors[:3] == [0.25, 0.5, 0.75]
    assert factors[3:] == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)])


def test_step_schedule_of_the_paper():
    plan = Optimisation(0.01, schedule="step", milestones=[150_000, 300_000])
    rates = [0.01 * plan.factor(step, 400_000) for step in (0, 149_999, 150_000, 299_999, 300_000, 399_999)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"lr": math.nan}, "lr must not be negative, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, got 'adam'"),
        ({"schedule": "linear"}, "schedule must be one of cosine, step, got 'linear'"),
        ({"milestones": [3]}, "milestones belong to schedule 'step'"),
        ({"schedule": "step"}, "milestones belong to schedule 'step'"),
    ],
)
def test_values_out_of_range(words, message):
    with pytest.raises(ValueError, match=message):
        Optimisation(**{"lr": 0.1} | words)


def test_the_learning_rate_follows_the_global_batch():
    plan = Optimisation(0.1, warmup_steps=4, lr_batch=256)
    assert plan.peak(256) == 0.1
    assert plan.peak(2048) == pytest.approx(0.8)
    assert Optimisation(0.1).peak(2048) == 0.1
    for optimizer in ("adamw", "sgd"):
        built, schedule = Optimisation(0.1, warmup_steps=4, lr_batch=256, optimizer=optimizer).build(
            network(), 10, 2048
        )
        rates = []
        for _ in range(5):
            rates.append(built.param_groups[0]["lr"])
            built.step()
            schedule.step()
        assert rates == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8])


def test_the_batch_of_a_learning_rate_is_checked():
    with pytest.raises(ValueError, match="lr_batch must be at least 1, or null, got 0"):
        Optimisation(0.1, lr_batch=0)
