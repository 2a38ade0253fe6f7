"""The picture shows exact rows of f / C(x), of each sequence alone, at its own length."""

from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, StepPatch
from torch import nn

import nonlocal_nets as nln
from nonlocal_nets.callbacks import AttentionArrows, AttentionMaps, AttentionSeries, attention_series
from nonlocal_nets.callbacks.series_picture import Seen, Series, around, draw, strongest
from nonlocal_nets.data.sequences import SequenceDataModule, Sequences
from nonlocal_nets.tasks import SequenceClassification

LENGTHS = [24, 41, 33, 17]


class Waves(SequenceDataModule):
    """Two channels, or tokens out of 5."""

    def __init__(self, tokens=False, lengths=LENGTHS):
        super().__init__(("flat", "steep"), 5 if tokens else 2, max(lengths), 8, 0)
        self.tokens = tokens
        torch.manual_seed(0)
        self.values = [torch.randint(5, (n,)) if tokens else torch.randn(2, n).cumsum(1) for n in lengths]

    def dataset(self, part):
        return Sequences(self.values, [k % 2 for k in range(len(self.values))])

    def predict_dataset(self):
        raise NotImplementedError


class Pointed(Waves):
    @staticmethod
    def query_point(sequence):
        """The peak. Of the first channel."""
        return (int(sequence[0].argmax()) / sequence.shape[-1],)


def network(tokens=False, **words):
    torch.manual_seed(0)
    words = {"widths": (4, 6, 5), "blocks": {"layer2": 1, "layer3": 1}} | words
    backbone, channels = ("token_resnet", 5) if tokens else ("signal_resnet", 2)
    model = SequenceClassification(2, backbone, (channels, 41), **words)
    for block in nln.blocks(model).values():
        nn.init.ones_(block.norm.weight)
        if hasattr(block, "theta"):
            nn.init.normal_(block.theta.weight)  # so that the dot product has both signs
    return model


def test_run(folder, callback, model, data, **words):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoint = pl.callbacks.ModelCheckpoint(folder / "checkpoints")
    pl.Trainer(accelerator="cpu", callbacks=[callback, checkpoint], **quiet, **words).test(model, data, verbose=False)


test_run.__test__ = False


@pytest.fixture
def drawn(monkeypatch):
    """What is given to draw: the columns, the names and the path. It is not drawn, which takes a second or two."""
    calls = []
    monkeypatch.setattr(attention_series, "draw", lambda *words: calls.append(words))
    return calls


@pytest.fixture
def figures(monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    return kept


def rows_alone(model, x):
    """Of each block its input and output, where the network sees one sequence without padding."""
    seen, handles = {}, []
    for name, block in nln.blocks(model).items():

        def hook(_block, args, output, name=name):
            seen[name] = args[0], output

        handles.append(block.register_forward_hook(hook))
    model.eval()((x[None], None))
    for handle in handles:
        handle.remove()
    return seen


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        {"pairwise": "dot_product"},
        {"pairwise": "embedded_gaussian", "stem_stride": 2, "stage_stride": 2},
        {"pairwise": "concatenation", "pool": 3},
        {"pairwise": "gaussian", "pool": 2, "stem_stride": 3},
    ],
    ids=lambda words: words["pairwise"],
)
@torch.no_grad()
def test_weights_are_those_of_the_sequence_alone(tmp_path, drawn, tokens, words):
    model, data = network(tokens, **words), Waves(tokens)
    test_run(tmp_path, AttentionSeries(samples=3, at=(0.0, 0.6)), model, data, precision="64-true")
    ((columns, names, path),) = drawn
    assert (names, path) == (None, tmp_path / "attention_series.png")
    assert [column.title for column in columns] == [
        f"sample {k}, class {name}" for k, name in enumerate(("flat", "steep", "flat"))
    ]
    signs = set()
    for column, values in zip(columns, data.values, strict=False):
        x = values if tokens else values.double()  # logits of a hundred leave float32 few digits
        assert torch.equal(column.values, x)
        seen = dict(column.rows)
        for name, (before, after) in rows_alone(model, x).items():
            block, n = nln.blocks(model)[name], before.shape[2]
            pool = block.pool or 1
            place = name.removeprefix("network.").removesuffix(".non_local")
            shown = [seen.pop(f"{place}: {what}") for what in ("changed most", "at 0", "at 0.6")]
            asked = [round(one.query * n - 0.5) for one in shown]
            change = (after - before).square().sum(1)[0]
            assert change[asked[0]] >= (1 - 1e-4) * change.max(), "where a softmax is saturated several are equal"
            assert asked[1:] == [0, int(0.6 * n)]
            weights = block.weights(before, asked)[0]
            assert torch.allclose(torch.stack([one.weights for one in shown]), weights, rtol=1e-8, atol=1e-12)
            assert {one.covered for one in shown} == {n // pool * pool / n}
            signs |= set(weights.sign().unique().tolist())
        assert not seen
    assert (-1 in signs) == (words["pairwise"] == "dot_product")


def test_the_picture_is_in_the_runs_folder(tmp_path):
    from matplotlib.image import imread

    test_run(tmp_path, AttentionSeries(samples=2, at=()), network(), Waves())
    height, width = imread(tmp_path / "attention_series.png").shape[:2]
    assert width / height == pytest.approx(4.5 * 2 / (0.5 + 1.4 * 2), rel=0.01)


def test_the_point_of_the_data_is_a_query(tmp_path, drawn):
    data = Pointed()
    test_run(tmp_path, AttentionSeries(samples=4, at=()), network(), data)
    ((columns, _, _),) = drawn
    for column, x in zip(columns, data.values, strict=True):
        assert list(column.rows) == [f"layer{k}.0: {what}" for k in (2, 3) for what in ("changed most", "the peak")]
        assert column.rows["layer3.0: the peak"].query == pytest.approx((int(x[0].argmax()) + 0.5) / x.shape[1])


def test_equal_lengths_and_narrow_numbers(tmp_path, drawn):
    """No mask at all, and blocks that see bfloat16."""
    test_run(tmp_path, AttentionSeries(), network(), Waves(lengths=[20, 20]), precision="bf16-mixed")
    ((columns, _, _),) = drawn
    assert len(columns) == 2
    assert all(seen.weights.dtype == torch.float32 for column in columns for seen in column.rows.values())


def test_a_sequence_shorter_than_the_pool(tmp_path, drawn):
    test_run(tmp_path, AttentionSeries(), network(pool=8), Waves(lengths=[4, 40]))
    ((columns, _, _),) = drawn
    assert all(len(seen.weights) == 0 for seen in columns[0].rows.values())
    assert all(len(seen.weights) == 5 for seen in columns[1].rows.values())


def test_nothing_to_draw(tmp_path, drawn):
    test_run(tmp_path, AttentionSeries(), network(blocks="none"), Waves())
    assert drawn == []
    assert not (tmp_path / "attention_series.png").exists()


def test_only_the_first_process_draws_and_hooks_go():
    model, batch = network(), ((torch.zeros(1, 2, 9), None), torch.zeros(1))
    callback = AttentionSeries()
    callback.on_test_batch_start(SimpleNamespace(is_global_zero=False), model, batch, 0)
    callback.on_test_batch_end(SimpleNamespace(is_global_zero=False), model, None, batch, 0)
    assert not any(block._forward_hooks for block in nln.blocks(model).values())
    assert callback.seen == {}


# --- how it is drawn --------------------------------------------------------------------------------------------------


def parts(axis):
    """Of the steps that are filled: the red ones, the blue ones, and the edges."""
    steps = [artist.get_data() for artist in axis.patches if isinstance(artist, StepPatch) and artist.get_fill()]
    return steps[0].values, steps[1].values, steps[0].edges


def test_a_signal_its_weights_with_zero_and_the_query(tmp_path, figures):
    signal, weights = torch.randn(3, 10), torch.tensor([0.5, -0.25, 0.0])
    draw([Series("one", signal, {"row": Seen(0.25, weights, 0.9)})], None, tmp_path / "a.png")
    axis, behind = figures[0].axes
    red, blue, edges = parts(axis)
    assert (red + blue).tolist() == weights.tolist()
    assert (red.min(), blue.max()) == (0, 0)
    assert edges.tolist() == pytest.approx([0, 3, 6, 9])
    zero, query = axis.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert list(query.get_xdata()) == [2.5, 2.5]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["-0.25", "0", "0.5"]
    assert axis.get_ylim()[0] < -0.25 < 0.5 < axis.get_ylim()[1]
    assert (axis.get_title("left"), axis.get_title("right")) == ("row", "one")
    lines = [np.stack(line.get_data()) for line in behind.lines]
    assert len(lines) == 3
    for line, channel in zip(lines, signal, strict=True):
        assert line[0].tolist() == [k + 0.5 for k in range(10)]
        assert line[1].tolist() == pytest.approx(channel.tolist())


def test_arcs_go_to_the_strongest_keys(tmp_path, figures):
    weights = torch.zeros(20)
    weights[2], weights[15] = 0.5, -1
    draw([Series("", torch.randn(1, 40), {"row": Seen(0.5, weights, 1.0)})], None, tmp_path / "a.png")
    arcs = [patch for patch in figures[0].axes[0].patches if isinstance(patch, FancyArrowPatch)]
    ends = [[point[0] for point in arc._posA_posB] for arc in arcs]
    assert ends == [[20, 31], [20, 5]]
    assert [arc.get_edgecolor()[:3] for arc in arcs] == [to_rgb("tab:blue"), to_rgb("tab:red")]
    assert [arc.get_alpha() for arc in arcs] == pytest.approx([1, 0.6])


def test_the_strongest_arc_is_not_more_than_opaque(tmp_path, figures):
    weights = torch.tensor([0.6509923028794088, 0.0], dtype=torch.float64)
    assert 0.2 + 0.8 * float(weights[0]) / float(weights[0]) > 1  # by rounding
    draw([Series("", torch.randn(1, 40), {"row": Seen(0.75, weights, 1.0)})], None, tmp_path / "a.png")
    assert [patch.get_alpha() for patch in figures[0].axes[0].patches if isinstance(patch, FancyArrowPatch)] == [1]


def test_weights_without_a_negative_one_start_at_zero(tmp_path, figures):
    draw([Series("", torch.randn(1, 6), {"row": Seen(0.5, torch.tensor([0.1, 0.9]), 1.0)})], None, tmp_path / "a.png")
    axis = figures[0].axes[0]
    assert axis.get_ylim()[0] == 0
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0", "0.9"]


def test_tokens_without_names_are_a_strip(tmp_path, figures):
    tokens = torch.tensor([3, 1, 1, 0])
    draw([Series("", tokens, {"row": Seen(0.5, torch.ones(4), 1.0)})], None, tmp_path / "a.png")
    (image,) = figures[0].axes[0].images
    assert image.get_array().tolist() == [tokens.tolist()]
    assert list(image.get_extent())[:2] == [0, 4]


def test_names_stand_at_the_strongest_keys_and_the_query(tmp_path, figures):
    names, tokens = ("a", "$", " "), torch.tensor([0, 1, 2] * 20)
    weights = torch.zeros(60)
    weights[[10, 11, 40]] = torch.tensor([0.5, 0.4, -0.3])
    draw([Series("", tokens, {"row": Seen(30.5 / 60, weights, 1.0)})], names, tmp_path / "a.png")
    axis = figures[0].axes[0]
    assert axis.get_xticks().tolist() == [10.5, 40.5], "one is beside a stronger one, the others have no weight"
    text = "a$ " * 20
    assert [label.get_text() for label in axis.get_xticklabels()] == [text[4:17], text[34:47]]
    (query,) = axis.texts
    assert query.get_position()[0] == 30.5
    assert query.get_text() == text[24:37]


def test_what_is_written_around_a_place():
    written = ["[MAX", "1", "2", "[MIN", "3", "]"]
    assert around(written, 1, " ") == "[MAX 1 2 [MIN"
    assert around(written, 0, "") == "[MAX12[MIN3]"
    assert around(["a very long token"] * 3, 1, " ") == "a very long token"


def test_the_strongest_keys_leave_room():
    assert strongest(Seen(0, torch.tensor([0.2, -0.9, 0.3, 0.0]), 0.8), 40) == [12, 20, 4]
    places = strongest(Seen(0, torch.rand(600) + 0.1, 1.0), 600)
    assert 3 <= len(places) <= 6
    assert min(abs(a - b) for a in places for b in places if a != b) > 100
    assert strongest(Seen(0, torch.tensor([1.0, 0.009, 0.02]), 1.0), 30) == [5, 25], "too weak for a word"
    assert strongest(Seen(0, torch.zeros(0), 0.0), 40) == []


# --- errors -----------------------------------------------------------------------------------------------------------


def test_each_callback_names_the_one_for_other_inputs():
    trainer, model = SimpleNamespace(is_global_zero=True), network()
    series = ((torch.zeros(2, 3, 9), None), [0, 0])
    with pytest.raises(ValueError, match=r"AttentionMaps .* got 2 inputs, of \(2, 3, 9\); .* AttentionSeries sequen"):
        AttentionMaps().on_test_batch_start(trainer, model, series, 0)
    with pytest.raises(ValueError, match=r"AttentionArrows .* got 2 inputs, of \(2, 3, 9\); .* AttentionSeries sequen"):
        AttentionArrows().on_test_batch_start(trainer, model, series, 0)
    with pytest.raises(ValueError, match=r"AttentionSeries draws signals .* got \(2, 3, 8, 8\); AttentionMaps draws"):
        AttentionSeries().on_test_batch_start(trainer, model, (torch.zeros(2, 3, 8, 8), [0, 0]), 0)


def test_a_block_of_images_in_a_network_for_sequences(tmp_path):
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.non_local, self.fc = nln.NonLocalBlock(2), nn.Linear(2, 2)

        def forward(self, x, mask):
            return self.fc(self.non_local(x[..., None]).mean((2, 3)))

    model = network(blocks="none")
    model.network = Folded()
    with pytest.raises(ValueError, match=r"draws blocks of \(B, C, L\), network.non_local gets \(4, 2, 41, 1\)"):
        test_run(tmp_path, AttentionSeries(), model, Waves())


@pytest.mark.parametrize("words", [{"samples": 0}, {"at": [1.0]}, {"at": [-0.1]}])
def test_refusals(words):
    with pytest.raises(ValueError, match=r"samples must be at least 1 and at fractions in \[0, 1\), got"):
        AttentionSeries(**words)
