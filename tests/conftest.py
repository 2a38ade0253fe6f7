"""One thread: the tests are small, and two threads that wait for each other on a busy machine are slower than one."""

import torch

torch.set_num_threads(1)
