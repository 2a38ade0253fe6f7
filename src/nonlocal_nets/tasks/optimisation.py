"""The optimiser and its schedule, from plain numbers that a yaml can hold and a sweep can vary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "step")


@dataclass(frozen=True)
class Optimisation:
    """How a task learns.

    Args:
        lr: the highest learning rate.
        weight_decay: of the weights; of norms and biases too if `decay_all`.
        warmup_steps: optimiser steps over which lr rises linearly from 0.
        optimizer: "adamw" or "sgd" (Nesterov).
        momentum: sgd's.
        decay_all: whether norms and biases, the parameters of one axis, decay as well.
        schedule: "cosine": to 0 at the end of the run; "step": lr times 0.1 at each of `milestones`.
        milestones: optimiser steps of the step schedule, such as [150000, 300000] of the paper.
        lr_batch: samples a step that lr is meant for: with k times as many, all processes together, it is k lr (the
            linear rule of Goyal et al. 2017, arXiv:1706.02677, who warm up over 5 epochs). None: lr as it is.

    Raises:
        ValueError: a value outside of this.
    """

    lr: float
    weight_decay: float = 1e-4
    warmup_steps: int = 0
    optimizer: str = "adamw"
    momentum: float = 0.9
    decay_all: bool = True
    schedule: str = "cosine"
    milestones: Sequence[int] = ()
    lr_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_steps", "momentum"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name, accepted in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}")
        if self.lr_batch is not None and self.lr_batch < 1:
            raise ValueError(f"lr_batch must be at least 1, or null, got {self.lr_batch}")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(f"milestones belong to schedule 'step', got {self.schedule!r} and {list(self.milestones)}")

    def peak(self, global_batch: int | None) -> float:
        """The highest learning rate with this many samples a step, all processes together; None: not known."""
        if self.lr_batch is None:
            return self.lr
        if global_batch is None:
            needs = "the size of a batch, which the training data do not say: give the DataLoader a batch_size, or"
            raise ValueError(f"lr_batch={self.lr_batch} needs {needs} a batch_sampler that has one; or lr_batch=null")
        return self.lr * global_batch / self.lr_batch

    def build(
        self, module: nn.Module, total_steps: float, global_batch: int | None = None
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimiser of a module's parameters and the schedule of a run of `total_steps`, stepped every step."""
        lr = self.peak(global_batch)
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.decay_all:
            groups = [{"params": parameters, "weight_decay": self.weight_decay}]
        else:
            groups = [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ]
        if self.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr)
        else:
            optimizer = torch.optim.SGD(groups, lr, self.momentum, nesterov=self.momentum > 0)
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, total_steps))

    def factor(self, step: int, total_steps: float) -> float:
        """The learning rate of a step as a share of the highest."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "step":
            return float(0.1 ** sum(step >= milestone for milestone in self.milestones))
        share = (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1)
        return 0.5 + 0.5 * math.cos(math.pi * min(share, 1))
