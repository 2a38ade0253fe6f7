"""The manual of train.py, and its help: for every argument a sentence or two, its type and its default."""

import re
import sys
from argparse import Action
from pathlib import Path

from jsonargparse import DefaultHelpFormatter

LONGEST = 280  # characters of explanation; Lightning's go on for up to 1,500
TITLES = {
    "trainer": "trainer: how it runs, Lightning's Trainer",
    "model": "model: a task of nonlocal_nets.tasks, or any LightningModule",
    "data": "data: a data set of nonlocal_nets.data, or any LightningDataModule",
    "checkpoint": "checkpoint: when to save, and what is the best; Lightning's ModelCheckpoint",
    "non_finite": "non_finite: what to do about a loss or a gradient that is NaN or infinite",
}
CLASS = "A class, then its arguments, --{0}.<argument>=<value>; --{0}.help CLASS lists them"
OURS = {  # where the command line differs from Lightning's documentation
    "model": f"{CLASS.format('model')}.",
    "data": f"{CLASS.format('data')}.",
    "checkpoint.dirpath": "Folder of the checkpoints; null: <trainer.default_root_dir>/<project>/<id>/checkpoints.",
    "trainer.default_root_dir": "Folder of all runs; each has a folder <project>/<id> in it.",
    "trainer.logger": "A logger besides fit's, TensorBoard and metrics.csv, such as WandbLogger; false: none at all.",
    "checkpoint.save_last": "Leave it false: last.ckpt is always written, as often as the best one is looked for.",
    "ckpt_path": 'A checkpoint, or "last" or "best" of the run. The command line decides, not the checkpoint.',
}


MANUAL = """Train and evaluate non-local networks, and compare them.

    python {program} fit      --config configs/image/cued_digits.yaml
    python {program} fit      --config configs/image/cued_digits.yaml --model.blocks.pairwise=dot_product
    python {program} fit      --config configs/image/cued_digits.yaml --model.blocks.at=none --model.optimizer.lr=0.001
    python {program} fit      --config configs/image/cued_digits.yaml --config configs/data/elpv.yaml
    python {program} fit      --config runs/<project>/<id>/config.yaml --ckpt_path=last     resume it
    python {program} test     --config runs/<project>/<id>/config.yaml     its best checkpoint; also validate
    python {program} predict  --config runs/<project>/<id>/config.yaml --data.path=<file or folder>
    python {program} compare  configs/image/cued_digits.yaml --variant "with:" --variant "none: --model.blocks.at=none"
    python {program} sweep    configs/sweeps/pairwise.yaml --processes 2
    python {program} fit      --help                                    and --model.help=ImageClassification

Every key of a config can be given on the command line, which wins. The folder of a run, runs/<project>/<id>, holds its
resolved config, its checkpoints, its logs (TensorBoard and CSV) and its pictures; --trainer.default_root_dir=<folder>
puts it elsewhere. `python -m nonlocal_nets` is the same program, from any folder, in which it also finds packages, such
as that of --data=mypkg.MyData."""


def program() -> str:
    """What follows `python` in a command like the one that was given: train.py, or -m nonlocal_nets."""
    return "train.py" if Path(sys.argv[0]).name == "train.py" else "-m nonlocal_nets"


class Help(DefaultHelpFormatter):
    """jsonargparse's help, cut to what can be read in a terminal: plain words, whole sentences, bare class names."""

    def add_usage(self, usage: str | None, *args: object, **kwargs: object) -> None:
        """One line; the arguments follow anyway."""
        prog = re.sub(r" \[.*\]", "", self._prog)
        super().add_usage(usage or f"{prog} [--config FILE] [--<argument>=<value> ...]", *args, **kwargs)  # type: ignore[arg-type]

    def _get_help_string(self, action: Action) -> str:
        given, whole = action.help or "", super()._get_help_string(action)
        if not whole.startswith(given):  # --help itself
            return whole
        text, default = explain(OURS.get(action.dest, given))
        types = whole.removeprefix(given)
        if (
            default not in (None, "None") and action.default is None
        ):  # Lightning writes None for "whatever my documentation says"
            types = types.replace("default: %(default)s", f"default: {default}")
        return text + re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", types)


def explain(text: str) -> tuple[str, str | None]:
    """The first sentences of a documentation, without its markup, and the default that it names."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", " ".join(text.split()))
    text = re.sub(r"``?([^`]*)``?", r"\1", text)
    named = re.search(r"(?:^|(?<=[.)] ))Default: (\S+?)\.?(?: |$)", text)
    text = text.replace(named[0], "") if named else text
    sentences = re.split(r"(?<=[a-z0-9)\"'\]]\.) +(?=[A-Z])", text.strip())
    kept = sentences[0]
    for sentence in sentences[1:]:
        if len(kept) + len(sentence) >= LONGEST:
            break
        kept += f" {sentence}"
    return kept, named[1].strip("'\"") if named else None
