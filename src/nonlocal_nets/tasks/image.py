"""Image classification with non-local blocks in any timm backbone."""

import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from nonlocal_nets.nn import insert
from nonlocal_nets.nn.backbones.image import image_backbone
from nonlocal_nets.tasks.base import Task


class ImageClassification(Task):
    """Cross-entropy on images (B, C, H, W) with labels (B,).

    Args:
        num_classes: number of classes; on the command line it comes from the data.
        backbone: "local_convnet", or any timm model with (B, C, H, W) features, such as "resnet50".
        input_size: channels, height and width of an image; tells the blocks' places their sizes.
        blocks: where the blocks go: "none", a preset ("paper-1", "paper-5", "paper-10"), a module's name or several,
            or how many go into which stage, as in {layer2: 2, layer3: 3}.
        pairwise: f: "gaussian", "embedded_gaussian", "dot_product" or "concatenation".
        inner_channels: width of theta, phi and g; default half of the place's channels.
        scale: logits times inner_channels ** -0.5 (embedded_gaussian only).
        pool: subsampling of the keys, an int or one per axis.
        pool_position: "input" or "embedding": before or after phi and g.
        window: attend within windows of this many positions, an int or one per axis (null: the whole axis).
        norm: after W_z: "batch", "layer" or "none".
        lr: the highest learning rate.
        weight_decay: AdamW's.
        warmup_steps: optimiser steps over which lr rises from 0; then a cosine to 0.
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
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 100,
    ) -> None:
        network = image_backbone(backbone, num_classes, input_size[0])
        report = "no non-local blocks"
        if blocks != "none":
            block = {"pairwise": pairwise, "inner_channels": inner_channels, "scale": scale, "norm": norm}
            keys = {"pool": pool, "pool_position": pool_position, "window": window}
            report = str(insert(network, blocks, example=torch.zeros(1, *input_size), **block, **keys))
        metrics = MetricCollection({"accuracy": MulticlassAccuracy(num_classes, average="micro")})
        super().__init__(network, nn.CrossEntropyLoss(), metrics, report, lr, weight_decay, warmup_steps)
        self.save_hyperparameters()
