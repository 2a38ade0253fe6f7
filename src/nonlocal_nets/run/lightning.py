"""Lightning as this package needs it. What works around it is in this folder, and was written for one version."""

import logging
import signal
import warnings
from collections.abc import Callable
from functools import partial, reduce
from operator import or_
from typing import Any, get_args

import pytorch_lightning as pl
from lightning_fabric.utilities.data import _auto_add_worker_init_fn
from pytorch_lightning.__version__ import version
from pytorch_lightning.callbacks import ProgressBar, model_summary
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.trainer.connectors import data_connector
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.utilities.model_summary.model_summary import _format_summary_table

from nonlocal_nets.run.checkpoints import ALWAYS_LOGGED, best_of
from nonlocal_nets.run.signals import SIGNALS

WRITTEN_FOR = "2.6"

if not version.startswith(f"{WRITTEN_FOR}."):
    raise ImportError(f"nonlocal_nets.run was written for pytorch-lightning {WRITTEN_FOR}, this is {version}")

# Lightning 2.6 on torch >= 2.13 warns of itself at every start: utilities/_pytree.py still makes a LeafSpec.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
# It cannot know that the order of the samples is resumed (repeatable.py).
warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
# It would have more workers and more rows whatever the data, and a resumed run's folder has checkpoints.
for message in ("does not have many workers", "is smaller than the logging interval", "exists and is not empty"):
    warnings.filterwarnings("ignore", message=f".*{message}", module="pytorch_lightning")
# And it advertises a cloud service.
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: " Tip: " not in record.getMessage())


def counts_before_fractions(parser: LightningArgumentParser) -> None:
    """Let --trainer.limit_train_batches=1 be one batch, not all of them, and the same for the other numbers.

    A parser tries the types of a union in turn. The Trainer's are Optional[Union[int, float]] and the like, but typing
    keeps one object for all orders of a union: where another library wrote it first, as float or int, 1 becomes 1.0.
    """
    for action in parser._actions:
        types = get_args(getattr(action, "_typehint", None))
        if action.dest.startswith("trainer.") and int in types and float in types:
            ordered = sorted(types, key=lambda kind: (kind is not int, kind is not float))
            action._typehint = reduce(or_, ordered)  # type: ignore[attr-defined]


class NoHandlers(_SignalConnector):
    """Lightning's handlers for SLURM would save wherever the process is, and to a file that any later run loads."""

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False


class NoOtherRun(_CheckpointConnector):
    """In a SLURM job Lightning would load such a file, hpc_ckpt_<n>.ckpt, from its folder without a word."""

    _hpc_resume_path = None


def prepare(trainer: pl.Trainer) -> None:
    """Leave signals and checkpoints to this package."""
    trainer._signal_connector = NoHandlers(trainer)
    trainer._checkpoint_connector = NoOtherRun(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ProgressBar):
            callback.get_metrics = partial(_shown, callback.get_metrics)  # type: ignore[method-assign]


def _shown(metrics: Callable[..., dict[str, Any]], trainer: pl.Trainer, *args: Any) -> dict[str, Any]:
    """What a progress bar shows beside epoch and time: loss, metrics and what is monitored, not the name of the run."""
    monitored = getattr(best_of(trainer), "monitor", None)
    values = {name: float(value) for name, value in trainer.callback_metrics.items() if name == monitored}
    shown = metrics(trainer, *args) | values
    return {name: value for name, value in shown.items() if name not in ("v_num", *ALWAYS_LOGGED)}


def _summary_table(*args: Any) -> str:
    """Without what is known only of models that have an example_input_array."""
    *figures, flops = args[:5]
    columns = [column for column in args[5:] if flops or column[0] != "FLOPs"]
    table = _format_summary_table(*figures, flops, *columns)
    return table if flops else table.removesuffix("Total Flops").rstrip("0 \n")


model_summary._format_summary_table = _summary_table  # type: ignore[attr-defined,assignment]


def deaf(then: Callable[[int], None] | None, worker: int) -> None:
    """Let a worker of a loader ignore the signals that end a run: SLURM and terminals send them to all processes.

    It ends when the loader or the process that started it ends.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if then is not None:
        then(worker)


def _add_worker_init_fn(dataloader: Any, rank: int) -> None:
    _auto_add_worker_init_fn(dataloader, rank)
    if hasattr(dataloader, "worker_init_fn") and getattr(dataloader.worker_init_fn, "func", None) is not deaf:
        dataloader.worker_init_fn = partial(deaf, dataloader.worker_init_fn)


# All loaders pass here, also those of a user's own data module.
data_connector._auto_add_worker_init_fn = _add_worker_init_fn  # type: ignore[attr-defined]
