"""Image classification with non-local blocks in any timm backbone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn.backbones.image import classifier_name, image_backbone
from nonlocal_nets.tasks.base import Task, accuracies
from nonlocal_nets.tasks.blocks import insert_blocks
from nonlocal_nets.tasks.optimisation import Optimisation
from nonlocal_nets.weights import load_weights


class ImageClassification(Task):
    """Cross-entropy on images (B, C, H, W) with labels (B,).

    Args:
        num_classes: number of classes; on the command line it comes from the data.
        backbone: "local_convnet", or any timm model with (B, C, H, W) features, such as "resnet50".
        input_size: channels, height and width of an image, pixels; tells the blocks' places their sizes. On the command
            line it comes from the data.
        blocks: where the blocks go: "none", a preset ("paper-1", "paper-5", "paper-10"), a module's name or several,
            or how many go into which stage, as in {layer2: 2, layer3: 3}.
        pairwise: f: "gaussian", "embedded_gaussian", "dot_product" or "concatenation".
        inner_channels: width of theta, phi and g; default half of the place's channels.
        scale: logits times inner_channels ** -0.5 (embedded_gaussian only).
        pool: subsampling of the keys, an int or one per axis.
        pool_position: "input" or "embedding": before or after phi and g.
        window: attend within windows of this many positions, an int or one per axis (null: the whole axis).
        norm: after W_z: "batch", "layer" or "none".
        weights: to start from: a checkpoint of ours, a file with a state dict, or "efficientnet_lite0", ImageNet's of
            the package that ships them; the classifier may differ, and blocks may be absent there. null: random.
        channels_last: memory layout of the convolutions; on a CPU often twice as fast. Figures differ by rounding.
        lr: the highest learning rate.
        weight_decay: decay of the weights a step, as a share of lr; of norms and biases too if decay_all.
        warmup_steps: optimiser steps over which lr rises from 0.
        optimizer: "adamw" or "sgd" (Nesterov).
        momentum: of sgd, in [0, 1).
        decay_all: whether norms and biases decay as well.
        schedule: "cosine", to 0 at the end of the run, or "step", times 0.1 at each of milestones.
        milestones: optimiser steps of the step schedule.
        lr_batch: samples a step that lr is meant for; with k times as many, all processes together, it is k lr, and
            warmup_steps should not be 0. null: lr as it is.
        class_weights: of the loss, one a class, for classes of unequal size; null: all 1.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
        mixup: alpha of mixup (timm's), 0 for none.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        input_size: tuple[int, int, int] = (3, 224, 224),
        blocks: str | list[str] | dict[str, int] = "paper-1",
        pairwise: str = "embedded_gaussian",
        inner_channels: int | None = None,
        scale: bool = False,
        pool: int | list[int] | None = None,
        pool_position: str = "input",
        window: int | list[int | None] | None = None,
        norm: str = "batch",
        weights: str | None = None,
        channels_last: bool = False,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 100,
        optimizer: str = "adamw",
        momentum: float = 0.9,
        decay_all: bool = True,
        schedule: str = "cosine",
        milestones: Sequence[int] = (),
        lr_batch: int | None = None,
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
    ) -> None:
        if not 0 <= label_smoothing < 1 or mixup < 0:
            raise ValueError(
                f"label_smoothing must be in [0, 1) and mixup not negative, got {label_smoothing}, {mixup}"
            )
        if class_weights is not None and (len(class_weights) != num_classes or min(class_weights) <= 0):
            raise ValueError(f"class_weights must be {num_classes} numbers above 0, one a class, got {class_weights}")
        rate = (lr, weight_decay, warmup_steps)
        optimisation = Optimisation(*rate, optimizer, momentum, decay_all, schedule, tuple(milestones), lr_batch)
        network = image_backbone(backbone, num_classes, input_size[0])
        block = {"pairwise": pairwise, "inner_channels": inner_channels, "scale": scale, "norm": norm}
        keys = {"pool": pool, "pool_position": pool_position}
        report = insert_blocks(network, blocks, torch.zeros(1, *input_size), window, **block, **keys)
        if weights is not None:
            report += "\n" + load_weights(network, weights, classifier_name(network))
        if channels_last:  # of the network only: its convolutions bring their inputs into the layout of their weights
            network.to(memory_format=torch.channels_last)
        loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        if class_weights is not None:  # not in the checkpoints: they are of the config
            loss.register_buffer("weight", torch.tensor(class_weights), persistent=False)
        super().__init__(network, loss, accuracies(num_classes), optimisation, report)
        self.save_hyperparameters()
        self.mixup: Any = None
        if mixup:
            from timm.data.mixup import Mixup  # takes seconds to import

            self.mixup = Mixup(mixup_alpha=mixup, label_smoothing=0, num_classes=num_classes)

    def augment(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup, if asked for: mixed images and soft targets (B, num_classes)."""
        if self.mixup is None or len(x) % 2:  # timm mixes pairs
            return x, target
        mixed: tuple[Tensor, Tensor] = self.mixup(x.clone(), target)
        return mixed

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> Tensor:
        """Probabilities (B, num_classes) of images (B, C, H, W)."""
        probabilities: Tensor = self(batch[0]).softmax(1)
        return probabilities
