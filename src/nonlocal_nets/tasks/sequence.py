"""Classification of signals or tokens of any lengths with a residual 1-D network, non-local or not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonlocal_nets.nn.backbones.sequence import sequence_backbone
from nonlocal_nets.tasks.base import Task, accuracies
from nonlocal_nets.tasks.blocks import insert_blocks
from nonlocal_nets.tasks.optimisation import Optimisation
from nonlocal_nets.weights import load_weights

Padded = tuple[Tensor, Tensor | None]  # signals (B, C, L) or tokens (B, L), and bool (B, L): what is no padding


class SequenceClassification(Task):
    """Cross-entropy on padded signals or tokens with labels (B,). Padding changes nothing.

    Args:
        num_classes: number of classes; on the command line it comes from the data.
        backbone: "signal_resnet" or "token_resnet", which embeds its input.
        input_size: channels of a signal, or how many tokens there are, and the length to report the blocks' costs for.
            On the command line it comes from the data.
        widths: channels of each stage, layer1, layer2, ...
        units: residual units a stage.
        stem_stride: of the stem.
        stage_stride: of each stage but the first.
        dropout: before the classifier.
        blocks: where the blocks go: "none", a module's name or several, or how many blocks go into which stage, as in
            {layer2: 1}.
        pairwise: f: "gaussian", "embedded_gaussian", "dot_product" or "concatenation".
        inner_channels: width of theta, phi and g; default half of the place's channels.
        scale: logits times inner_channels ** -0.5 (embedded_gaussian only).
        pool: subsampling of the keys.
        pool_position: "input" or "embedding": before or after phi and g.
        norm: after W_z: "batch", "layer" or "none".
        weights: to start from: a checkpoint of ours or a file with a state dict; the classifier may differ, and blocks
            may be absent there. null: random.
        lr: the highest learning rate.
        weight_decay: decay of the weights a step, as a share of lr; of norms and biases too if decay_all.
        warmup_steps: optimiser steps over which lr rises from 0.
        optimizer: "adamw" or "sgd" (Nesterov).
        momentum: of sgd, in [0, 1).
        decay_all: whether norms and biases decay as well.
        schedule: "cosine", to 0 at the end of the run, or "step", times 0.1 at each of milestones.
        milestones: optimiser steps of the step schedule.
        lr_batch: samples a step that lr is meant for; with k times as many, all processes together, it is k lr, and
            warmup_steps should not be 0. null: lr as it is.
        label_smoothing: share of a label that is spread over all classes, in [0, 1).
    """

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
        blocks: str | list[str] | dict[str, int] = {"layer2": 1},  # noqa: B006  # the parser needs the value
        pairwise: str = "embedded_gaussian",
        inner_channels: int | None = None,
        scale: bool = False,
        pool: int | None = None,
        pool_position: str = "input",
        norm: str = "batch",
        weights: str | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        warmup_steps: int = 0,
        optimizer: str = "adamw",
        momentum: float = 0.9,
        decay_all: bool = True,
        schedule: str = "cosine",
        milestones: Sequence[int] = (),
        lr_batch: int | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        rate = (lr, weight_decay, warmup_steps)
        optimisation = Optimisation(*rate, optimizer, momentum, decay_all, schedule, tuple(milestones), lr_batch)
        shape = {"units": units, "stem_stride": stem_stride, "stage_stride": stage_stride, "dropout": dropout}
        network = sequence_backbone(backbone, num_classes, input_size[0], widths=tuple(widths), **shape)
        block = {"pairwise": pairwise, "inner_channels": inner_channels, "scale": scale, "norm": norm}
        keys = {"pool": pool, "pool_position": pool_position}
        example = torch.zeros(1, input_size[1], dtype=torch.long) if network.tokens else torch.zeros(1, *input_size)
        report = insert_blocks(network, blocks, example, None, **block, **keys)
        if weights is not None:
            report += "\n" + load_weights(network, weights, "fc")
        loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        super().__init__(network, loss, accuracies(num_classes), optimisation, report)
        self.save_hyperparameters()
        self.tokens = network.tokens

    def setup(self, stage: str) -> None:
        self.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]

    def check_data(self, data: Any) -> None:
        """Refuse a data module whose samples are of the other kind, before they meet the network."""
        given = getattr(data, "tokens", self.tokens)
        if given != self.tokens:
            kinds = {True: "tokens: backbone must be token_resnet", False: "signals: backbone must be signal_resnet"}
            raise ValueError(f"the data are {kinds[given]}, got {self.hparams['backbone']}")

    def forward(self, inputs: Padded) -> Tensor:
        """Logits (B, num_classes) of padded sequences and their mask (None: no padding)."""
        x, mask = inputs
        logits: Tensor = self.network(x, mask)
        return logits

    def predict_step(self, batch: tuple[Padded, list[str]], batch_idx: int) -> Tensor:
        """Probabilities (B, num_classes)."""
        return self(batch[0]).softmax(1)  # type: ignore[no-any-return]
