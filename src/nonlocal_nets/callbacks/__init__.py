"""Callbacks for the Lightning Trainer."""

from nonlocal_nets.callbacks.attention_arrows import AttentionArrows
from nonlocal_nets.callbacks.attention_maps import AttentionMaps
from nonlocal_nets.callbacks.attention_series import AttentionSeries
from nonlocal_nets.callbacks.confusion_matrix import ConfusionMatrix
from nonlocal_nets.callbacks.precise_bn import PreciseBN
from nonlocal_nets.callbacks.throughput import Throughput

__all__ = [
    "AttentionArrows",
    "AttentionMaps",
    "AttentionSeries",
    "ConfusionMatrix",
    "PreciseBN",
    "Throughput",
]
