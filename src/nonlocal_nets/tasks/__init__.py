"""One LightningModule a task."""

from nonlocal_nets.tasks.image import ImageClassification
from nonlocal_nets.tasks.video import VideoClassification

__all__ = ["ImageClassification", "VideoClassification"]
