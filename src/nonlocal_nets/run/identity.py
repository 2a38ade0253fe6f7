"""A checkpoint records the network and the data that it belongs to; others are refused."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import Subset

from nonlocal_nets.data.base import listed, only_in
from nonlocal_nets.data.order import Seeded, global_seed
from nonlocal_nets.nn.messages import shorten
from nonlocal_nets.run.errors import RunError
from nonlocal_nets.weights import check_fit

MEANING, BATCHES = "data_meaning", "batches"  # keys of a checkpoint
TOGETHER = "samples in a batch of all processes"
DIGEST = "digest of the training samples"
ORDER = (TOGETHER, "training samples", DIGEST, "seed")  # what the rest of an epoch follows from
COMPARED = ("class_names", "normalisation")  # of the data's meaning
CONTINUED = ("optimizer.name", "optimizer.weight_decay", "optimizer.momentum", "optimizer.decay_all")
KEPT = {"optimizer.lr", "optimizer.lr_base_size", "schedule.warmup_steps"}
TESTED = {"state_dict", "pytorch-lightning_version"}  # what a checkpoint must have
RESUMED = TESTED | {"optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step", "epoch"}
SHOWN = 3  # differences in a message


class Identity(pl.Callback):
    """Writes into each checkpoint what the data mean, and the samples and batches; a resume checks these."""

    def __init__(self) -> None:
        self.saved: Mapping[str, int | None] = {}
        self.mid_epoch = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise a RunError where the processes of one run took different folders or checkpoints.

        Each chooses by itself. Without an id, those of two runs that start at once in one SLURM job may be mistaken.
        """
        chosen = {"folder": trainer.default_root_dir, "checkpoint": trainer.ckpt_path}
        if trainer.strategy.reduce_boolean_decision(chosen == trainer.strategy.broadcast(chosen)):
            return
        took = " and ".join(f"the {name} {path}" for name, path in chosen.items())
        raise RunError(f"the processes of this run differ, this one took {took}: give all the same --id")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[MEANING] = meaning(getattr(trainer, "datamodule", None))
        checkpoint[BATCHES] = _batches(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        self.mid_epoch = not progress.get("is_last_batch", True)
        self.saved = checkpoint.get(BATCHES, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what has changed. In the middle of an epoch, what is left of it follows from samples, seed and batches.

        Raises:
            RunError: a resume in the middle of an epoch with other samples, another seed, or larger or smaller batches.
        """
        given = _batches(trainer)
        differing = [name for name in given if self.saved.get(name, given[name]) != given[name]]
        changes = "; ".join(f"{name}: {self.saved[name]} before, {given[name]} now" for name in differing)
        if self.mid_epoch and set(ORDER) & set(differing):
            raise RunError(f"an epoch cannot go on in its middle with other batches; {changes}")
        if changes:
            rank_zero_info(f"resuming with other batches; {changes}")
        if changes and not self.mid_epoch:  # or the ended epoch would go on
            done: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            done.ready = done.started = done.processed = done.completed = int(trainer.num_training_batches)
        self.saved, self.mid_epoch = {}, False


def _batches(trainer: pl.Trainer) -> dict[str, int | None]:
    size = getattr(getattr(trainer.train_dataloader, "batch_sampler", None), "batch_size", None)
    return _samples(getattr(trainer.train_dataloader, "dataset", None)) | {
        TOGETHER: None if size is None else size * trainer.world_size,
        "processes": trainer.world_size,
        "batches in a step": trainer.accumulate_grad_batches,
    }


def _samples(dataset: Any) -> dict[str, int | None]:
    """The number of training samples, a digest of them where the data set has one, and the seed of their order."""
    dataset = dataset.dataset if isinstance(dataset, Seeded) else dataset
    digest = getattr(dataset, "digest", None)
    if isinstance(dataset, Subset):  # of a split
        digest = zlib.crc32(str(list(dataset.indices)).encode())
    length = len(dataset) if hasattr(dataset, "__len__") else None
    return {"training samples": length, DIGEST: digest, "seed": global_seed()}


def meaning(data: Any) -> dict[str, Any]:
    """What the inputs and outputs of a network mean by its data: that of our data modules, or the names of classes."""
    if hasattr(data, "meaning"):
        return dict(data.meaning)
    names = getattr(data, "class_names", None)
    return {} if names is None else {"class_names": [str(name) for name in names]}


def check_checkpoint(path: Path, saved: Mapping[str, Any], model: pl.LightningModule, data: Any, resume: bool) -> None:
    """Refuse a checkpoint, `saved`, that does not belong to this network and to data of this meaning.

    On resuming, options of training that differ are logged.

    Raises:
        ValueError: the classes or the normalisation of the data, the options of the network, or the names or shapes of
            its weights are others; on resuming also the options of the optimiser that its state depends on. Or the file
            holds weights only.
    """
    _check_meaning(path, saved.get(MEANING, {}), meaning(data))
    _check_options(path, _options(saved.get("hyper_parameters", {})), model, resume)
    check_fit(saved.get("state_dict", saved), model.state_dict(), path)
    if missing := sorted((RESUMED if resume else TESTED) - saved.keys()):
        use, advice = "resumed" if resume else "tested", "--model.weights=<file> takes its weights"
        raise ValueError(f"{path} cannot be {use}, it is without {', '.join(missing)}; {advice}")


def check_weights(path: Path, saved: Mapping[str, Any], model: pl.LightningModule, data: Any, begin: bool) -> None:
    """Refuse weights to start from, `saved`, that belong to another network or to data of another meaning.

    Training may begin from them, which is logged.

    Raises:
        ValueError: the classes or the normalisation of the data, or the options of the network are others.
    """
    try:
        _check_meaning(path, saved.get(MEANING, {}), meaning(data))
        _check_options(path, _options(saved.get("hyper_parameters", {})), model, resume=False)
    except ValueError as error:
        if not begin:
            raise
        rank_zero_info(f"beginning from weights of another network or other data: {error}")


def _check_meaning(path: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name in COMPARED:
        before, now = saved.get(name), given.get(name)
        if before is None or now is None or before == now:
            continue
        if name == "class_names" and set(before) != set(now):
            sides = only_in({"the checkpoint": set(before), "the data": set(now)})
            raise ValueError(f"{path} was trained on other classes than the data have; {sides}")
        if name == "class_names":
            orders = f"{listed(before, 40)}; here {listed(now, 40)}"
            raise ValueError(f"{path} was trained on the classes in another order: {orders}")
        names = [option for option in now if _plain(before.get(option)) != _plain(now[option])]
        raise ValueError(f"{path} was trained with {_differences(names, _options(before), _options(now))}")


def _check_options(path: Path, saved: Mapping[str, Any], model: pl.LightningModule, resume: bool) -> None:
    given = _options(model.hparams)
    differing = [name for name in given if name in saved and saved[name] != given[name]]
    free = getattr(model, "may_differ", given)
    refused = [name for name in differing if name.partition(".")[0] not in free or (resume and name in CONTINUED)]
    if refused:
        takes_weights = resume and "weights" in model.hparams
        advice = "; to start from its weights: --model.weights=<file>" if takes_weights else ""
        raise ValueError(f"{path} was trained with {_differences(refused, saved, given)}{advice}")
    if resume and differing:
        kept = "; its learning rate is kept" if KEPT & set(differing) else ""
        rank_zero_info(f"resuming {path}, which was trained with {_differences(differing, saved, given)}{kept}")


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names on the command line, such as blocks.pool, in plain values."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            flat |= {f"{name}.{key}": _plain(inside) for key, inside in value.items()}
        else:
            flat[name] = _plain(value)
    return {name: value for name, value in flat.items() if not name.startswith("_")}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _differences(names: list[str], saved: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    values = {name: [shorten(str(side.get(name)), 40) for side in (saved, given)] for name in names[:SHOWN]}
    shown = [f"{name}={before}, here {now}" for name, (before, now) in values.items()]
    return "; ".join(shown) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
