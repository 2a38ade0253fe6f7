"""Classification of signals or tokens of any lengths with a residual 1-D network, non-local or not."""

from collections.abc import Sequence

import pytorch_lightning as pl
import torch

from nonlocal_nets.nn.backbones.sequence import sequence_backbone
from nonlocal_nets.tasks.classification import Classification, accuracies
from nonlocal_nets.tasks.options import Blocks, Loss, Optimizer, Schedule
from nonlocal_nets.weights import load_weights


class SequenceClassification(Classification):
    """Cross-entropy on padded signals or tokens with labels (B,). Padding changes nothing.

    Batches are ((x, mask), labels): signals x (B, C, L) or tokens (B, L), and mask, bool (B, L), True at what is no
    padding, or None where nothing is padded.

    Args:
        num_classes: number of classes; on the command line it comes from the data.
        backbone: "signal_resnet", or "token_resnet", which embeds its input.
        input_size: channels of a signal, or the number of tokens there are, and the length for which the report gives
            the blocks' costs. On the command line it comes from the data.
        widths: channels of each stage, layer1, layer2, ...
        units: residual units in a stage.
        stem_stride: stride of the stem.
        stage_stride: stride of each stage but the first.
        dropout: before the classifier.
        blocks: the non-local blocks.
        loss: the loss.
        optimizer: the optimiser.
        schedule: its learning rate over the run.
        weights: what to start from: a checkpoint of ours or a file with a state dict; the classifier may differ, and
            blocks may be absent there. null: random weights.
    """

    may_differ = Classification.may_differ | {"dropout"}

    def __init__(
        self,
        num_classes: int,
        backbone: str = "signal_resnet",
        input_size: tuple[int, int] = (1, 1024),
        widths: Sequence[int] = (64, 128, 128),
        units: int = 1,
        stem_stride: int = 1,
        stage_stride: int = 1,
        dropout: float = 0.0,
        blocks: Blocks = Blocks(at={"layer2": 1}),
        loss: Loss = Loss(),
        optimizer: Optimizer = Optimizer(),
        schedule: Schedule = Schedule(),
        weights: str | None = None,
    ) -> None:
        shape = {"units": units, "stem_stride": stem_stride, "stage_stride": stage_stride, "dropout": dropout}
        network = sequence_backbone(backbone, num_classes, input_size[0], widths=tuple(widths), **shape)
        example = torch.zeros(1, input_size[1], dtype=torch.long) if network.tokens else torch.zeros(1, *input_size)
        report = blocks.insert_into(network, example)
        if weights is not None:
            report += "\n" + load_weights(network, weights, "fc")
        metrics = accuracies(num_classes)
        super().__init__(network, loss.build(num_classes), metrics, optimizer, schedule, report)
        self.save_hyperparameters()
        self.tokens = network.tokens

    def check_data(self, data: pl.LightningDataModule) -> None:
        """Signals need a network for signals, tokens one for tokens."""
        given = getattr(data, "tokens", self.tokens)
        if given != self.tokens:
            kinds = {True: "tokens: backbone must be token_resnet", False: "signals: backbone must be signal_resnet"}
            raise ValueError(f"the data are {kinds[given]}, got {self.hparams['backbone']}")
