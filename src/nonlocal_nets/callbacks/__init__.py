"""Callbacks for the Lightning Trainer."""

from nonlocal_nets.callbacks.attention_arrows import AttentionArrows
from nonlocal_nets.callbacks.attention_maps import AttentionMaps
from nonlocal_nets.callbacks.attention_series import AttentionSeries
from nonlocal_nets.callbacks.confusion_matrix import ConfusionMatrix
from nonlocal_nets.callbacks.precise_bn import PreciseBN
from nonlocal_nets.callbacks.predictions import Predictions
from nonlocal_nets.callbacks.repeatable import Repeatable
from nonlocal_nets.callbacks.save_on_signal import SaveOnSignal
from nonlocal_nets.callbacks.summary import Summary
from nonlocal_nets.callbacks.throughput import Throughput

__all__ = [
    "AttentionArrows",
    "AttentionMaps",
    "AttentionSeries",
    "ConfusionMatrix",
    "PreciseBN",
    "Predictions",
    "Repeatable",
    "SaveOnSignal",
    "Summary",
    "Throughput",
]
