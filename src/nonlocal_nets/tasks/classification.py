"""What the classifications of images, sequences and videos share: labels, logits, and accuracies."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from nonlocal_nets.tasks.base import Task
from nonlocal_nets.tasks.options import Optimizer, Schedule

SHOWN = 5  # the likeliest classes in predictions.csv


class Classification(Task):
    """Batches (inputs, labels); the network gives logits (B, num_classes).

    Args:
        network: the network.
        loss: of (logits, labels).
        metrics: of (logits, labels).
        optimizer: the optimiser.
        schedule: its learning rate over the run.
        report: what there is to know of the network, logged when training starts.
    """

    monitor, mode = "val/accuracy", "max"

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        metrics: MetricCollection,
        optimizer: Optimizer,
        schedule: Schedule,
        report: str,
    ) -> None:
        super().__init__(network, metrics, optimizer, schedule, report)
        self.loss: nn.Module = loss

    def augment(self, inputs: Any, labels: Tensor) -> tuple[Any, Tensor]:
        """What the network and the loss see of a training batch; metrics see the batch's own labels."""
        return inputs, labels

    def training_loss(self, batch: Any) -> Tensor:
        labels = batch[1]
        inputs, targets = self.augment(self.inputs(batch, "train"), labels)
        logits = self(inputs)
        self.train_metrics.update(logits, labels.long())
        loss: Tensor = self.loss(logits, targets)
        return loss

    def evaluate(self, batch: Any, metrics: MetricCollection) -> Mapping[str, Tensor]:
        """The loss, and the logits and labels for the callbacks that draw them."""
        logits, labels = self.logits(batch, "val"), batch[1]
        metrics.update(logits, labels.long())
        return {"loss": self.loss(logits, labels), "logits": logits, "target": labels}

    def logits(self, batch: Any, stage: str) -> Tensor:
        """Logits (B, num_classes) of a batch of evaluation or prediction."""
        logits: Tensor = self(self.inputs(batch, stage))
        return logits

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Probabilities (B, num_classes)."""
        return self.logits(batch, "predict").softmax(1)

    def rows(self, batch: Any, prediction: Tensor) -> Iterator[dict[str, object]]:
        """Path, class, and the likeliest classes with their probabilities."""
        names = self.trainer.datamodule.class_names  # type: ignore[attr-defined]
        top = prediction.topk(min(SHOWN, prediction.shape[1]))
        for path, values, classes in zip(batch[1], top.values.tolist(), top.indices.tolist(), strict=True):
            row: dict[str, object] = {"path": path, "class": names[classes[0]]}
            for rank, (value, k) in enumerate(zip(values, classes, strict=True), start=1):
                row |= {f"class_{rank}": names[k], f"probability_{rank}": f"{value:.6f}"}
            yield row


def accuracies(num_classes: int) -> MetricCollection:
    """Overall accuracy, the mean over the classes, and with more than 5 classes top 5; of one label a sample."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro"),
        "balanced_accuracy": MulticlassAccuracy(num_classes, average="macro"),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
    return MetricCollection(metrics)
