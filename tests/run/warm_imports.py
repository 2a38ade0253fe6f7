"""What the process of tests.run.warm imports before it forks."""

import torch

import nonlocal_nets.run.cli
import tensorboard  # noqa: F401

torch.set_num_threads(1)
