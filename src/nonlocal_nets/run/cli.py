"""The command line: LightningCLI with one folder a run, which holds all that is needed to repeat it."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

import nonlocal_nets.callbacks  # with data and tasks: so that `class_path` may be a bare name
import nonlocal_nets.tasks  # noqa: F401
from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.run import wandb
from nonlocal_nets.run.arguments import FROM_DATA, check_args, nested_nulls
from nonlocal_nets.run.checkpoints import (
    BestCheckpoint,
    CheckpointWriteError,
    LastCheckpoint,
    WholeCheckpoints,
    best_checkpoint,
    newest,
)
from nonlocal_nets.run.errors import Parser, debug, one_line_for
from nonlocal_nets.run.folder import CONFIG, RUN_ID, RunFolder, shared_id, unused_id
from nonlocal_nets.run.help import TITLES
from nonlocal_nets.run.lightning import counts_before_fractions
from nonlocal_nets.run.predictions import Predictions
from nonlocal_nets.run.repeatable import Repeatable
from nonlocal_nets.run.signals import SaveOnSignal
from nonlocal_nets.run.summary import Summary
from nonlocal_nets.weights import check_fit, read

ROOT = "runs"  # of all runs
VERBS = {  # besides those of Lightning; experiments stand on this module, so that they are found by name
    "compare": "nonlocal_nets.experiments.compare",
    "sweep": "nonlocal_nets.experiments.sweep",
}


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's folder when training starts (Lightning would follow the logger).

    wandb, which compares runs by their configs, gets it too.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / CONFIG
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(path), skip_none=False, overwrite=True, multifile=False)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_hyperparams(yaml.safe_load(path.read_text()))


class NonLocalCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of any task on any data module."""

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
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """Without Lightning's line on stderr: an error should be the only one there. The config has the seed."""
        seed = self.args.seed_everything
        if seed is not False:
            seed = pl.seed_everything(None if seed is True else seed, workers=True, verbose=False)
            self.args.seed_everything = seed

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyper-parameters beat the command line here. The command line decides."""

    def before_instantiate_classes(self) -> None:
        if self.args.id is None:
            self.args.id = shared_id() or unused_id(self.folder.root / self.args.project)
        os.environ[RUN_ID] = self.args.id
        wandb.complete(self.args.trainer, self.args.project, self.args.id, self.run_folder)

    def instantiate_classes(self) -> None:
        """What a model, a data module or the trainer refuses ends in one line, without a traceback."""
        with one_line_for(ValueError, OSError, ModuleNotFoundError, MisconfigurationException):
            super().instantiate_classes()
            if hasattr(self.model, "check_data"):
                self.model.check_data(self.datamodule)

    def check_checkpoint(self) -> None:
        """Before any work, refuse a file that does not exist, is no checkpoint, or belongs to another network."""
        given = self.args.ckpt_path
        if given in (None, "hpc"):
            return
        with one_line_for(ValueError):
            if given == "best":  # Lightning knows it only in the process that trained
                given = best_checkpoint(self.folder.last)
            elif given == "last":
                given = self.last_checkpoint(self.folder.checkpoints)
            self.config_init[str(self.subcommand)].ckpt_path = None if given is None else str(given)
            if given is not None:
                check_fit(read(given), self.model.state_dict(), given)

    def last_checkpoint(self, folder: Path) -> Path | None:
        """The newest checkpoint that can be read, which is logged; None where a run starts for the first time."""
        path, torn = newest(folder)
        for reason in torn:
            rank_zero_warn(f"{reason}; taking the one before it")
        if path is None and (torn or self.subcommand != "fit"):  # Lightning would test the initial weights
            raise ValueError(f"no checkpoint that can be read in {folder}")
        rank_zero_info(f"--ckpt_path=last: {path or f'none in {folder} yet, starting the run'}")
        return path

    before_fit = before_validate = before_test = before_predict = check_checkpoint

    def finish_wandb(self) -> None:
        wandb.finish(self.trainer)

    after_fit = after_validate = after_test = after_predict = finish_wandb

    @property
    def args(self) -> Any:
        """The resolved config of the command, fit or test."""
        return self.config[str(self.subcommand)]

    @property
    def folder(self) -> RunFolder:
        """The run's folder and what is in it."""
        args = self.args
        checkpoints = args.checkpoint.dirpath
        root = Path(args.trainer.default_root_dir or ROOT)  # the user's null is Lightning's default: no folder given
        return RunFolder(root, str(args.project), str(args.id), None if checkpoints is None else Path(checkpoints))

    @property
    def run_folder(self) -> Path:
        """The run's folder: <trainer.default_root_dir>/<project>/<id>."""
        return self.folder.path

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """With checkpoints and two loggers in the run's folder; `--trainer.logger` adds to these."""
        given, folder = self.config_init[str(self.subcommand)].trainer.logger, self.folder
        if given is not False:
            others = [] if given in (None, True) else given if isinstance(given, list) else [given]
            # a folder for each start: the CSV logger would delete the rows of the start before
            csv = CSVLogger(folder.path, name="csv")
            kwargs["logger"] = [TensorBoardLogger(folder.root, folder.project, folder.id), csv, *others]
        trainer = super().instantiate_trainer(**kwargs, default_root_dir=folder.path)  # where callbacks find it
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        trainer.callbacks.append(LastCheckpoint(folder.checkpoints, self.args.checkpoint))  # type: ignore[attr-defined]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder.checkpoints)
        return trainer


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
    if not args:  # train.py's docstring is the manual
        print(sys.modules["__main__"].__doc__)
        raise SystemExit(0)
    if args[0] in VERBS:
        return importlib.import_module(VERBS[args[0]]).main(args[1:])
    if debug():
        os.environ["JSONARGPARSE_DEBUG"] = "true"  # jsonargparse takes no 1
    check_args(args)
    with one_line_for(CorruptFileError, CheckpointWriteError):  # met in the middle of a run
        return NonLocalCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            parser_class=Parser,
            trainer_defaults={"callbacks": [Repeatable(), SaveOnSignal(), Predictions(), Summary()]},
            auto_configure_optimizers=False,
            args=nested_nulls(args),
        )
