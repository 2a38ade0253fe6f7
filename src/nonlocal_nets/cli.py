"""The command line: LightningCLI with one folder a run, which holds all that is needed to repeat it."""

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import nonlocal_nets.data
import nonlocal_nets.tasks  # noqa: F401  # both: so that `class_path` may be the bare name of a class
from nonlocal_nets.callbacks import Predictions, RandomState
from nonlocal_nets.callbacks.run_folder import run_folder
from nonlocal_nets.cli_errors import Parser, check_configs, debug, fail, one_line_for
from nonlocal_nets.tasks.weights import check_fit, read

RUNS = Path("runs")

# Lightning 2.6.6 on torch >= 2.13 warns of itself at every start: utilities/_pytree.py still makes a LeafSpec.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config beside the checkpoints when training starts (Lightning would follow the logger)."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            folder = run_folder(trainer)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)


class NonLocalCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of any task on any data module."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--project", default="default", help="The run's folder is runs/<project>/<id>.")
        help_id = "Name of the run; default: $SLURM_JOB_ID, or the time. The same id goes on in the same folder."
        parser.add_argument("--id", type=str | None, default=None, help=help_id)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "epoch={epoch}-step={step}",
                "checkpoint.auto_insert_metric_name": False,  # "val/accuracy" in a file name would be a folder
            }
        )
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without Lightning's warning where `main` is called from Python: what is given there is the whole command."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyper-parameters beat the command line here. The command line decides."""

    def before_instantiate_classes(self) -> None:
        if self.words.id is None:
            self.words.id = os.environ.get("SLURM_JOB_ID") or time.strftime("%Y%m%d-%H%M%S")

    def instantiate_classes(self) -> None:
        """A value that a model, a data module or the trainer refuses is the user's to mend: one line, no traceback."""
        with one_line_for(ValueError, OSError, ModuleNotFoundError, MisconfigurationException):
            super().instantiate_classes()

    def check_checkpoint(self) -> None:
        """Refuse, before any work, a checkpoint that is not there, is none, or is of another network."""
        given = self.words.ckpt_path
        if given in (None, "best", "hpc"):
            return
        if given == "last":
            # Lightning would go on without weights: right for the first start of a run, a wrong figure in a test
            if self.subcommand != "fit" and not list((self.run_folder / "checkpoints").glob("last*.ckpt")):
                fail(f"no last checkpoint in {self.run_folder / 'checkpoints'}")
            return
        with one_line_for(ValueError):
            check_fit(read(given), self.model.state_dict(), given)

    before_fit = before_validate = before_test = before_predict = check_checkpoint

    @property
    def words(self) -> Any:
        """The resolved config of the command, fit or test."""
        return self.config[str(self.subcommand)]

    @property
    def run_folder(self) -> Path:
        """Where the run leaves everything: runs/<project>/<id>."""
        return RUNS / str(self.words.project) / str(self.words.id)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """With our loggers where none is asked for, and checkpoints in the run's folder."""
        config = self.words
        if config.trainer.logger is None or config.trainer.logger is True:
            # the CSV logger gets a folder a start, for it would delete the rows of the one before
            kwargs["logger"] = [
                TensorBoardLogger(RUNS, name=config.project, version=config.id),
                CSVLogger(self.run_folder, name="csv"),
            ]
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.run_folder / "checkpoints")
        return trainer


def main(args: list[str] | None = None) -> NonLocalCLI:
    """Run one command, as `train.py` does; `args` are its words, by default those of the command line."""
    torch.set_flush_denormal(True)  # the tails of a softmax are denormal numbers: up to 8 times slower on a CPU
    words = sys.argv[1:] if args is None else args
    if not words:  # train.py's docstring is the manual
        print(sys.modules["__main__"].__doc__)
        raise SystemExit(0)
    if debug():
        os.environ["JSONARGPARSE_DEBUG"] = "true"  # jsonargparse takes no 1
    check_configs(words)
    return NonLocalCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        parser_class=Parser,
        trainer_defaults={"callbacks": [RandomState(), Predictions()]},
        auto_configure_optimizers=False,
        args=words,
    )
