"""What a command leaves open: the id of its run, and the checkpoint that it starts from."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from nonlocal_nets.run import claim
from nonlocal_nets.run.checkpoints import best_checkpoint, newest
from nonlocal_nets.run.config import resolved, same_run
from nonlocal_nets.run.folder import CONFIG, RunFolder, shared_id

INITIAL = "initial"  # --ckpt_path of a network that has not been trained


def choose_id(cli: Any) -> str:
    """The id of a command's run; a fit reserves its folder.

    Raises:
        ValueError: a name that is no folder's, or a fit into a folder that holds another run or is in use.
    """
    args, fit, first = cli.args, cli.subcommand == "fit", getattr(rank_zero_only, "rank", 0) == 0
    claim.check_name("--project", str(args.project))
    run_id, job = shared_id() if args.id is None else args.id, os.environ.get("SLURM_JOB_ID")
    if run_id is None or (fit and args.id is None and run_id == job):
        return claim.unused(
            run_id or claim.stamp(), cli.folder_of, lambda folder: _goes_on(cli, folder), lock=fit and first
        )
    claim.check_name("--id", str(run_id))
    if fit and first:
        folder = cli.folder_of(str(run_id))
        claim.claim(folder, resume=_is_of(folder, args.ckpt_path))
    return str(run_id)


def _is_of(folder: RunFolder, checkpoint: str | None) -> bool:
    """Whether a checkpoint that a user names is one of the run in a folder."""
    if checkpoint in (None, INITIAL):
        return False
    return checkpoint in ("last", "best") or Path(checkpoint).resolve().parent == folder.checkpoints.resolve()


def _goes_on(cli: Any, folder: RunFolder) -> bool:
    """Whether a folder holds the run of this command, which was requeued, and not another one of the same job."""
    if cli.args.ckpt_path != "last" or "SLURM_JOB_ID" not in os.environ:
        return False
    return same_run(resolved(cli.parser_of_the_verb, cli.args), folder.config)


def choose_checkpoint(cli: Any) -> Path | None:
    """The file that a command starts from; None: the initial weights.

    A fit starts from these unless a checkpoint is given. The others take the best of their run, else its last.

    Raises:
        ValueError: no such checkpoint, one that cannot be read, or a network that has not been trained.
    """
    given, folder = cli.args.ckpt_path, cli.folder
    if given == INITIAL or (given is None and cli.subcommand == "fit"):
        return None
    if given is None:
        given_weights = _is_given(cli, "--model.weights", "--model.init_args.weights")
        return _trained(folder, cli.args.model.init_args.weights if given_weights else None)
    if given == "best":  # Lightning knows it only in the process that trained
        return best_checkpoint(folder.last)
    if given == "last":
        path = last_checkpoint(folder.checkpoints, begin=cli.subcommand == "fit")
        if path is None:
            _check_moved(cli)
        return path
    return Path(given)


def _is_given(cli: Any, *options: str) -> bool:
    """Whether the command itself has one of these options, and not only a config."""
    return any(arg.partition("=")[0] in options for arg in cli.given)


def _check_moved(cli: Any) -> None:
    """Raise a ValueError where a run is named by its config only, which does not name the folder that it is in."""
    if _is_given(cli, "--id"):
        return
    for config in (Path(str(path)) for path in cli.args.get("config") or []):
        if config.name == CONFIG and any(config.parent.glob("checkpoints/*.ckpt")):
            advice = "give --trainer.default_root_dir, --project and --id"
            raise ValueError(f"the run in {config.parent} is {cli.run_folder} in its config: {advice}")


def choose_weights(cli: Any) -> Path | None:
    """The file of weights that a network starts from; None where it is not one, or the untrained network is meant."""
    weights = cli.args.model.get("init_args", {}).get("weights")
    path = None if weights is None or cli.args.ckpt_path == INITIAL else Path(str(weights))
    return path if path is not None and path.is_file() else None


def _trained(folder: RunFolder, weights: str | None) -> Path | None:
    """The best checkpoint of a run, else its last one; None where there is none, but weights that the user asks for."""
    kind, path = "best", None
    with suppress(ValueError):
        path = best_checkpoint(folder.last)
    if path is None or not path.is_file():
        kind, (path, unreadable) = "last", newest(folder.checkpoints)
        for reason in unreadable:
            rank_zero_warn(f"{reason}; taking the one before it")
    if path is None and weights is None:
        advice = f"--config=<run>/config.yaml or --ckpt_path=<file>; an untrained network: --ckpt_path={INITIAL}"
        raise ValueError(f"no checkpoint in {folder.checkpoints}; give {advice}")
    rank_zero_info(f"from the weights {weights}" if path is None else f"from the {kind} checkpoint, {path}")
    return path


def last_checkpoint(folder: Path, begin: bool) -> Path | None:
    """The newest checkpoint that can be read, which is logged; None where a run begins."""
    path, unreadable = newest(folder, resume=begin)
    for reason in unreadable:
        rank_zero_warn(f"{reason}; taking the one before it")
    if path is None and (unreadable or not begin):
        raise ValueError(f"no checkpoint that can be read in {folder}")
    rank_zero_info(f"--ckpt_path=last: {path or f'none in {folder} yet, starting the run'}")
    return path
