"""Callbacks for the Lightning Trainer."""

from nonlocal_nets.callbacks.attention_maps import AttentionMaps

__all__ = ["AttentionMaps"]
