"""One LightningDataModule a data set. Each has `num_classes` and `class_names` from the start."""

from nonlocal_nets.data.cued_digits import CuedDigits

__all__ = ["CuedDigits"]
