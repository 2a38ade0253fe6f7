"""The arrows go from the query to the keys that are the strongest by construction, in frames and pixels of the clip."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import nonlocal_nets as nln
from nonlocal_nets.callbacks import AttentionArrows, AttentionMaps, attention_arrows
from nonlocal_nets.callbacks.arrows_picture import Arrows, Mark, animate, draw, nearest, shown
from nonlocal_nets.callbacks.attention_arrows import attend
from nonlocal_nets.callbacks.attention_maps import changed_most
from nonlocal_nets.data import CuedClips
from nonlocal_nets.data.cued_clips import CUE, CuedClipsDataset

PATCH = (2, 4, 4)  # frames and pixels of the clip to one position of the block
QUERY, KEYS = (1, 2, 0), [(3, 0, 4), (1, 2, 3), (0, 1, 1)]  # positions on the grid (4, 3, 5); the strongest key first


def clip_with(query=QUERY, keys=KEYS):
    """(3, 8, 12, 20): the query's patch in the first channel, the keys' ever weaker ones in the second."""
    clip = torch.zeros(3, 8, 12, 20)
    for channel, position, value in [(0, query, 1.0), *((1, key, 1 - 0.1 * k) for k, key in enumerate(keys))]:
        clip[channel, *(slice(k * p, (k + 1) * p) for k, p in zip(position, PATCH, strict=True))] = value
    return clip


class Tiny(pl.LightningModule):
    """Means of the patches, then a block with f = exp(9 x_i[0] x_j[1]) that adds what y has of channel 1 to 2."""

    def __init__(self, parts=1, **block_kwargs):
        super().__init__()
        self.parts = parts
        self.patches = nn.Conv3d(3, 3, PATCH, PATCH, bias=False)
        self.middle = nn.Module()
        self.middle.non_local = nln.NonLocalBlock(3, 1, norm="none", **block_kwargs)
        with torch.no_grad():
            self.patches.weight.copy_(torch.eye(3).view(3, 3, 1, 1, 1).expand(3, 3, *PATCH) / math.prod(PATCH))
            block = self.middle.non_local
            block.theta.weight.copy_(torch.tensor([[3.0, 0, 0]]))
            block.phi.weight.copy_(torch.tensor([[0, 3.0, 0]]))
            block.g.weight.copy_(torch.tensor([[0, 1.0, 0]]))
            block.out.weight.copy_(torch.tensor([[0], [0], [5.0]]))

    def test_step(self, batch, batch_idx):
        clips = batch[0].flatten(0, -5)  # views become samples
        return torch.cat([self.middle.non_local(self.patches(part)) for part in clips.chunk(self.parts)])

    predict_step = test_step


class Clips(pl.LightningDataModule):
    def __init__(self, clips, batch_size):
        super().__init__()
        self.clips, self.batch_size = clips, batch_size

    def test_dataloader(self):
        return DataLoader([(clip, k) for k, clip in enumerate(self.clips)], batch_size=self.batch_size)

    def predict_dataloader(self):
        return DataLoader([(clip, f"videos/{k}.mp4") for k, clip in enumerate(self.clips)], batch_size=self.batch_size)


class PointedClips(Clips):
    @staticmethod
    def query_point(clip):
        """The corner. Not the position that changes most."""
        assert clip.shape == (3, 8, 12, 20)
        return 0.99, 0.0, 0.99


def run(verb, callback, model, data, folder, **kwargs):
    checkpoint = ModelCheckpoint(folder / "checkpoints")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[callback, checkpoint], **quiet, **kwargs)
    given = {"verbose": False} if verb == "test" else {"return_predictions": False}
    getattr(trainer, verb)(model, datamodule=data, **given)
    return sorted(path.name for path in folder.glob("attention*"))


@pytest.fixture
def drawn(monkeypatch):
    """The arguments with which pictures are drawn, and they are drawn."""
    calls = []
    monkeypatch.setattr(attention_arrows, "draw", lambda *args: (calls.append(args), draw(*args)))
    return calls


def place(mark):
    return mark.frame, mark.frames, mark.row, mark.column


def expected(position):
    """Of a position on the grid, where 2 frames and 4 x 4 pixels are one position."""
    frame, row, column = position
    return 2 * frame + 1, range(2 * frame, 2 * frame + 2), 4 * row + 2, 4 * column + 2


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_arrows_of_clips(tmp_path, drawn, verb):
    moved = [(0, 0, 0), *KEYS[1:]]
    data = Clips([clip_with(), clip_with(keys=moved), clip_with()], batch_size=3)
    names = run(verb, AttentionArrows(arrows=3), Tiny(), data, tmp_path)
    assert names == [f"attention_arrows-{k}.{ending}" for k in (0, 1) for ending in ("gif", "png")]
    assert [args[3] for args in drawn] == (["video 0", "video 1"] if verb == "test" else ["0.mp4", "1.mp4"])
    for (clip, rows, _, _), keys in zip(drawn, (KEYS, moved), strict=True):
        (title, arrows), *others = rows.items()
        assert title == "middle: changed most"
        assert not others
        assert torch.equal(clip, data.clips[drawn[0][0] is not clip])
        assert place(arrows.query) == expected(QUERY)
        assert [place(key) for key in arrows.keys] == [expected(key) for key in keys]
        f = [math.exp(9 * (1 - 0.1 * k)) for k in range(3)]
        total = sum(f) + 4 * 3 * 5 - 3
        assert [key.weight for key in arrows.keys] == pytest.approx([value / total for value in f], rel=1e-4)
        assert arrows.query.weight == arrows.keys[0].weight
        assert arrows.share == pytest.approx(sum(f) / total, rel=1e-4)
    for k in (0, 1):
        with Image.open(tmp_path / f"attention_arrows-{k}.gif") as film:
            assert film.n_frames == 8
        with Image.open(tmp_path / f"attention_arrows-{k}.png") as picture:
            assert picture.width > picture.height > 100


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_the_middle_view_of_the_first_videos_over_batches_in_whatever_parts(tmp_path, drawn, parts):
    other = clip_with(query=(0, 0, 2), keys=[(2, 2, 2)])
    videos = [torch.stack([other, clip_with(keys=[key]), other]) for key in KEYS]
    model = Tiny(parts)
    names = run("test", AttentionArrows(videos=3, arrows=1), model, Clips(videos, batch_size=2), tmp_path)
    assert len(names) == 6
    for (clip, rows, _, _), video, key in zip(drawn, videos, KEYS, strict=True):
        assert torch.equal(clip, video[1])
        (arrows,) = rows.values()
        assert [place(mark) for mark in (arrows.query, *arrows.keys)] == [expected(QUERY), expected(key)]
    assert not model.middle.non_local._forward_hooks


def test_the_point_of_the_data_is_a_second_query(tmp_path, drawn):
    run("test", AttentionArrows(videos=1), Tiny(), PointedClips([clip_with()], 1), tmp_path)
    rows = drawn[0][1]
    assert list(rows) == ["middle: changed most", "middle: the corner"]
    assert place(rows["middle: the corner"].query) == expected((3, 0, 4))
    assert len(rows["middle: the corner"].keys) == 20, "all keys are equal, as many are drawn as asked for"


def test_autocast(tmp_path, drawn):
    run("predict", AttentionArrows(videos=1), Tiny(), Clips([clip_with()], 1), tmp_path, precision="bf16-mixed")
    assert place(drawn[0][1]["middle: changed most"].keys[0]) == expected(KEYS[0])


def test_nothing_to_draw(tmp_path):
    model = Tiny()
    nln.remove(model.middle)
    model.middle.non_local = nn.Identity()
    assert run("test", AttentionArrows(), model, Clips([clip_with()], 1), tmp_path) == []


def test_only_the_first_process_draws():
    model, callback = Tiny(), AttentionArrows()
    trainer = SimpleNamespace(is_global_zero=False)
    callback.on_test_batch_start(trainer, model, (torch.zeros(1, 3, 8, 12, 20), [0]), 0)
    assert not model.middle.non_local._forward_hooks
    callback.on_test_batch_end(trainer, model, None, None, 0)


def test_images_and_videos_each_name_the_callback_for_them():
    trainer = SimpleNamespace(is_global_zero=True)
    with pytest.raises(ValueError, match=r"AttentionMaps draws images .* got \(2, 3, 8, 4, 4\); AttentionArrows draws"):
        AttentionMaps().on_test_batch_start(trainer, Tiny(), (torch.zeros(2, 3, 8, 4, 4), [0]), 0)
    with pytest.raises(ValueError, match=r"AttentionArrows draws clips .* got \(2, 3, 4, 4\); AttentionMaps draws"):
        AttentionArrows().on_predict_batch_start(trainer, Tiny(), (torch.zeros(2, 3, 4, 4), ["a", "b"]), 0)


def test_a_block_of_images_in_a_network_for_videos(tmp_path):
    model = Tiny()
    model.predict_step = lambda batch, batch_idx: model.middle.non_local(batch[0].mean(2))
    with pytest.raises(ValueError, match=r"blocks of \(B, C, T, H, W\), middle.non_local gets \(1, 3, 12, 20\)"):
        run("predict", AttentionArrows(), model, Clips([clip_with()], 1), tmp_path)


@pytest.mark.parametrize("given", [{"videos": 0}, {"arrows": 0}])
def test_numbers_below_one(given):
    with pytest.raises(ValueError, match="at least 1"):
        AttentionArrows(**given)


def test_changed_most_in_three_axes():
    x = torch.randn(2, 4, 3, 5, 7)
    z = x.clone()
    z[0, :, 2, 4, 5] += 3
    z[1, 0, 0, 0, 6] -= 1
    assert changed_most(x, z) == [(2.5 / 3, 4.5 / 5, 5.5 / 7), (0.5 / 3, 0.5 / 5, 6.5 / 7)]


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product", "concatenation"])
@pytest.mark.parametrize("pool_position", ["input", "embedding"])
def test_pooled_keys(pairwise, pool_position):
    """A grid (4, 5, 6) with pool (1, 2, 3): keys (4, 2, 2), which leave the last row out."""
    torch.manual_seed(0)
    block = nln.NonLocalBlock(4, pairwise=pairwise, pool=(1, 2, 3), pool_position=pool_position).eval()
    x = torch.randn(1, 4, 4, 5, 6)
    arrows = attend(block, x, (0.5, 0.99, 0.34), (8, 50, 120), 7)
    assert place(arrows.query) == (5, range(4, 6), 45, 50)
    weights = block.weights(x).detach()[0, (2 * 5 + 4) * 6 + 2].view(4, 2, 2)
    grid = [(float(weights[t, i, j]), t, i, j) for t in range(4) for i in range(2) for j in range(2)]
    ranked = sorted((cell for cell in grid if cell[0] != 0), key=lambda cell: -abs(cell[0]))[:7]
    assert [key.weight for key in arrows.keys] == pytest.approx([cell[0] for cell in ranked], abs=1e-6)
    assert [place(key)[1:] for key in arrows.keys] == [
        (range(2 * t, 2 * t + 2), pytest.approx(20 * i + 10), pytest.approx(60 * j + 30)) for _, t, i, j in ranked
    ]
    share = sum(abs(cell[0]) for cell in ranked) / sum(abs(cell[0]) for cell in grid)
    assert arrows.share == pytest.approx(share, abs=1e-5)
    assert any(key.weight < 0 for key in arrows.keys) == (pairwise == "dot_product")


def test_pooled_frames():
    block = nln.NonLocalBlock(2, pool=(2, 1, 1)).eval()
    arrows = attend(block, torch.randn(1, 2, 6, 1, 1), (0.0, 0.0, 0.0), (12, 9, 9), 20)
    assert {(key.frame, key.frames, key.row, key.column) for key in arrows.keys} == {
        (2, range(0, 4), 4.5, 4.5),
        (6, range(4, 8), 4.5, 4.5),
        (10, range(8, 12), 4.5, 4.5),
    }


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        ((1, None, None), {(2, i, j) for i in range(2) for j in range(3)}),
        ((None, 1, 1), {(t, 1, 0) for t in range(4)}),
        ((2, None, None), {(t, i, j) for t in (2, 3) for i in range(2) for j in range(3)}),
    ],
)
def test_keys_outside_the_window_are_not_drawn(window, inside):
    block = nln.NonLocalBlock(3, window=window).eval()
    arrows = attend(block, torch.randn(1, 3, 4, 2, 3), (0.6, 0.6, 0.1), (4, 2, 3), 24)
    assert {(key.frame, int(key.row), int(key.column)) for key in arrows.keys} == inside
    assert len(arrows.keys) == len(inside)
    assert arrows.share == pytest.approx(1)


def test_no_weight_at_all(tmp_path):
    block = nln.NonLocalBlock(3, pairwise="dot_product").eval()
    arrows = attend(block, torch.zeros(1, 3, 4, 2, 3), (0.6, 0.6, 0.1), (4, 2, 3), 20)
    assert arrows.keys == []
    assert arrows.share == 0
    draw(torch.zeros(3, 4, 2, 3), {"": arrows}, tmp_path / "a.png", "")
    animate(torch.zeros(3, 4, 2, 3), {"": arrows}, tmp_path / "a.gif")


def test_a_point_needs_a_fraction_an_axis():
    block = nln.NonLocalBlock(3)
    with pytest.raises(ValueError, match=r"must be 3 fractions, one an axis, got \(0.5, 0.5\)"):
        attend(block, torch.zeros(1, 3, 4, 2, 3), (0.5, 0.5), (4, 2, 3), 20)


def arrows_in(query, **weights):
    """Arrows from the frame `query`, to keys in frames as in f3=0.5."""
    keys = [Mark(int(name[1:]), range(int(name[1:]), int(name[1:]) + 1), 0, 0, w) for name, w in weights.items()]
    return Arrows(Mark(query, range(query, query + 1), 0, 0, 1.0), keys, 1.0)


def test_frames_that_are_shown():
    assert shown(5, arrows_in(3, f1=0.5)) == [0, 1, 2, 3, 4]
    assert shown(8, arrows_in(0)) == list(range(8))
    assert shown(16, arrows_in(7)) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert shown(16, arrows_in(4)) == [1, 3, 4, 5, 7, 9, 11, 13, 15]
    assert shown(32, arrows_in(31)) == [2, 6, 10, 14, 18, 22, 26, 30, 31]
    assert shown(32, arrows_in(10, f0=0.3, f1=-0.4, f2=0.3, f16=0.1)) == [1, 6, 10, 14, 16, 22, 26, 30]
    for frames in range(9, 40):
        gaps = np.diff(shown(frames, arrows_in(frames // 16)))  # the first of the eight
        assert len(gaps) in (7, 8)
        assert gaps.max() <= -(-frames // 8) + 1


def test_a_key_goes_to_a_frame_that_its_cell_covers_else_to_the_nearest_of_its_eighth():
    assert nearest(Mark(6, range(4, 8), 0, 0, 1), [1, 3, 7, 9], 16) == 7
    assert nearest(Mark(6, range(2, 7), 0, 0, 1), [2, 7], 16) == 2
    assert nearest(Mark(4, range(4, 5), 0, 0, 1), [1, 3, 5, 7], 16) == 5
    assert nearest(Mark(5, range(5, 6), 0, 0, 1), [1, 3, 4, 6], 16) == 4
    assert nearest(Mark(8, range(8, 9), 0, 0, 1), [7, 9, 11], 32) == 9


def test_arrows_in_the_picture(tmp_path, monkeypatch):
    """Each from the query's axes to the key's, dotted where the key's frame is not among them; none to itself."""
    from matplotlib.figure import Figure
    from matplotlib.patches import ConnectionPatch

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    query = Mark(4, range(4, 5), 3.0, 5.0, 0.5)
    others = [(4, 1, 2, -0.4), (13, 6, 7, 0.25), (7, 3, 3, 0.2), (6, 0, 1, 0.1)]
    keys = [query, *(Mark(frame, range(frame, frame + 1), *place) for frame, *place in others)]
    draw(torch.rand(1, 16, 8, 10), {"one": Arrows(query, keys, 0.9)}, tmp_path / "a.png", "name")
    (figure,) = figures
    axes = {axis.get_xlabel(): axis for axis in figure.axes}
    assert list(axes) == [f"frame {k}" for k in (1, 3, 4, 7, 9, 11, 13, 15)]
    arrows = [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]
    assert all(arrow.xy1 == (5, 3) and arrow.coords1 is axes["frame 4"].transData for arrow in arrows)
    frames = [name for arrow in arrows for name, axis in axes.items() if arrow.coords2 is axis.transData]
    found = {(arrow.xy2, name, arrow.get_linestyle()) for arrow, name in zip(arrows, frames, strict=True)}
    assert found == {
        ((2, 1), "frame 4", "-"),
        ((7, 6), "frame 13", "-"),
        ((3, 3), "frame 7", "-"),
        ((1, 0), "frame 7", ":"),
    }
    opacity = {arrow.xy2: arrow.get_alpha() for arrow in arrows}
    assert opacity[2, 1] > opacity[7, 6] > opacity[1, 0] > 0
    colours = {arrow.xy2: arrow.get_edgecolor()[:3] for arrow in arrows}
    assert colours[7, 6] == colours[1, 0] != colours[2, 1]
    crosses = [artist for artist in figure.artists if artist not in arrows]
    assert all(cross.get_xydata().tolist() == [[5, 3]] for cross in crosses)
    assert all(cross.get_transform() is axes["frame 4"].transData for cross in crosses)


def test_circles_in_the_animation(tmp_path):
    """A still clip, and keys in frames 1 and 2: all frames are there, circles in these only, the stronger is larger."""
    query = Mark(0, range(0, 1), 1, 1, 0.5)
    keys = [Mark(1, range(1, 3), 5, 5, 0.5), Mark(3, range(3, 4), 5, 5, 0.1)]
    clip = torch.zeros(3, 6, 10, 10)
    animate(clip, {"one": Arrows(query, keys, 1.0), "two": Arrows(query, [], 0.0)}, tmp_path / "a.gif")
    extents = []
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 6
        for k in range(6):
            film.seek(k)
            red, green, blue = np.moveaxis(np.asarray(film.convert("RGB")).astype(int), 2, 0)
            rows, columns = np.nonzero((red > 200) & (green > 200) & (blue < 60))
            extents.append(np.ptp(columns) if len(columns) else 0)
            if len(columns):  # the first panel starts at (0, 36), and a pixel of the clip is 24 of the panel
                assert (columns.mean(), rows.mean()) == pytest.approx((5 * 24, 36 + 5 * 24), abs=1)
    assert extents[1] == extents[2] > extents[3] > 0
    assert extents[0] == extents[4] == extents[5] == 0


def test_the_query_point_of_the_cued_clips_is_the_middle_of_the_cue_in_its_first_frame():
    dataset = CuedClipsDataset("test", 30)
    for clip, _ in (dataset[k] for k in range(30)):
        windows = np.lib.stride_tricks.sliding_window_view(clip.numpy(), (CUE, CUE), axis=(2, 3))
        first, second = sorted(np.argwhere((windows == 1).all((4, 5))).tolist(), key=lambda found: found[1])
        assert second[1] == first[1] + 1
        _, *size = clip.shape
        point = [fraction * n for fraction, n in zip(CuedClips.query_point(clip), size, strict=True)]
        assert point == pytest.approx([first[1] + 0.5, first[2] + CUE / 2, first[3] + CUE / 2])
