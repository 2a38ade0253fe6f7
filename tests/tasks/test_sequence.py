"""The sequence task on padded batches, against each sample alone; what it refuses."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

import nonlocal_nets as nln
from nonlocal_nets.data.sequences import SequenceDataModule, Sequences
from nonlocal_nets.tasks import Blocks, Loss, Optimizer, SequenceClassification

LENGTHS = [9, 21, 14, 30, 9, 17, 25, 12, 16, 28]
AT = {"layer2": 1, "layer3": 1}
SMALL = {"widths": (4, 6, 5), "blocks": Blocks(at=AT)}


class Series(SequenceDataModule):
    """Two channels, or tokens out of 7: the class k has the larger values."""

    def __init__(self, tokens=False, batch_size=4):
        super().__init__(("a", "b", "c"), 7 if tokens else 2, max(LENGTHS), batch_size, 0)
        self.tokens = tokens
        generator = torch.Generator().manual_seed(0)
        self.labels = [k % 3 for k in range(len(LENGTHS))]
        self.values = []
        for label, length in zip(self.labels, LENGTHS, strict=True):
            drawn = torch.randint(2 * label, 2 * label + 3, (length,), generator=generator)
            self.values.append(drawn if tokens else torch.randn(2, length, generator=generator) + label)

    def dataset(self, part):
        return Sequences(self.values, self.labels)

    def predict_dataset(self):
        return Sequences(self.values, [f"{k}" for k in range(len(self.values))])


def task(tokens=False, **options):
    torch.manual_seed(0)
    backbone, channels = ("token_resnet", 7) if tokens else ("signal_resnet", 2)
    model = SequenceClassification(3, backbone, (channels, 30), **SMALL | options)
    for block in nln.blocks(model).values():
        torch.nn.init.ones_(block.norm.weight)
    return model


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = quiet | {"log_every_n_steps": 1, "enable_checkpointing": False} | options
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **options)


def alone(model, data):
    """Logits of each sample by itself, without padding."""
    with torch.no_grad():
        return torch.cat([model.eval()((x[None], None)) for x in data.values])


@pytest.mark.parametrize("tokens", [False, True])
def test_figures_and_predictions_are_those_of_each_sample_alone(tokens, tmp_path):
    model, data = task(tokens), Series(tokens)
    (figures,) = trainer(tmp_path).test(model, data, verbose=False)
    logits, labels = alone(model, data), torch.tensor(data.labels)
    assert figures["test/loss"] == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert figures["test/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    predicted = torch.cat(trainer(tmp_path).predict(model, data))
    assert torch.allclose(predicted, logits.softmax(1), atol=1e-5)


@pytest.mark.parametrize("tokens", [False, True])
def test_it_learns(tokens, tmp_path):
    model, data = task(tokens, optimizer=Optimizer(lr=0.03)), Series(tokens)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer(tmp_path, max_epochs=15, limit_val_batches=0).fit(model, data)
    constant = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert not constant
    (figures,) = trainer(tmp_path).test(model, data, verbose=False)
    assert figures["test/loss"] < 0.75 * math.log(3), "better than chance by a quarter"


def test_tokens_and_signals_are_told_apart_before_any_work(tmp_path):
    message = "the data are tokens: backbone must be token_resnet, got signal_resnet"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_epochs=1).fit(task(), Series(tokens=True))
    message = "the data are signals: backbone must be signal_resnet, got token_resnet"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).test(task(tokens=True), Series())


def test_arguments_reach_the_network():
    blocks = Blocks(at=AT, pairwise="dot_product", pool=2, norm="layer")
    model = task(units=2, stem_stride=2, stage_stride=3, dropout=0.25, blocks=blocks)
    assert (model.network.stem_stride, model.network.stage_stride, model.network.dropout.p) == (2, 3, 0.25)
    assert len(model.network.layer3) == 2
    for block in nln.blocks(model).values():
        assert (type(block.pairwise).__name__, block.pool) == ("DotProduct", 2)
        assert isinstance(block.norm, torch.nn.LayerNorm)
    assert model.report.startswith("2 non-local blocks")
    assert not nln.blocks(task(blocks=Blocks(at="none")))
    assert [b.window for b in nln.blocks(task(blocks=Blocks(at={"layer1": 1}, window=6))).values()] == [6]


def test_label_smoothing_is_in_the_loss():
    model, data = task(loss=Loss(label_smoothing=0.2)), Series()
    logits, labels = alone(model, data), torch.tensor(data.labels)
    log = logits.log_softmax(1)
    expected = -(0.8 * log[torch.arange(len(labels)), labels] + 0.2 * log.mean(1)).mean()
    assert model.loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_starts_from_weights_without_blocks(tmp_path):
    source = task(blocks=Blocks(at="none"))
    for parameter in source.parameters():
        parameter.data += 1  # what no seed gives
    torch.save(source.network.state_dict(), tmp_path / "weights.pt")
    model = task(weights=str(tmp_path / "weights.pt"))
    ours = model.network.state_dict()
    assert all(torch.equal(t, ours[name]) for name, t in source.network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet"}, "backbone must be one of signal_resnet, token_resnet, got 'resnet'"),
        ({"blocks": Blocks(at=AT, pairwise="cosine")}, "pairwise must be one of .*, got 'cosine'"),
        (
            {"blocks": Blocks(at={"layer4": 1})},
            "no stage 'layer4' in SequenceResNet",
        ),
        ({"widths": (0,)}, r"widths must be at least 1, got \[0\]"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassification(**{"num_classes": 3, "input_size": (2, 30)} | SMALL | options)
