"""The resolved config of a run, which repeats it."""

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import set_dumper
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger

from nonlocal_nets.files import replacing
from nonlocal_nets.run.folder import CONFIG


class Dumper(yaml.SafeDumper):
    """Puts quotes around texts that jsonargparse reads as numbers and yaml 1.1 does not, such as commit 25921e05."""


Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?"), list("-+.0123456789")
)
Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))  # texts of an enumeration


def dump(config: Any) -> str:
    """A config as yaml, in the order of its keys."""
    text: str = yaml.dump(config, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


set_dumper("yaml", dump)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run's folder when training starts (Lightning would follow the logger).

    A resumed run's is replaced after all checks: a command that is refused leaves it as it was.

    wandb, which compares runs by their configs, gets it too.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pass

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.text, path = resolved(self.parser, self.config), Path(trainer.default_root_dir) / CONFIG
            if not path.is_file():
                _write(path, self.text)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_hyperparams(yaml.safe_load(self.text))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            _write(Path(trainer.default_root_dir) / CONFIG, self.text)


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)


def resolved(parser: LightningArgumentParser, config: Any) -> str:
    """The config with all defaults; without the checkpoint, which belongs to one command of the run."""
    config = config.clone()
    config.ckpt_path = None
    text: str = parser.dump(config, skip_none=False)
    return text


def same_run(text: str, path: Path) -> bool:
    """Whether a resolved config and that in a file are of one run, perhaps on another number of processes."""
    if not path.is_file():
        return False
    return _of_the_run(yaml.safe_load(text)) == _of_the_run(yaml.safe_load(path.read_text()))


def _of_the_run(config: dict[str, Any]) -> dict[str, Any]:
    trainer = {k: v for k, v in config["trainer"].items() if k not in ("num_nodes", "devices", "logger")}
    return {name: value for name, value in config.items() if name != "id"} | {"trainer": trainer}
