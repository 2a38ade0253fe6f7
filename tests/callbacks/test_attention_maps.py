"""What reaches the drawings from a Trainer: the samples, their titles, and the rows of each by construction."""

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.image import imread
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d, pad
from torch.utils.data import DataLoader

import nonlocal_nets as nln
from nonlocal_nets.attention import clips, images, series
from nonlocal_nets.callbacks import AttentionMaps
from nonlocal_nets.data import CuedDigits

PATCHES = {1: (2,), 2: (4, 2), 3: (2, 4, 4)}  # positions of the input to one of the block, by the number of axes
POOLS = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}
GRIDS = {1: (6,), 2: (3, 5), 3: (4, 3, 5)}
QUERIES = {1: (4,), 2: (2, 3), 3: (1, 2, 0)}
KEYS = {  # the strongest first
    1: [(1,), (5,), (2,)],
    2: [(0, 4), (2, 1), (1, 2)],
    3: [(3, 0, 4), (1, 2, 3), (0, 1, 1)],
}


def sample(axes, query=None, keys=None, grid=None):
    """(3, *S): the query's patch in the first channel, the keys' ever weaker ones in the second."""
    patch = PATCHES[axes]
    x = torch.zeros(3, *(n * p for n, p in zip(grid or GRIDS[axes], patch, strict=True)))
    marks = [(0, query or QUERIES[axes], 1.0)]
    marks += [(1, key, 1 - 0.1 * k) for k, key in enumerate(keys or KEYS[axes])]
    for channel, position, value in marks:
        x[channel, *(slice(k * p, (k + 1) * p) for k, p in zip(position, patch, strict=True))] = value
    return x


class Tiny(pl.LightningModule):
    """Means of the patches, then a block with f = exp(9 x_i[0] x_j[1]) that adds what y has of channel 1 to 2."""

    def __init__(self, parts=1, **block_kwargs):
        super().__init__()
        self.parts = parts
        self.network = nn.Module()
        self.network.middle = nn.Module()
        block = self.network.middle.non_local = nln.NonLocalBlock(3, 1, norm="none", **block_kwargs)
        with torch.no_grad():
            block.theta.weight.copy_(torch.tensor([[3.0, 0, 0]]))
            block.phi.weight.copy_(torch.tensor([[0, 3.0, 0]]))
            block.g.weight.copy_(torch.tensor([[0, 1.0, 0]]))
            block.out.weight.copy_(torch.tensor([[0], [0], [5.0]]))

    def forward(self, x, mask=None):
        patch = PATCHES[x.ndim - 2]
        x = POOLS[x.ndim - 2](x, patch)
        return self.network.middle.non_local(x, mask=None if mask is None else mask[:, :: patch[0]])

    def test_step(self, batch, batch_idx):
        if isinstance(batch[0], (tuple, list)):
            return self(*batch[0])
        x = batch[0].flatten(0, 1) if batch[0].ndim == 6 else batch[0]  # views become samples
        return torch.cat([self(part) for part in x.chunk(self.parts)])

    predict_step = test_step


def collate(samples):
    """Padded, with a mask where lengths differ."""
    values, targets = zip(*samples, strict=True)
    lengths = torch.tensor([x.shape[-1] for x in values])
    x = torch.stack([pad(value, (0, int(lengths.max()) - value.shape[-1])) for value in values])
    mask = None if lengths.min() == lengths.max() else torch.arange(lengths.max()) < lengths[:, None]
    return (x, mask), targets if isinstance(targets[0], str) else torch.tensor(targets)


class Data(pl.LightningDataModule):
    class_names = ("flat", "steep")

    def __init__(self, values, batch_size, sequences=False):
        super().__init__()
        self.values, self.batch_size, self.collate = values, batch_size, collate if sequences else None

    def loader(self, targets):
        return DataLoader(
            list(zip(self.values, targets, strict=True)), batch_size=self.batch_size, collate_fn=self.collate
        )

    def test_dataloader(self):
        return self.loader([k % 2 for k in range(len(self.values))])

    def predict_dataloader(self):
        return self.loader([f"folder/{k}.mp4" for k in range(len(self.values))])


def run(callback, model, data, folder, verb="test", **kwargs):
    """The files that are then in the run's folder, which is not that of the checkpoints."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [callback, ModelCheckpoint(folder / "elsewhere" / "checkpoints")]
    trainer = pl.Trainer(accelerator="cpu", callbacks=callbacks, default_root_dir=folder / "run", **quiet, **kwargs)
    given = {"verbose": False} if verb == "test" else {"return_predictions": False}
    getattr(trainer, verb)(model, datamodule=data, **given)
    return sorted(path.name for path in folder.rglob("*.*") if path.parent == folder / "run")


@pytest.fixture
def drawn(monkeypatch):
    """What each module is given to draw; it is not drawn."""
    calls = {"images": [], "clips": [], "series": [], "films": []}
    monkeypatch.setattr(images, "draw", lambda *args: calls["images"].append(args))
    monkeypatch.setattr(series, "draw", lambda *args: calls["series"].append(args))
    monkeypatch.setattr(clips, "draw", lambda *args: calls["clips"].append(args))
    monkeypatch.setattr(clips, "animate", lambda *args: calls["films"].append(args))
    return calls


def weights(axes, keys=None, grid=None):
    """f / C(x) of the query, by hand."""
    f = torch.ones(*(grid or GRIDS[axes]))
    for k, key in enumerate(keys or KEYS[axes]):
        f[key] = math.exp(9 * (1 - 0.1 * k))
    return f / f.sum()


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["test", "predict"])
@pytest.mark.parametrize("parts", [1, 2])
def test_images(tmp_path, drawn, verb, parts):
    """The first of the first batch, each with its own rows."""
    keys = [KEYS[2], [(1, 1), (0, 0)], [(2, 4)]]
    values = [sample(2, keys=each) for each in keys]
    run(AttentionMaps(samples=2), Tiny(parts), Data(values, 3), tmp_path, verb)
    ((samples, path),) = drawn["images"]
    assert path == tmp_path / "run" / "attention.png"
    assert path.parent.is_dir()
    assert len(samples) == 2
    for each, value, of_value in zip(samples, values, keys, strict=False):
        assert torch.equal(each.values, value)
        assert list(each.rows) == ["middle: changed most"]
        row = each.rows["middle: changed most"]
        assert row.query == QUERIES[2]
        torch.testing.assert_close(row.weights, weights(2, of_value), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("axes", [1, 2])
def test_images_and_sequences_are_those_of_the_first_batch(tmp_path, drawn, axes):
    values = [sample(axes), sample(axes, keys=KEYS[axes][::-1])]
    run(AttentionMaps(), Tiny(), Data(values, 1, sequences=axes == 1), tmp_path)
    ((samples, *_),) = drawn["series" if axes == 1 else "images"]
    assert [torch.equal(each.values, values[0]) for each in samples] == [True]


def test_six_images_and_three_sequences_and_two_videos(tmp_path, drawn):
    for axes, default in ((2, 6), (1, 3), (3, 2)):
        run(AttentionMaps(), Tiny(), Data([sample(axes)] * 7, 7, sequences=axes == 1), tmp_path)
        found = {1: drawn["series"], 2: drawn["images"]}.get(axes)
        assert len(drawn["clips"] if found is None else found[0][0]) == default


class PointedImages(Data):
    @staticmethod
    def query_point(image):
        """The corner. Not the position that changes most."""
        assert image.shape == (3, 12, 10)
        return 0.0, 0.99


def test_the_point_of_the_data_is_a_second_query(tmp_path, drawn):
    run(AttentionMaps(), Tiny(), PointedImages([sample(2)], 1), tmp_path)
    (((one,), _),) = drawn["images"]
    assert list(one.rows) == ["middle: changed most", "middle: the corner"]
    assert one.rows["middle: the corner"].query == (0, 4)
    torch.testing.assert_close(one.rows["middle: the corner"].weights, torch.full((3, 5), 1 / 15))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_files(tmp_path, axes):
    names = run(AttentionMaps(samples=1), Tiny(), Data([sample(axes)], 1, sequences=axes == 1), tmp_path)
    assert names == (["attention-0.gif", "attention-0.png"] if axes == 3 else ["attention.png"])
    for name in names:
        with Image.open(tmp_path / "run" / name) as picture:
            assert getattr(picture, "n_frames", 1) == (8 if name.endswith("gif") else 1)
    height, width = imread(tmp_path / "run" / names[-1]).shape[:2]
    expected = {1: 4.5 / (0.5 + 3 * 1.4), 2: 3.2 / (1.75 * 2), 3: 1.5 * 8 / (0.3 + 1.5 * 12 / 20 + 0.45)}
    assert width / height == pytest.approx(expected[axes], rel=0.01)


# --- clips ------------------------------------------------------------------------------------------------------------


def place(mark):
    return mark.frame, mark.frames, mark.row, mark.column


def expected(position):
    """Of a position on the grid, where 2 frames and 4 x 4 pixels are one position."""
    frame, row, column = position
    return 2 * frame + 1, range(2 * frame, 2 * frame + 2), 4 * row + 2, 4 * column + 2


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_arrows_of_clips(tmp_path, drawn, verb):
    moved = [(0, 0, 0), *KEYS[3][1:]]
    values = [sample(3), sample(3, keys=moved), sample(3)]
    run(AttentionMaps(arrows=3), Tiny(), Data(values, 3), tmp_path, verb)
    assert [args[2:] for args in drawn["clips"]] == [
        (tmp_path / "run" / f"attention-{k}.png", f"video {k}" if verb == "test" else f"{k}.mp4") for k in (0, 1)
    ]
    assert [args[2] for args in drawn["films"]] == [tmp_path / "run" / f"attention-{k}.gif" for k in (0, 1)]
    for k, keys in enumerate((KEYS[3], moved)):
        clip, rows, *_ = drawn["clips"][k]
        assert torch.equal(clip, values[k])
        assert torch.equal(clip, drawn["films"][k][0])
        assert rows == drawn["films"][k][1]
        ((title, arrows),) = rows.items()
        assert title == "middle: changed most"
        assert place(arrows.query) == expected(QUERIES[3])
        assert [place(key) for key in arrows.keys] == [expected(key) for key in keys]
        f = weights(3, keys)
        assert [key.weight for key in arrows.keys] == pytest.approx([float(f[key]) for key in keys], rel=1e-4)
        assert arrows.query.weight == arrows.keys[0].weight
        assert arrows.share == pytest.approx(float(sum(f[key] for key in keys)), rel=1e-4)


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_the_middle_view_of_the_first_videos_over_batches_in_whatever_parts(tmp_path, drawn, parts):
    other = sample(3, query=(0, 0, 2), keys=[(2, 2, 2)])
    videos = [torch.stack([other, sample(3, keys=[key]), other]) for key in KEYS[3]]
    model = Tiny(parts)
    run(AttentionMaps(samples=3, arrows=1), model, Data(videos, 2), tmp_path)
    assert [args[2].name for args in drawn["clips"]] == [f"attention-{k}.png" for k in range(3)]
    for (clip, rows, _, _), video, key in zip(drawn["clips"], videos, KEYS[3], strict=True):
        assert torch.equal(clip, video[1])
        (arrows,) = rows.values()
        assert [place(mark) for mark in (arrows.query, *arrows.keys)] == [expected(QUERIES[3]), expected(key)]
    assert not model.network.middle.non_local._forward_hooks


def test_twenty_arrows(tmp_path, drawn):
    run(AttentionMaps(samples=1), Tiny(), Data([sample(3)], 1), tmp_path)
    ((_, rows, _, _),) = drawn["clips"]
    assert len(rows["middle: changed most"].keys) == 20


def test_a_second_test_draws_again(tmp_path, drawn):
    callback = AttentionMaps(samples=1)
    for _ in range(2):
        run(callback, Tiny(), Data([sample(3)] * 2, 1), tmp_path)
    assert [args[2].name for args in drawn["clips"]] == ["attention-0.png"] * 2


def test_samples_that_the_task_leaves_out(tmp_path, drawn):
    model = Tiny()
    model.test_step = lambda batch, batch_idx: Tiny.test_step(model, (batch[0][:1],), batch_idx)
    run(AttentionMaps(), model, Data([sample(2)] * 3, 3), tmp_path)
    (((one,), _),) = drawn["images"]
    assert one.rows
    run(AttentionMaps(), model, Data([sample(3)] * 4, 2), tmp_path)
    assert [args[3] for args in drawn["clips"]] == ["video 0", "video 1"]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_autocast(tmp_path, drawn, axes):
    data = Data([sample(axes)], 1, sequences=axes == 1)
    run(AttentionMaps(samples=1), Tiny(), data, tmp_path, "predict", precision="bf16-mixed")
    if axes == 3:
        assert place(drawn["clips"][0][1]["middle: changed most"].keys[0]) == expected(KEYS[3][0])
    else:
        row = drawn["images" if axes == 2 else "series"][0][0][0].rows["middle: changed most"]
        assert row.weights.dtype == torch.float32
        assert row.weights.argmax() == weights(axes).argmax()


# --- sequences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_sequences_at_their_own_length(tmp_path, drawn, verb):
    """In a padded batch each is drawn as it is alone; `at` are fractions of its own length."""
    grids = [(6,), (9,), (7,)]
    keys = [KEYS[1], [(8,), (0,)], [(6,), (3,)]]
    values = [sample(1, keys=k, grid=grid) for k, grid in zip(keys, grids, strict=True)]
    run(AttentionMaps(at=[0.0, 0.6]), Tiny(), Data(values, 3, sequences=True), tmp_path, verb)
    ((samples, names, path),) = drawn["series"]
    assert (names, path) == (None, tmp_path / "run" / "attention.png")
    titles = ["sample 0, class flat", "sample 1, class steep", "sample 2, class flat"]
    assert [each.title for each in samples] == (titles if verb == "test" else ["0.mp4", "1.mp4", "2.mp4"])
    for each, value, (n,), of_value in zip(samples, values, grids, keys, strict=True):
        assert torch.equal(each.values, value)
        assert list(each.rows) == [f"middle: {what}" for what in ("changed most", "at 0", "at 0.6")]
        assert [row.query for row in each.rows.values()] == [(4,), (0,), (int(0.6 * n),)]
        row = each.rows["middle: changed most"]
        torch.testing.assert_close(row.weights, weights(1, of_value, (n,)), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(each.rows["middle: at 0"].weights, torch.full((n,), 1 / n))


class Tokens(Tiny):
    def forward(self, x, mask=None):
        return super().forward(nn.functional.one_hot(x, 3).mT.float(), mask)


def test_tokens_with_names(tmp_path, drawn):
    values = [torch.tensor([0, 0, 2, 2, 1, 1, 2, 2]), torch.tensor([2, 2, 0, 0])]
    data = Data(values, 2, sequences=True)
    data.token_names = ("a", "b", "c")
    data.class_names = None
    run(AttentionMaps(at=()), Tokens(), data, tmp_path)
    ((samples, names, _),) = drawn["series"]
    assert names == ("a", "b", "c")
    assert [each.title for each in samples] == ["sample 0, class 0", "sample 1, class 1"]
    assert [each.values.tolist() for each in samples] == [value.tolist() for value in values]
    row = samples[0].rows["middle: changed most"]
    assert (row.query, int(row.weights.argmax()), len(row.weights)) == ((0,), 2, 4)


def test_further_queries_by_default(tmp_path, drawn):
    run(AttentionMaps(), Tiny(), Data([sample(1)], 1, sequences=True), tmp_path)
    (((one,), _, _),) = drawn["series"]
    assert [row.query for row in one.rows.values()] == [QUERIES[1], (1,), (4,)]
    assert list(one.rows)[1:] == ["middle: at 0.25", "middle: at 0.75"]


# --- nothing to draw, and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_nothing_to_draw(tmp_path, drawn, axes):
    model = Tiny()
    model.network.middle.non_local = nn.Identity()
    model.forward = lambda x, mask=None: x
    assert run(AttentionMaps(), model, Data([sample(axes)], 1, sequences=axes == 1), tmp_path) == []
    assert not any(drawn.values())


def test_only_the_first_process_draws():
    model, callback, batch = Tiny(), AttentionMaps(), (torch.zeros(1, 3, 8, 12, 20), [0])
    trainer = SimpleNamespace(is_global_zero=False)
    callback.on_test_batch_start(trainer, model, batch, 0)
    assert not model.network.middle.non_local._forward_hooks
    callback.on_test_batch_end(trainer, model, None, batch, 0)


def test_hooks_go_where_a_step_fails(tmp_path):
    model = Tiny()
    model.test_step = lambda batch, batch_idx: model(batch[0][:, :2])
    with pytest.raises(ValueError, match="input must be"):
        run(AttentionMaps(), model, Data([sample(2)], 1), tmp_path)
    assert not model.network.middle.non_local._forward_hooks


MASK = torch.ones(2, 9, dtype=torch.bool)


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ((torch.zeros(2, 3, 9), [0, 0]), r"\(2, 3, 9\)"),
        ((torch.zeros(2, 3), [0, 0]), r"\(2, 3\)"),
        ((torch.zeros(1, 2, 3, 4, 5, 6, 7), [0]), r"\(1, 2, 3, 4, 5, 6, 7\)"),
        (((torch.zeros(2, 3, 8, 8), MASK), [0, 0]), r"2 inputs, the first \(2, 3, 8, 8\)"),
        (((torch.zeros(2, 3, 9), MASK.float()), [0, 0]), r"2 inputs, the first \(2, 3, 9\)"),
        (((torch.zeros(2, 3, 9), MASK[:, :7]), [0, 0]), r"2 inputs, the first \(2, 3, 9\)"),
        (([torch.zeros(3, 9, 9)] * 4, [0] * 4), r"4 inputs, the first \(3, 9, 9\)"),
        ({"image": torch.zeros(2, 3, 9, 9)}, "a dict"),
        (("text", 0), "a str"),
    ],
)
def test_other_batches_are_refused(batch, got):
    accepted = r"images \(B, C, H, W\), clips \(B, C, T, H, W\) or .* \(B, V, C, T, H, W\), sequences \(\(B, C, L\) or"
    with pytest.raises(ValueError, match=rf"AttentionMaps draws {accepted} \(B, L\), mask\); got {got}") as error:
        AttentionMaps().on_test_batch_start(SimpleNamespace(is_global_zero=False), Tiny(), batch, 0)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "axes", "message"),
    [
        ({"arrows": 20}, 2, r"arrows is for clips, the batches are images \(B, C, H, W\)"),
        ({"arrows": 5}, 1, r"arrows is for clips, the batches are sequences \(\(B, C, L\)"),
        ({"at": (0.25, 0.75)}, 2, "at is for sequences, the batches are images"),
        ({"at": ()}, 3, "at is for sequences, the batches are clips"),
    ],
)
def test_options_of_another_kind_are_refused(options, axes, message):
    x = sample(axes)[None]
    with pytest.raises(ValueError, match=message):
        AttentionMaps(**options).on_predict_batch_start(
            SimpleNamespace(is_global_zero=False), Tiny(), ((x, None) if axes == 1 else x, [0]), 0
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"arrows": 0}, "arrows must be at least 1, got 0"),
        ({"at": [1.0]}, r"at must be fractions in \[0, 1\), got \[1.0\]"),
        ({"at": [0.5, -0.1]}, r"at must be fractions in \[0, 1\), got \[0.5, -0.1\]"),
    ],
)
def test_options_outside_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionMaps(**options)


def test_a_block_on_other_axes(tmp_path):
    model = Tiny()
    model.predict_step = lambda batch, batch_idx: model(batch[0].mean(2))
    with pytest.raises(ValueError, match=r"clips by blocks with 3 axes, network.middle.non_local gets .* \(3, 3, 10\)"):
        run(AttentionMaps(), model, Data([sample(3)], 1), tmp_path, "predict")


# --- the data's own point ---------------------------------------------------------------------------------------------


def test_the_query_point_of_the_cued_digits_is_the_middle_of_the_cue():
    dataset = CuedDigits(test_samples=40).dataset("test")
    for image, _ in (dataset[k] for k in range(40)):
        row, column = (round(48 * fraction) for fraction in CuedDigits.query_point(image))
        square = image[:, row - 3 : row + 3, column - 3 : column + 3].amax((1, 2))
        assert (image[:, row - 3 : row + 3, column - 3 : column + 3].amin((1, 2)) == 1).sum() == 1
        assert square.sum() == 1, "one colour, filled"
