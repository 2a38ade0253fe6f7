"""One LightningModule a task, and the options that they share."""

from nonlocal_nets.tasks.base import Task
from nonlocal_nets.tasks.classification import Classification
from nonlocal_nets.tasks.image import ImageClassification
from nonlocal_nets.tasks.options import Blocks, Loss, Optimizer, Schedule
from nonlocal_nets.tasks.sequence import SequenceClassification
from nonlocal_nets.tasks.video import VideoClassification

__all__ = [
    "Blocks",
    "Classification",
    "ImageClassification",
    "Loss",
    "Optimizer",
    "Schedule",
    "SequenceClassification",
    "Task",
    "VideoClassification",
]
