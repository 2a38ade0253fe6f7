"""Non-local neural networks (Wang et al., CVPR 2018): one N-dimensional layer, and training with it."""

from nonlocal_nets.nn import PAIRWISE, NonLocalBlock, Pairwise, blocks, functional, insert, remove

__all__ = ["PAIRWISE", "NonLocalBlock", "Pairwise", "blocks", "functional", "insert", "remove"]
