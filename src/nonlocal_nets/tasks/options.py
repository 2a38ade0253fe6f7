"""The options that tasks share. Each is described, typed and checked here, once.

On the command line an option is `--model.<group>.<field>=<value>`, such as `--model.blocks.pairwise=dot_product`; in a
yaml it stands under `model.init_args.<group>`. The defaults here are those of a task whose constructor has no others.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn import PRESETS, insert
from nonlocal_nets.nn.messages import nearest

SCHEDULES = ("cosine", "step")


@dataclass(frozen=True)
class Blocks:
    """Where the non-local blocks go, and what they are made of.

    Args:
        at: where they go: "none"; a preset, "paper-1", "paper-5" or "paper-10"; the name of a module after which a
            block goes, or several names; or the number of blocks in each stage, as in {layer2: 2, layer3: 3}. layer3
            is after that stage, {layer3: 1} before its last residual block.
        pairwise: f, "gaussian", "embedded_gaussian", "dot_product" or "concatenation", or the path of your own subclass
            of `Pairwise`, such as mypkg.Distance.
        inner_channels: width of theta, phi and g; null: half of the input's channels.
        scale: multiply the logits by inner_channels ** -0.5, as the released code does (embedded_gaussian only).
        pool: max pooling of the keys, an int or one per axis (Sec. 3.3); null: none.
        pool_position: "input" pools before phi and g, "embedding" after them.
        window: attend within windows of this many positions, an int or one per axis, null for a whole axis: of a clip,
            [1, null, null] is space only and [null, 1, 1] time only. Or by stage: {layer2: [4, null, null]} attends
            within groups of four frames in res3 only.
        norm: the normalisation after W_z, "batch", "group", "layer" or "none".
        norm_eps: added to the variance.
        norm_momentum: share of a batch in the running statistics of batch norm.
        channels_axis: the axis of the channels in the outputs after which blocks go; -1 for transformers.
        prefix_tokens: tokens before the positions, such as a class token, which the blocks leave out.
    """

    at: str | list[str] | dict[str, int] = "paper-1"
    pairwise: str = "embedded_gaussian"
    inner_channels: int | None = None
    scale: bool = False
    pool: int | list[int] | None = None
    pool_position: str = "input"
    window: int | list[int | None] | dict[str, list[int | None]] | None = None
    norm: str = "batch"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    channels_axis: int = 1
    prefix_tokens: int = 0

    def insert_into(self, network: nn.Module, example: Tensor) -> str:
        """Insert the blocks into `network`; returns what they add, in words and figures.

        Raises:
            ValueError: windows by stage where the blocks are not given by stage, or for a stage without blocks; and
                whatever `insert` raises.
        """
        if self.at == "none":
            return "no non-local blocks"
        block = {name: value for name, value in asdict(self).items() if name not in ("at", "window")}
        if not isinstance(self.window, Mapping):
            return str(insert(network, self.at, example=example, window=self.window, **block))
        stages = PRESETS.get(self.at, self.at) if isinstance(self.at, str) else self.at
        if not isinstance(stages, Mapping) or not self.window.keys() <= stages.keys():
            windows = dict(self.window)
            raise ValueError(f"windows by stage, {windows}, need blocks by stage that have these, got at={self.at!r}")
        reports = []
        for stage, count in stages.items():  # a stage without a window attends to all positions
            window = self.window.get(stage)
            reports.append(str(insert(network, {stage: count}, example=example, window=window, **block)))
        return "\n".join(reports)


@dataclass(frozen=True)
class Loss:
    """The loss of a classification.

    Args:
        label_smoothing: share of a label that is spread evenly over all classes, in [0, 1).
        class_weights: a weight for each class, above 0, for classes of unequal size; null: all 1.
    """

    label_smoothing: float = 0.0
    class_weights: list[float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.class_weights is not None and not all(0 < weight < math.inf for weight in self.class_weights):
            raise ValueError(f"loss.class_weights must be above 0, got {self.class_weights}")

    def build(self, num_classes: int) -> nn.CrossEntropyLoss:
        """Cross-entropy of logits (B, num_classes) with labels (B,) or with probabilities (B, num_classes)."""
        loss = nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)
        if self.class_weights is not None:
            if len(self.class_weights) != num_classes:
                given = f"{len(self.class_weights)} numbers"
                raise ValueError(f"loss.class_weights must be {num_classes} numbers, one for each class, got {given}")
            # not in the checkpoints: they belong to the config
            loss.register_buffer("weight", torch.tensor(self.class_weights), persistent=False)
        return loss


@dataclass(frozen=True)
class Optimizer:
    """The optimiser, any of timm's.

    Args:
        name: "adamw", "sgd" (with Nesterov momentum), or any other name in timm.optim.list_optimizers().
        lr: the highest learning rate.
        weight_decay: of the weights; of norms and biases too if decay_all.
        momentum: of optimisers that have one, in [0, 1); null: 0.9.
        decay_all: whether norms, biases and what else has one axis decay as well.
        lr_base_size: the global batch size that lr was tuned for; lr scales linearly with the actual one, that of all
            processes together and with accumulation (Goyal et al. 2017, arXiv:1706.02677, who also warm up over 5
            epochs). null: lr as it is.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float | None = None
    decay_all: bool = True
    lr_base_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name} must be at least 0, got {getattr(self, name)}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.momentum must be in [0, 1), got {self.momentum}")
        if self.lr_base_size is not None and self.lr_base_size < 1:
            raise ValueError(f"optimizer.lr_base_size must be at least 1, or null, got {self.lr_base_size}")
        if self.name == "adamw" and self.momentum is not None:
            raise ValueError(f"optimizer.momentum: adamw has none, got {self.momentum}")
        if self.name not in ("adamw", "sgd"):  # known to be there; importing timm takes seconds
            self._check_name()

    def _check_name(self) -> None:
        from timm.optim import get_optimizer_info, list_optimizers

        known = list_optimizers()
        if self.name not in known:
            raise ValueError(f"optimizer.name must be one of timm's, got {self.name!r}{nearest(self.name, known)}")
        info = get_optimizer_info(self.name)
        if info.second_order:
            raise ValueError(f"optimizer.name: {self.name} needs second derivatives, which the training loop has not")
        if self.momentum is not None and not info.has_momentum:
            raise ValueError(f"optimizer.momentum: {self.name} has none, got {self.momentum}")
        try:
            self.build(nn.Linear(1, 1), self.lr)
        except Exception as error:  # whatever an optimiser raises that needs a package, a device or other arguments
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"optimizer.name: {self.name} cannot be used here: {reason}") from error

    def peak(self, global_batch_size: int | None) -> float:
        """The highest learning rate with this many samples in a step of all processes; None: the number is unknown."""
        if self.lr_base_size is None:
            return self.lr
        if global_batch_size is None:
            raise ValueError(
                f"optimizer.lr_base_size={self.lr_base_size} needs the size of a batch, which the training data do not "
                "tell: give the DataLoader a batch_size or a batch_sampler that has one, or set lr_base_size to null"
            )
        return self.lr * global_batch_size / self.lr_base_size

    def build(self, module: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The optimiser of a module's parameters; timm's rule says which of them do not decay."""
        from timm.optim import create_optimizer_v2

        momentum = 0.9 if self.momentum is None else self.momentum
        options: dict[str, Any] = {"nesterov": False} if self.name == "sgd" and not momentum else {}
        learning = [p for p in module.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            learning if self.decay_all else module,  # which it splits into groups, without what is frozen
            self.name,
            lr=lr,
            weight_decay=self.weight_decay,
            momentum=momentum,
            filter_bias_and_bn=not self.decay_all,
            **options,
        )
        return optimizer


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the optimiser steps of a run, as a share of the highest.

    Args:
        name: "cosine", to 0 at the end of the run, or "step", times 0.1 at each of milestones.
        warmup_steps: optimiser steps over which the learning rate rises linearly.
        milestones: optimiser steps at which "step" decays, such as [150000, 300000] in the paper.
    """

    name: str = "cosine"
    warmup_steps: int = 0
    milestones: list[int] | None = None

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule.name must be one of {', '.join(SCHEDULES)}, got {self.name!r}")
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps must be at least 0, got {self.warmup_steps}")
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(f"schedule.milestones go with name='step', got {self.name!r} and {self.milestones}")
        if self.milestones and (min(self.milestones) < 1 or sorted(set(self.milestones)) != list(self.milestones)):
            raise ValueError(f"schedule.milestones must rise from 1 or more, got {self.milestones}")

    def build(self, optimizer: torch.optim.Optimizer, lr: float, total_steps: float) -> Any:
        """timm's schedule of a run of `total_steps`, to be moved on by `step_update(number of steps done)`."""
        from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler

        warmup = {"warmup_t": self.warmup_steps, "warmup_lr_init": lr / (self.warmup_steps + 1)}
        if self.milestones:  # timm's milestones take effect a step early
            steps = [milestone + 1 for milestone in self.milestones]
            options = {**warmup, "warmup_prefix": False, "t_in_epochs": False}
            return MultiStepLRScheduler(optimizer, steps, decay_rate=0.1, **options)
        # timm divides by it, and warns of 1, where 2 has the same first step; endless runs stay at the peak
        length = int(min(max(total_steps - self.warmup_steps, 2), sys.maxsize))
        return CosineLRScheduler(optimizer, length, **warmup, warmup_prefix=True, t_in_epochs=False)
