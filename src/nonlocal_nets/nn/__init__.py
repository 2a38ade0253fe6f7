"""The non-local layer and what puts it into networks. torch only: nothing here knows of data or training."""

from nonlocal_nets.nn import functional
from nonlocal_nets.nn.backbones.video import video_resnet
from nonlocal_nets.nn.inflate import inflate, inflate_weights
from nonlocal_nets.nn.insert import PRESETS, blocks, insert, remove
from nonlocal_nets.nn.nonlocal_block import NonLocalBlock
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
    "functional",
    "inflate",
    "inflate_weights",
    "insert",
    "remove",
    "video_resnet",
]
