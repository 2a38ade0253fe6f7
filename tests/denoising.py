"""A task and its data as a user writes them: images in, images out, no classes anywhere."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError, MetricCollection

from nonlocal_nets.tasks import Blocks, Optimizer, Schedule, Task


class Denoising(Task):
    monitor, mode = "val/mse", "min"

    def __init__(
        self,
        blocks: Blocks = Blocks(at="1"),
        optimizer: Optimizer = Optimizer(lr=0.01),
        schedule: Schedule = Schedule(),
    ):
        network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
        report = blocks.insert_into(network, torch.zeros(1, 1, 8, 8))
        super().__init__(network, MetricCollection({"mse": MeanSquaredError()}), optimizer, schedule, report)
        self.save_hyperparameters()

    def training_loss(self, batch):
        noisy, clean = batch
        return mse_loss(self(noisy), clean)

    def evaluate(self, batch, metrics):
        noisy, clean = batch
        metrics.update(self(noisy), clean)


class Stripes(pl.LightningDataModule):
    def __init__(self, samples: int = 9, batch_size: int = 2):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        clean = (torch.rand(samples, 1, 8, 1, generator=random) > 0.5).float().expand(-1, -1, -1, 8)
        self.data = TensorDataset(clean + 0.3 * torch.randn(samples, 1, 8, 8, generator=random), clean)
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(self.data, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, self.batch_size)

    test_dataloader = val_dataloader
