"""Weights & Biases beside the local loggers: where its files go, whether it is offline, and when a run ends."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_info


def complete(trainer_args: Any, project: str, run_id: str, folder: Path) -> None:
    """Give the WandbLoggers what the user left open: project and id of the run, and its folder for the files.

    Without an API key wandb logs offline, instead of asking for one.

    Args:
        trainer_args: the trainer's config.
        project: of the run.
        run_id: one id, one run: a job that was requeued goes on in its run.
        folder: the run's.
    """
    given = trainer_args.logger
    for logger in given if isinstance(given, list) else [given]:
        if str(getattr(logger, "class_path", "")).endswith(".WandbLogger"):
            folder.mkdir(parents=True, exist_ok=True)  # or wandb goes elsewhere
            for name, value in {"project": project, "id": run_id, "save_dir": folder}.items():
                if logger.init_args.get(name) in (None, "."):
                    logger.init_args[name] = str(value)
            if "WANDB_MODE" not in os.environ and not has_key():
                os.environ["WANDB_MODE"] = "offline"
                rank_zero_info(f"no key of wandb's: offline; later wandb login, wandb sync {folder}/wandb/offline-*")


def has_key() -> bool:
    """Whether wandb finds a key in the environment or the netrc file, where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        file = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return file.authenticators(str(host)) is not None


def finish(trainer: pl.Trainer) -> None:
    """The run ends with the command, not with the process: the next command in it is another run."""
    if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
        import wandb

        wandb.finish()
