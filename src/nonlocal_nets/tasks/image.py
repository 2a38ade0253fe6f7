"""Image classification with non-local blocks in any timm backbone."""

from typing import Any

import torch
from torch import Tensor

from nonlocal_nets.nn.backbones.image import classifier_name, image_backbone
from nonlocal_nets.tasks.classification import Classification, accuracies
from nonlocal_nets.tasks.options import Blocks, Loss, Optimizer, Schedule
from nonlocal_nets.weights import load_weights


class ImageClassification(Classification):
    """Cross-entropy on images (B, C, H, W) with labels (B,).

    Args:
        num_classes: number of classes; on the command line it comes from the data.
        backbone: "local_convnet", or any timm model with (B, C, H, W) features, such as "resnet50".
        input_size: channels, height and width of an image, pixels, for the sizes that the report names. On the command
            line it comes from the data.
        blocks: the non-local blocks.
        loss: the loss.
        optimizer: the optimiser.
        schedule: its learning rate over the run.
        weights: what to start from: a checkpoint of ours, a file with a state dict, or "efficientnet_lite0", the
            ImageNet weights in the package that ships them; the classifier may differ, and blocks may be absent there.
            null: random weights.
        mixup: alpha of timm's mixup; 0: none.
        channels_last: memory layout of the convolutions; on a CPU often twice as fast. Figures differ by rounding.
    """

    may_differ = Classification.may_differ | {"mixup", "channels_last"}

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        input_size: tuple[int, int, int] = (3, 224, 224),
        blocks: Blocks = Blocks(),
        loss: Loss = Loss(),
        optimizer: Optimizer = Optimizer(),
        schedule: Schedule = Schedule(warmup_steps=100),
        weights: str | None = None,
        mixup: float = 0.0,
        channels_last: bool = False,
    ) -> None:
        if mixup < 0:
            raise ValueError(f"mixup must be at least 0, got {mixup}")
        network = image_backbone(backbone, num_classes, input_size[0])
        report = blocks.insert_into(network, torch.zeros(1, *input_size))
        if weights is not None:
            report += "\n" + load_weights(network, weights, classifier_name(network))
        if channels_last:  # of the network only: its convolutions bring their inputs into the layout of their weights
            network.to(memory_format=torch.channels_last)
        metrics = accuracies(num_classes)
        super().__init__(network, loss.build(num_classes), metrics, optimizer, schedule, report)
        self.save_hyperparameters()
        self.mixup: Any = None
        if mixup:
            from timm.data.mixup import Mixup  # takes seconds to import

            self.mixup = Mixup(mixup_alpha=mixup, label_smoothing=0, num_classes=num_classes)

    def augment(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """With mixup, mixed images and soft labels (B, num_classes)."""
        if self.mixup is None or len(inputs) % 2:  # timm mixes pairs
            return inputs, labels
        mixed: tuple[Tensor, Tensor] = self.mixup(inputs.clone(), labels)
        return mixed
