"""What works around Lightning. (Its signals and checkpoints of SLURM jobs: tests/run/test_survival.py.)"""

import signal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

import nonlocal_nets.run.lightning
from nonlocal_nets.run.signals import SIGNALS


class Drawn(Dataset):
    """Sample k: a random number of numpy's, and which signals its worker ignores."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        ignored = [signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS]
        return torch.tensor([np.random.random(), *ignored])  # noqa: NPY002


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(4, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_workers_are_seeded_too():
    """And ignore the signals that end a run, with a worker_init_fn of Lightning's or of the user's own."""
    assert nonlocal_nets.run.lightning.WRITTEN_FOR
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    seen = []
    for own in (None, lambda worker: np.random.seed(worker)):  # noqa: NPY002
        pl.seed_everything(0, workers=True, verbose=False)
        net = Net()
        trainer = pl.Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=1, **quiet)
        trainer.fit(net, DataLoader(Drawn(), num_workers=2, worker_init_fn=own))
        seen.append(torch.cat(net.seen))
        assert seen[-1][:, 1:].all()
        assert len(set(seen[-1][:, 0].tolist())) == 4, "each worker has its own seed"
    assert not torch.equal(*seen)
