"""The non-local layer, networks with it, and its insertion into any network. Needs torch only."""

from nonlocal_nets.nn import functional
from nonlocal_nets.nn.backbones.video import video_resnet
from nonlocal_nets.nn.inflate import inflate, inflate_weights
from nonlocal_nets.nn.insert import blocks, insert, remove
from nonlocal_nets.nn.insertion_points import PRESETS, insertion_points
from nonlocal_nets.nn.nonlocal_block import NonLocalBlock
from nonlocal_nets.nn.norms import freeze_batch_norms
from nonlocal_nets.nn.pairwise import (
    PAIRWISE,
    Concatenation,
    DotProduct,
    Embedded,
    EmbeddedGaussian,
    Gaussian,
    Pairwise,
)

__all__ = [
    "PAIRWISE",
    "PRESETS",
    "Concatenation",
    "DotProduct",
    "Embedded",
    "EmbeddedGaussian",
    "Gaussian",
    "NonLocalBlock",
    "Pairwise",
    "blocks",
    "freeze_batch_norms",
    "functional",
    "inflate",
    "inflate_weights",
    "insert",
    "insertion_points",
    "remove",
    "video_resnet",
]
