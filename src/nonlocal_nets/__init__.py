"""Non-local neural networks (Wang et al., CVPR 2018): one N-dimensional layer, and training with it."""

from nonlocal_nets.attention.rows import attention
from nonlocal_nets.nn import (
    PAIRWISE,
    NonLocalBlock,
    Pairwise,
    blocks,
    freeze_batch_norms,
    functional,
    inflate,
    insert,
    insertion_points,
    remove,
    video_resnet,
)

__all__ = [
    "PAIRWISE",
    "NonLocalBlock",
    "Pairwise",
    "attention",
    "blocks",
    "freeze_batch_norms",
    "functional",
    "inflate",
    "insert",
    "insertion_points",
    "remove",
    "video_resnet",
]
