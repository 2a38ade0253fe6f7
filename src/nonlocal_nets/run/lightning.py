"""Lightning as this package needs it. What works around it is in this folder, and was written for one version."""

import logging
import warnings

from pytorch_lightning.__version__ import version
from pytorch_lightning.cli import LightningArgumentParser

WRITTEN_FOR = "2.6"

if not version.startswith(f"{WRITTEN_FOR}."):
    raise ImportError(f"nonlocal_nets.run was written for pytorch-lightning {WRITTEN_FOR}, this is {version}")

# Lightning 2.6 on torch >= 2.13 warns of itself at every start: utilities/_pytree.py still makes a LeafSpec.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
# It cannot know that the order of the samples is resumed (repeatable.py).
warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
# And it advertises a cloud service.
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: " Tip: " not in record.getMessage())


def counts_before_fractions(parser: LightningArgumentParser) -> None:
    """Let --trainer.limit_train_batches=1 be one batch, not all of them, and the same for the other numbers.

    A parser tries the types of a union in turn. The Trainer's is Optional[Union[int, float]], but typing keeps one
    object for all orders of a union: where another library wrote it first, as float or int, 1 becomes 1.0.
    """
    for action in parser._actions:
        if action.dest.startswith("trainer.") and getattr(action, "_typehint", None) == (int | float | None):
            action._typehint = int | float | None  # type: ignore[attr-defined]
