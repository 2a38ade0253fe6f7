"""Weights from elsewhere: files on disk, and one file a source of foreign weights, which renames and refuses."""

from nonlocal_nets.checkpoints import efficientnet_lite0
from nonlocal_nets.checkpoints.files import check_fit, load_weights, read
from nonlocal_nets.checkpoints.last import LastCheckpoint, best_checkpoint
from nonlocal_nets.checkpoints.writing import CheckpointWriteError, WholeCheckpoints, newest

__all__ = [
    "CheckpointWriteError",
    "LastCheckpoint",
    "WholeCheckpoints",
    "best_checkpoint",
    "check_fit",
    "efficientnet_lite0",
    "load_weights",
    "newest",
    "read",
]
