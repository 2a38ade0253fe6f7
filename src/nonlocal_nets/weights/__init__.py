"""Weights from elsewhere: one file a source, which renames and refuses."""

from nonlocal_nets.weights import efficientnet_lite0
from nonlocal_nets.weights.load import check_fit, load_weights, read

__all__ = ["check_fit", "efficientnet_lite0", "load_weights", "read"]
