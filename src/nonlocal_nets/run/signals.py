"""On a signal a run saves before it ends, and a SLURM job that must leave its nodes is requeued."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from nonlocal_nets.run.checkpoints import LastCheckpoint
from nonlocal_nets.run.folder import CONFIG
from nonlocal_nets.run.help import program

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class SaveOnSignal(pl.Callback):
    """On a signal `last.ckpt` is written after the step in progress, and the process exits with 128 + signal.

    SIGUSR1, which `sbatch --signal=USR1@90` sends ahead of the time limit and some clusters before a pre-emption, also
    puts a SLURM job back into the queue, and so does the SIGTERM of a pre-emption, but not that of `scancel`. Ctrl-C
    saves as well; a second one ends at once. It is enough if one process gets the signal: after each step all processes
    agree. A validation that is then due is the first thing that the resumed run does. In a validation the signal waits
    for the next training step. Where nothing is being trained, before the first
    step, in `validate`, `test` and `predict`, the process exits at once, with the same code.
    Lightning's own handlers (`lightning.prepare` leaves them out) save wherever a process happens to be, also between
    the weights of a step.

    A run of `wandb agent` exits with 0: the agent has sent the signal, and gives up after five runs that "failed".
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.training = False
        self.launcher: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """From the first moment of a command to its end; only the main thread of a process can listen."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                if threading.current_thread() is threading.main_thread():
                    signal.signal(number, handler)

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.training and not (number == self.received == signal.SIGINT):
            self.received = number
            return
        if self.launcher is not None:
            self.launcher.kill(number)  # the processes that this one has started
        raise SystemExit(128 + number)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.launcher = trainer.strategy.launcher

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.received, self.training = None, True
        self._listen()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.training = False
        if self.received is not None:
            rank_zero_info(f"{signal.Signals(self.received).name}: after the last step; the run is at its end")

    def after_step(self, trainer: pl.Trainer) -> None:
        """After each step of the optimiser, once its row is logged, and before a validation (`loops.EpochLoop`)."""
        agree = trainer.strategy.reduce_boolean_decision
        if not agree(self.received is not None, all=False):
            return
        # USR1 before Ctrl-C before TERM, where processes got different ones
        got = {number: agree(self.received == number, all=False) for number in (signal.SIGUSR1, signal.SIGINT)}
        number = next((number for number, anywhere in got.items() if anywhere), signal.SIGTERM)
        last = last_checkpoint(trainer)
        if last is None:
            rank_zero_info(
                f"{number.name}: nothing saved after step {trainer.global_step}, as enable_checkpointing=false"
            )
        else:
            trainer.save_checkpoint(last)
            rank_zero_info(f"{number.name}: saved {last} after step {trainer.global_step}")
        requeue = number == signal.SIGUSR1
        in_a_job = trainer.is_global_zero and "SLURM_JOB_ID" in os.environ
        if last is not None and in_a_job and (requeue or preempted()):
            requeue_job()
        trainer.strategy.barrier()  # `srun --kill-on-bad-exit` ends the others as soon as one has left
        raise SystemExit(0 if "WANDB_SWEEP_ID" in os.environ and not requeue else 128 + number)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Whatever ends a run early, there is a command that goes on with it."""
        self.training = False
        last = last_checkpoint(trainer)
        if trainer.state.fn == TrainerFn.FITTING and last is not None and last.is_file():
            config = Path(trainer.default_root_dir) / CONFIG
            rank_zero_info(f"to go on: python {program()} fit --config {config} --ckpt_path=last")


def last_checkpoint(trainer: pl.Trainer) -> Path | None:
    """The path of the run's last.ckpt; None where it has no checkpoints."""
    paths = (callback.path for callback in trainer.callbacks if isinstance(callback, LastCheckpoint))  # type: ignore[attr-defined]
    return next(paths, None)


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
