"""Callbacks for the Lightning Trainer."""

from nonlocal_nets.callbacks.attention_maps import AttentionMaps
from nonlocal_nets.callbacks.confusion_matrix import ConfusionMatrix
from nonlocal_nets.callbacks.precise_bn import PreciseBN
from nonlocal_nets.callbacks.throughput import Throughput

__all__ = ["AttentionMaps", "ConfusionMatrix", "PreciseBN", "Throughput"]
