"""Video classification with C2D, I3D or any inflated timm network, non-local or not, as in the paper."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from nonlocal_nets.nn import blocks as blocks_of
from nonlocal_nets.nn.backbones.image import classifier_name
from nonlocal_nets.nn.backbones.video import VideoResNet, video_backbone
from nonlocal_nets.tasks.base import Task, accuracies
from nonlocal_nets.tasks.blocks import insert_blocks
from nonlocal_nets.tasks.optimisation import Optimisation
from nonlocal_nets.weights import load_weights


class MeanAveragePrecision(MultilabelAveragePrecision):
    """mAP of logits (B, num_labels): the mean over the classes that occur in what is evaluated; NaN where none does.

    A class without a positive has no precision. Charades' own script divides by zero there, PySlowFast leaves such a
    class out as well, torchmetrics counts it as 0 and warns.
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.float().sigmoid(), target)  # else batches whose logits are all in [0, 1] stay as they are

    def compute(self) -> Tensor:  # type: ignore[override]
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        occur = target.any(0).nonzero().flatten().tolist()
        each = [binary_average_precision(preds[:, k], target[:, k]) for k in occur]
        return torch.stack(each).mean() if each else preds.new_tensor(math.nan)


class VideoClassification(Task):
    """Clips (B, C, T, H, W), or several views of each video (B, V, C, T, H, W) whose probabilities are averaged.

    Labels (B,) with cross-entropy, or with `multi_label` (B, num_classes) of 0 and 1, a sigmoid each with binary
    cross-entropy, and mAP: the mean of average precision over the classes that occur.

    Args:
        num_classes: number of classes; on the command line it comes from the data.
        backbone: "c2d_resnet50", "i3d_resnet50" (3 x 1 x 1) or "i3d_3x3x3_resnet50", each also of 101;
            "local_video_net"; or a timm network such as "resnet18", whose kernels then span one frame.
        stem: of the ResNets: "32x2" halves the frames three times, for clips of 32 or 128 frames, "8x8" once.
        pool_padding: of the ResNets: padded pools as in Table 1; false: unpadded, as in the released code.
        input_size: channels, frames, height and width of a clip. On the command line it comes from the data.
        blocks: where the blocks go: "none", a preset ("paper-1", "paper-5", "paper-10"), a module's name or several,
            or how many blocks go into which stage, as in {layer2: 2, layer3: 3}; layer1 to layer4 are res2 to res5.
        pairwise: f: "gaussian", "embedded_gaussian", "dot_product" or "concatenation".
        inner_channels: width of theta, phi and g; default half of the place's channels.
        scale: logits times inner_channels ** -0.5 (embedded_gaussian only), as in the released code.
        pool: subsampling of the keys, an int or one per axis (Sec. 3.3).
        pool_position: "input" or "embedding": before or after phi and g.
        window: attend within windows, an int or one per axis: [1, null, null] is space only, [null, 1, 1] time only;
            or by stage, {layer2: [4, null, null]}: groups of four frames in res3 only.
        norm: after W_z: "batch", "layer" or "none".
        weights: to start from: a checkpoint of ours or a file with a state dict, of this network, of one without
            blocks, with fewer frames or another classifier, or of a 2-D one, which is inflated. null: random.
        multi_label: several labels a video, as in Charades.
        dropout: before the classifier, of the ResNets (Sec. 4).
        freeze_norm: keep all batch norms as they are, as the paper does for 128 frames.
        checkpointing: of the ResNets: compute residual blocks again in backward, to save memory.
        channels_last: memory layout of the convolutions.
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
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "c2d_resnet50",
        stem: str = "32x2",
        pool_padding: bool = True,
        input_size: tuple[int, int, int, int] = (3, 32, 224, 224),
        blocks: str | list[str] | dict[str, int] = "paper-1",
        pairwise: str = "embedded_gaussian",
        inner_channels: int | None = None,
        scale: bool = False,
        pool: int | list[int] | None = (1, 2, 2),  # type: ignore[assignment]
        pool_position: str = "input",
        window: int | list[int | None] | dict[str, list[int | None]] | None = None,
        norm: str = "batch",
        weights: str | None = None,
        multi_label: bool = False,
        dropout: float = 0.5,
        freeze_norm: bool = False,
        checkpointing: bool = False,
        channels_last: bool = False,
        lr: float = 0.01,
        weight_decay: float = 1e-4,
        warmup_steps: int = 0,
        optimizer: str = "sgd",
        momentum: float = 0.9,
        decay_all: bool = False,
        schedule: str = "cosine",
        milestones: Sequence[int] = (),
        lr_batch: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0 <= label_smoothing < 1 or (multi_label and label_smoothing):
            raise ValueError(f"label_smoothing must be in [0, 1), 0 with multi_label, got {label_smoothing}")
        rate = (lr, weight_decay, warmup_steps)
        optimisation = Optimisation(*rate, optimizer, momentum, decay_all, schedule, tuple(milestones), lr_batch)
        network = video_backbone(backbone, num_classes, stem, pool_padding, dropout, input_size[0])
        block = {"pairwise": pairwise, "inner_channels": inner_channels, "scale": scale, "norm": norm}
        keys = {"pool": pool, "pool_position": pool_position}
        report = insert_blocks(network, blocks, torch.zeros(1, *input_size), window, **block, **keys)
        if weights is not None:
            report += "\n" + load_weights(network, weights, classifier_name(network))
        if isinstance(network, VideoResNet):
            network.checkpointing = checkpointing
        elif checkpointing:
            raise ValueError(f"checkpointing is there for C2D and I3D, not for {backbone!r}")
        if channels_last:
            network.to(memory_format=torch.channels_last_3d)
        loss = nn.BCEWithLogitsLoss() if multi_label else nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        mean_precision = {"mAP": MeanAveragePrecision(num_classes)}
        metrics = MetricCollection(mean_precision) if multi_label else accuracies(num_classes)  # type: ignore[arg-type]
        super().__init__(network, loss, metrics, optimisation, report)
        self.save_hyperparameters()
        self.multi_label, self.freeze_norm = multi_label, freeze_norm
        if freeze_norm:
            self._freeze()

    def _freeze(self) -> None:
        for name, block in blocks_of(self).items():
            if isinstance(block.norm, _BatchNorm) and not block.norm.weight.any():
                raise ValueError(
                    f"freeze_norm: the norm of {name} is zero and would stay so, the block the identity; start from "
                    "weights that have the block, or take norm: none"
                )
        for norm in self.norms():
            norm.requires_grad_(False)

    def norms(self) -> list[_BatchNorm]:
        return [module for module in self.network.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> "VideoClassification":
        """With freeze_norm batch norms stay in evaluation, with the statistics that they have."""
        super().train(mode)
        if self.freeze_norm:
            for norm in self.norms():
                norm.eval()
        return self

    def setup(self, stage: str) -> None:
        """Refuse labels of the other kind before they meet the loss."""
        given = getattr(self.trainer.datamodule, "multi_label", False)  # type: ignore[attr-defined]
        if given != self.multi_label:
            raise ValueError(f"the data have multi_label={given}, the model multi_label={self.multi_label}")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of clips (B, C, T, H, W), or of the views' mean probabilities."""
        if x.ndim == 5:
            return super().forward(x)
        views_BVK = torch.unflatten(super().forward(x.flatten(0, 1)).float(), 0, x.shape[:2])
        if self.multi_label:
            return torch.logit(views_BVK.sigmoid().mean(1), eps=1e-6)
        return torch.logsumexp(views_BVK.log_softmax(2), 1) - math.log(x.shape[1])

    def predict_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> Tensor:
        """Probabilities (B, num_classes) of clips (B, C, T, H, W) or views (B, V, C, T, H, W)."""
        logits: Tensor = self(batch[0])
        return logits.sigmoid() if self.multi_label else logits.softmax(1)
