"""The command line: LightningCLI with one folder a run, which holds all that is needed to repeat it."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger

import nonlocal_nets.callbacks  # with data and tasks: so that `class_path` may be a bare name
import nonlocal_nets.tasks  # noqa: F401
from nonlocal_nets.data.trained import trained_on
from nonlocal_nets.run import claim, wandb
from nonlocal_nets.run.arguments import FROM_DATA, check_args, check_verb, nested_nulls
from nonlocal_nets.run.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpoints, load
from nonlocal_nets.run.choice import choose_checkpoint, choose_id, choose_weights
from nonlocal_nets.run.config import SaveConfig
from nonlocal_nets.run.curve import Curve
from nonlocal_nets.run.epoch_means import EpochMeans
from nonlocal_nets.run.errors import Parser
from nonlocal_nets.run.failures import Failures
from nonlocal_nets.run.folder import RUN_ID, RunFolder, expanded
from nonlocal_nets.run.gradients import Gradients
from nonlocal_nets.run.help import MANUAL, TITLES, program
from nonlocal_nets.run.identity import MEANING, Identity, check_checkpoint, check_weights
from nonlocal_nets.run.lightning import counts_before_fractions, prepare
from nonlocal_nets.run.monitors import Monitors
from nonlocal_nets.run.non_finite import NonFinite
from nonlocal_nets.run.predictions import Predictions
from nonlocal_nets.run.ranges import check_nulls, check_ranges
from nonlocal_nets.run.repeatable import Repeatable
from nonlocal_nets.run.signals import SaveOnSignal
from nonlocal_nets.run.summary import Summary

ROOT = "runs"  # of all runs
VERBS = {  # besides those of Lightning; by name, because experiments imports this module
    "compare": "nonlocal_nets.experiments.compare",
    "sweep": "nonlocal_nets.experiments.sweep",
}


class NonLocalCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of any task on any data module.

    Args:
        verb: that of the command, whose parser alone is built; None: those of all.
        **arguments: of LightningCLI.
    """

    def __init__(self, verb: str | None = None, **arguments: Any) -> None:
        self.verb = verb
        super().__init__(**arguments)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # where the static method is called
        found = LightningCLI.subcommands()
        return found if self.verb is None else {self.verb: found[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--project",
            type=str,
            default="default",
            help="The run's folder is <trainer.default_root_dir>/<project>/<id>.",
        )
        help_id = "Name of the run; default: that of the SLURM job, torchrun or sweep, or the time. One id, one run."
        parser.add_argument("--id", type=str | None, default=None, help=help_id)
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(NonFinite, "non_finite")
        counts_before_fractions(parser)
        for name, title in TITLES.items():
            parser.groups[name].title = title  # type: ignore[index]
        parser.set_defaults(
            {
                "trainer.default_root_dir": ROOT,
                "checkpoint.save_last": False,  # LastCheckpoint writes last.ckpt
                "checkpoint.filename": "epoch={epoch}-step={step}",
                "checkpoint.auto_insert_metric_name": False,  # "val/accuracy" in a file name would be a folder
            }
        )
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without Lightning's warning where `main` is called from Python: what is given there is the whole command."""
        self.given = list(args)
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """Without Lightning's line on stderr: an error should be the only one there. The config has the seed."""
        seed = self.args.seed_everything
        if seed is not False:
            if not 0 <= int(seed) < 2**32:
                raise ValueError(f"seed_everything must be from 0 to {2**32 - 1}, got {seed}")
            seed = pl.seed_everything(None if seed is True else seed, workers=True, verbose=False)
            self.args.seed_everything = seed

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyper-parameters beat the command line here. The command line decides."""

    def before_instantiate_classes(self) -> None:
        check_ranges(self.args.trainer, str(self.subcommand))
        for group in ("model", "data"):
            check_nulls(self.args.get(group), group)
        self.args.id = choose_id(self)
        self.checkpoint = choose_checkpoint(self)
        self.weights = None if self.checkpoint else choose_weights(self)
        self.args.ckpt_path = None if self.checkpoint is None else str(self.checkpoint)
        os.environ[RUN_ID] = self.args.id
        wandb.complete(self.args.trainer, self.args.project, self.args.id, self.run_folder)

    def instantiate_classes(self) -> None:
        """With a checkpoint that matches the model and the data."""
        source = self.checkpoint or self.weights
        saved = {} if source is None else load(source)
        self.resumed_step = saved.get("global_step") if self.checkpoint else None
        begin = self.subcommand == "fit"
        of_its_own = begin and self.checkpoint is None  # data that weights to begin from say nothing about
        with trained_on({} if of_its_own else saved.get(MEANING, {}), predicting=self.subcommand == "predict"):
            super().instantiate_classes()
        if hasattr(self.model, "check_data"):
            self.model.check_data(self.datamodule)
        if self.checkpoint is not None:
            check_checkpoint(self.checkpoint, saved, self.model, self.datamodule, begin)
        elif self.weights is not None:
            check_weights(self.weights, saved, self.model, self.datamodule, begin)

    def finish_wandb(self) -> None:
        wandb.finish(self.trainer)

    after_fit = after_validate = after_test = after_predict = finish_wandb

    @property
    def args(self) -> Any:
        """The resolved config of the command, fit or test."""
        return self.config[str(self.subcommand)]

    @property
    def parser_of_the_verb(self) -> Any:
        return self._parser(self.subcommand)

    def folder_of(self, run_id: str) -> RunFolder:
        """The folder of a run with an id, by the other arguments of the command, and what is in it."""
        args = self.args
        checkpoints = args.checkpoint.dirpath
        given = args.trainer.default_root_dir or ROOT  # null is Lightning's default: no folder given
        root = expanded(given)
        return RunFolder(root, str(args.project), run_id, None if checkpoints is None else expanded(checkpoints))

    @property
    def folder(self) -> RunFolder:
        """The run's folder and what is in it."""
        return self.folder_of(str(self.args.id))

    @property
    def run_folder(self) -> Path:
        """The run's folder: <trainer.default_root_dir>/<project>/<id>."""
        return self.folder.path

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """With checkpoints in the run's folder, and in fit with two loggers; `--trainer.logger` adds to these."""
        given, folder = self.config_init[str(self.subcommand)].trainer.logger, self.folder
        if given is not False:
            others = [] if given in (None, True) else given if isinstance(given, list) else [given]
            default = [self._tensorboard(), Curve(folder.path)] if self.subcommand == "fit" else []
            kwargs["logger"] = [*default, *others] or False
        trainer = super().instantiate_trainer(**kwargs, default_root_dir=folder.path)  # where callbacks find it
        prepare(trainer)
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        if self.args.trainer.enable_checkpointing is not False:
            trainer.callbacks.append(LastCheckpoint(folder.checkpoints, self.args.checkpoint))  # type: ignore[attr-defined]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BestCheckpoint) and folder.checkpoint_dir is not None:
                callback.dirpath = str(folder.checkpoints.resolve())
            elif isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder.checkpoints)
            if isinstance(callback, Failures):
                callback.folder = folder.path
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """With enable_checkpointing=false without the run's own checkpoints; Lightning refuses one of the user's."""
        if config["enable_checkpointing"] is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, BestCheckpoint)]
        return super()._instantiate_trainer(config, callbacks)

    def _tensorboard(self) -> TensorBoardLogger:
        """A resumed run hides what was logged after its checkpoint, and will be again."""
        folder = self.folder
        return TensorBoardLogger(folder.root, folder.project, folder.id, purge_step=self.resumed_step)


def always_on() -> list[pl.Callback]:
    """The callbacks of every run."""
    return [Repeatable(), EpochMeans(), Gradients(), Identity(), Monitors(), Predictions(), Summary()]


def main(args: list[str] | None = None) -> Any:
    """Run one command, as `train.py` does; by default that of the command line.

    Args:
        args: a verb and its arguments, such as ["fit", "--config", "configs/image/cued_digits.yaml"].

    Returns:
        The `NonLocalCLI` of the command; for compare and sweep, what their `main` returns.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for large tensors, before the first (benchmarks/)
    torch.set_flush_denormal(True)  # the tails of a softmax are denormal numbers: up to 8 times slower on a CPU
    args = sys.argv[1:] if args is None else args
    if not args:
        print(MANUAL.format(program=program()))
        raise SystemExit(0)
    verbs = LightningCLI.subcommands()
    check_verb(args[0], (*verbs, *VERBS))
    if args[0] in VERBS:
        return importlib.import_module(VERBS[args[0]]).main(args[1:])
    check_args(args)
    signals, failures = SaveOnSignal(), Failures()
    with signals.listening(), claim.released(), failures.one_line():
        return NonLocalCLI(
            args[0] if args[0] in verbs else None,
            model_class=pl.LightningModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=Parser,
            trainer_defaults={"callbacks": [*always_on(), failures, signals]},
            auto_configure_optimizers=False,
            args=nested_nulls(args),
        )
