"""One LightningModule a task."""

from nonlocal_nets.tasks.image import ImageClassification

__all__ = ["ImageClassification"]
