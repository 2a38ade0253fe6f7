"""For runs that tests disturb: each step is written down, and one waits for what is to happen."""

import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

from nonlocal_nets.run.signals import SaveOnSignal


class Stepwise(pl.Callback):
    """Adds "process step pid" to the file `steps` after each step; the first time, the steps `hold` wait for a signal.

    The weights that each process ends with go to `weights-<process>`.
    """

    def __init__(self, hold: tuple[int, ...] = ()) -> None:
        self.hold = hold

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rank, step = trainer.global_rank, trainer.global_step
        first = step not in trained(Path(), rank)
        with Path("steps").open("a") as file:
            file.write(f"{rank} {step} {os.getpid()}\n")
        (told,) = (callback for callback in trainer.callbacks if isinstance(callback, SaveOnSignal))
        while step in self.hold and first and told.received is None:
            time.sleep(0.1)

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.state_dict(), f"weights-{trainer.global_rank}")


def trained(folder: Path, rank: int) -> list[int]:
    """The steps that a process has done so far, in their order."""
    return [step for process, step, _ in lines(folder) if process == rank]


def process_of(folder: Path, rank: int) -> int:
    """Its pid."""
    return [pid for process, _, pid in lines(folder) if process == rank][-1]


def lines(folder: Path) -> list[list[int]]:
    file = folder / "steps"
    return [[int(word) for word in line.split()] for line in file.read_text().splitlines()] if file.exists() else []
