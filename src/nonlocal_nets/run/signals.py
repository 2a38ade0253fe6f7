"""On a signal a run saves before it ends, and a SLURM job that must leave its nodes is requeued."""

import os
import re
import signal
import subprocess
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from nonlocal_nets.run.checkpoints import LastCheckpoint

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class SaveOnSignal(pl.Callback):
    """On SIGUSR1 or SIGTERM `last.ckpt` is written after the step in progress, and the process exits with 128 + signal.

    SIGUSR1, which `sbatch --signal=USR1@90` sends ahead of the time limit and some clusters before a pre-emption, also
    puts a SLURM job back into the queue, and so does the SIGTERM of a pre-emption, but not that of `scancel`. It is
    enough if one process gets the signal: after each step all processes agree.
    Lightning's own handlers, which these replace while training, save wherever a process happens to be, also between
    the weights of a step. In a validation the signal waits for the next training step.

    A run of `wandb agent` exits with 0: the agent has sent the signal, and gives up after five runs that "failed".
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After Lightning has set its own handlers; it restores those from before the fit at its end."""
        self.received = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and batch_idx + 1 < trainer.num_training_batches:
            return  # gradients of half a step are not saved
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        requeue = trainer.strategy.reduce_boolean_decision(self.received == signal.SIGUSR1, all=False)
        number = signal.SIGUSR1 if requeue else signal.SIGTERM
        (last,) = (callback for callback in trainer.callbacks if isinstance(callback, LastCheckpoint))  # type: ignore[attr-defined]
        trainer.save_checkpoint(last.path)
        rank_zero_info(f"{number.name}: saved {last.path} after step {trainer.global_step}")
        if trainer.is_global_zero and "SLURM_JOB_ID" in os.environ and (requeue or preempted()):
            requeue_job()
        trainer.strategy.barrier()  # `srun --kill-on-bad-exit` ends the others as soon as one has left
        raise SystemExit(0 if "WANDB_SWEEP_ID" in os.environ and not requeue else 128 + number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number


def preempted() -> bool:
    """Whether SLURM wants this job's nodes for another job: it does not requeue one that then ends by itself."""
    job = scontrol("show", "job", job_id()).stdout
    return "JobState=RUNNING" in job and re.search(r"PreemptTime=\d", job) is not None


def requeue_job() -> None:
    """Put this SLURM job, or this task of a job array, back into the queue, under its id; it is then ended."""
    done = scontrol("requeue", job_id())
    if done.returncode:
        rank_zero_warn(f"scontrol requeue {job_id()} failed, submit again with --ckpt_path=last: {done.stderr.strip()}")


def job_id() -> str:
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def scontrol(*args: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["scontrol", *args], capture_output=True, text=True)
    except FileNotFoundError as error:  # in a container; the batch script can still requeue, by the exit code
        return subprocess.CompletedProcess(args, 127, "", str(error))
