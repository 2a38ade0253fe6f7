"""The command line: LightningCLI with one folder a run, which holds all that is needed to repeat it."""

import itertools
import logging
import os
import sys
import time
import warnings
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
from nonlocal_nets.callbacks.run_folder import run_folder
from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.run import wandb
from nonlocal_nets.run.checkpoints import (
    CheckpointWriteError,
    LastCheckpoint,
    WholeCheckpoints,
    best_checkpoint,
    newest,
)
from nonlocal_nets.run.errors import FROM_DATA, Parser, check_words, debug, one_line_for
from nonlocal_nets.run.help import TITLES
from nonlocal_nets.run.predictions import Predictions
from nonlocal_nets.run.repeatable import Repeatable
from nonlocal_nets.run.signals import SaveOnSignal
from nonlocal_nets.run.summary import Summary
from nonlocal_nets.weights import check_fit, read

RUNS = Path("runs")
RUN_ID = "NONLOCAL_NETS_RUN_ID"

# Lightning 2.6.6 on torch >= 2.13 warns of itself at every start: utilities/_pytree.py still makes a LeafSpec.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
# And it advertises a cloud service.
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: " Tip: " not in record.getMessage())


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config beside the checkpoints when training starts (Lightning would follow the logger).

    wandb, which compares runs by their configs, gets it too.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            folder = run_folder(trainer)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_hyperparams(yaml.safe_load((folder / "config.yaml").read_text()))


class NonLocalCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of any task on any data module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--project", type=str, default="default", help="The run's folder is runs/<project>/<id>.")
        help_id = "Name of the run; default: that of the SLURM job, torchrun or sweep, or the time. One id, one run."
        parser.add_argument("--id", type=str | None, default=None, help=help_id)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        for name, title in TITLES.items():
            parser.groups[name].title = title  # type: ignore[index]
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.save_last": False,  # `last_checkpoint` writes last.ckpt
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
        """Without Lightning's line on stderr, which would stand before an error's; the config has the seed."""
        seed = self.words.seed_everything
        if seed is not False:
            seed = pl.seed_everything(None if seed is True else seed, workers=True, verbose=False)
            self.words.seed_everything = seed

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyper-parameters beat the command line here. The command line decides."""

    def before_instantiate_classes(self) -> None:
        if self.words.id is None:
            self.words.id = shared_id() or unused_id(RUNS / self.words.project)
        os.environ[RUN_ID] = self.words.id  # for the processes that Lightning starts with the same command
        wandb.place(self.words.trainer, self.words.project, self.words.id, self.run_folder)

    def instantiate_classes(self) -> None:
        """A value that a model, a data module or the trainer refuses is the user's to mend: one line, no traceback."""
        with one_line_for(ValueError, OSError, ModuleNotFoundError, MisconfigurationException):
            super().instantiate_classes()
            if hasattr(self.model, "check_data"):
                self.model.check_data(self.datamodule)

    def check_checkpoint(self) -> None:
        """Refuse, before any work, a checkpoint that is not there, is none, or is of another network."""
        given = self.words.ckpt_path
        if given in (None, "hpc"):
            return
        folder = self.run_folder / "checkpoints"
        with one_line_for(ValueError):
            if given == "best":  # Lightning knows it only in the process that trained
                given = best_checkpoint(folder / "last.ckpt")
            elif given == "last":
                given = self.last_checkpoint(folder)
            self.config_init[str(self.subcommand)].ckpt_path = None if given is None else str(given)
            if given is not None:
                check_fit(read(given), self.model.state_dict(), given)

    def last_checkpoint(self, folder: Path) -> Path | None:
        """The newest that can be read, or None where a run starts for the first time; says which."""
        path, torn = newest(folder)
        for reason in torn:
            rank_zero_warn(f"{reason}; the one before it is taken")
        if path is None and (torn or self.subcommand != "fit"):  # Lightning would test the weights of the start
            raise ValueError(f"no checkpoint that can be read in {folder}")
        rank_zero_info(f"--ckpt_path=last: {path or f'none in {folder} yet, the run starts'}")
        return path

    before_fit = before_validate = before_test = before_predict = check_checkpoint

    def finish_wandb(self) -> None:
        wandb.finish(self.trainer)

    after_fit = after_validate = after_test = after_predict = finish_wandb

    @property
    def words(self) -> Any:
        """The resolved config of the command, fit or test."""
        return self.config[str(self.subcommand)]

    @property
    def run_folder(self) -> Path:
        """Where the run leaves everything: runs/<project>/<id>."""
        return RUNS / str(self.words.project) / str(self.words.id)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """With checkpoints and two loggers in the run's folder; what `--trainer.logger` names comes on top of these."""
        given = self.config_init[str(self.subcommand)].trainer.logger
        if given is not False:
            others = [] if given in (None, True) else given if isinstance(given, list) else [given]
            # the CSV logger gets a folder a start, for it would delete the rows of the one before
            csv = CSVLogger(self.run_folder, name="csv")
            kwargs["logger"] = [TensorBoardLogger(RUNS, name=self.words.project, version=self.words.id), csv, *others]
        trainer = super().instantiate_trainer(**kwargs)
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        trainer.callbacks.append(LastCheckpoint(self.words.checkpoint))  # type: ignore[attr-defined]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.run_folder / "checkpoints")
        return trainer


def shared_id() -> str | None:
    """The id that all processes of a run find: of a sweep, a SLURM job, torchrun, or the process that started them."""
    names = ["WANDB_RUN_ID", "SLURM_JOB_ID", *(["TORCHELASTIC_RUN_ID", RUN_ID] if "LOCAL_RANK" in os.environ else [])]
    return next((os.environ[name] for name in names if os.environ.get(name, "none") != "none"), None)


def unused_id(project: Path) -> str:
    """The time, and a number where another run began in the same second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    ids = (stamp if k == 1 else f"{stamp}-{k}" for k in itertools.count(1))
    return next(name for name in ids if not (project / name).exists())


def main(args: list[str] | None = None) -> NonLocalCLI:
    """Run one command, as `train.py` does; `args` are its words, by default those of the command line."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for large tensors, before the first (benchmarks/)
    torch.set_flush_denormal(True)  # the tails of a softmax are denormal numbers: up to 8 times slower on a CPU
    words = sys.argv[1:] if args is None else args
    if not words:  # train.py's docstring is the manual
        print(sys.modules["__main__"].__doc__)
        raise SystemExit(0)
    if debug():
        os.environ["JSONARGPARSE_DEBUG"] = "true"  # jsonargparse takes no 1
    check_words(words)
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
            args=words,
        )
