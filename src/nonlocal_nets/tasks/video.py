"""Video classification with C2D, I3D or any inflated timm network, non-local or not, as in the paper."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from nonlocal_nets.nn import blocks as blocks_of
from nonlocal_nets.nn.backbones.image import classifier_name
from nonlocal_nets.nn.backbones.video import video_backbone
from nonlocal_nets.tasks.classification import Classification, accuracies
from nonlocal_nets.tasks.options import Blocks, Loss, Optimizer, Schedule
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


class VideoClassification(Classification):
    """Clips (B, C, T, H, W) in training, views of each video (B, V, C, T, H, W) in evaluation, where the probabilities
    of the views are averaged.

    Labels are (B,), with cross-entropy, or with `multi_label` (B, num_classes) of 0 and 1, with a sigmoid and binary
    cross-entropy for each class, and mAP: the mean average precision over the classes that occur.

    Args:
        num_classes: number of classes; on the command line it comes from the data.
        backbone: "c2d_resnet50", "i3d_resnet50" (3 x 1 x 1) or "i3d_3x3x3_resnet50", each also of 101;
            "local_video_net"; or a timm network such as "resnet18", whose kernels then span one frame.
        input_size: channels, frames, height and width of a clip. On the command line it comes from the data.
        stem: of C2D and I3D: "32x2" halves the frames three times, for clips of 32 or 128 frames, "8x8" once. null:
            "32x2".
        pool_padding: of C2D and I3D: pad the max pools as in Table 1; false: do not, as the released code. null: true.
        dropout: of C2D and I3D, before the classifier (Sec. 4). null: 0.5.
        checkpointing: of C2D and I3D: compute residual blocks again in backward, to save memory.
        blocks: the non-local blocks; layer1 to layer4 are the paper's res2 to res5.
        loss: the loss.
        optimizer: the optimiser.
        schedule: its learning rate over the run.
        weights: what to start from: a checkpoint of ours or a file with a state dict, of this network, of one without
            blocks, with fewer frames or another classifier, or of a 2-D one, which is inflated. null: random weights.
        multi_label: several labels for a video, as in Charades.
        freeze_norm: keep all batch norms as they are, as the paper does for 128 frames.
        channels_last: memory layout of the convolutions.
    """

    may_differ = Classification.may_differ | {"dropout", "checkpointing", "freeze_norm", "channels_last"}

    def __init__(
        self,
        num_classes: int,
        backbone: str = "c2d_resnet50",
        input_size: tuple[int, int, int, int] = (3, 32, 224, 224),
        stem: str | None = None,
        pool_padding: bool | None = None,
        dropout: float | None = None,
        checkpointing: bool = False,
        blocks: Blocks = Blocks(pool=[1, 2, 2]),
        loss: Loss = Loss(),
        optimizer: Optimizer = Optimizer(name="sgd", lr=0.01, decay_all=False),
        schedule: Schedule = Schedule(),
        weights: str | None = None,
        multi_label: bool = False,
        freeze_norm: bool = False,
        channels_last: bool = False,
    ) -> None:
        options: dict[str, Any] = {"stem": stem, "pool_padding": pool_padding, "dropout": dropout}
        options["checkpointing"] = True if checkpointing else None
        given = {name: value for name, value in options.items() if value is not None}
        network = video_backbone(backbone, num_classes, input_size[0], **given)
        report = blocks.insert_into(network, torch.zeros(1, *input_size))
        if weights is not None:
            report += "\n" + load_weights(network, weights, classifier_name(network))
        if channels_last:
            network.to(memory_format=torch.channels_last_3d)
        criterion, metrics = _criterion(loss, num_classes, multi_label)
        super().__init__(network, criterion, metrics, optimizer, schedule, report)
        self.save_hyperparameters()
        self.multi_label, self.freeze_norm = multi_label, freeze_norm
        if multi_label:
            self.monitor = "val/mAP"
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

    def check_data(self, data: pl.LightningDataModule) -> None:
        """One label for a video, or several."""
        given = getattr(data, "multi_label", False)
        if given != self.multi_label:
            raise ValueError(f"the data have multi_label={given}, the model multi_label={self.multi_label}")

    def inputs(self, batch: Any, stage: str) -> Tensor:
        """Clips (B, C, T, H, W); in evaluation those of all views, (B * V, C, T, H, W)."""
        x: Tensor = batch[0]
        if stage == "train":
            return x
        if x.ndim != 6:
            given = f"got {tuple(x.shape)}; a single view has V = 1"
            raise ValueError(f"a batch of evaluation or prediction must be views (B, V, C, T, H, W), {given}")
        return x.flatten(0, 1)

    def logits(self, batch: Any, stage: str) -> Tensor:
        """Logits (B, num_classes) of the mean probabilities of the views (B, V, C, T, H, W)."""
        views_BVK = torch.unflatten(super().logits(batch, stage).float(), 0, batch[0].shape[:2])
        if self.multi_label:
            return torch.logit(views_BVK.sigmoid().mean(1), eps=1e-6)
        return torch.logsumexp(views_BVK.log_softmax(2), 1) - math.log(views_BVK.shape[1])

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities (B, num_classes)."""
        logits = self.logits(batch, "predict")
        return logits.sigmoid() if self.multi_label else logits.softmax(1)


def _criterion(loss: Loss, num_classes: int, multi_label: bool) -> tuple[nn.Module, MetricCollection]:
    """The loss and the metrics of logits and labels."""
    if not multi_label:
        return loss.build(num_classes), accuracies(num_classes)
    if loss != Loss():
        raise ValueError(f"multi_label takes neither label_smoothing nor class_weights, got {loss}")
    return nn.BCEWithLogitsLoss(), MetricCollection({"mAP": MeanAveragePrecision(num_classes)})
