"""What all video data modules share: frames, crops, views, pixels compared with Pillow, corrupt files, predict."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from nonlocal_nets.data.decoding import CorruptVideoError, write_video
from nonlocal_nets.data.videos import Clips, VideoDataModule, crop

WORKERS = pytest.mark.parametrize("num_workers", [0, 2])
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}
SMALL = {"frames": 2, "stride": 3, "image_size": 8, "scale": (8, 10), "test_size": 8, "test_clips": 2}


class Films(VideoDataModule):
    """The same videos in all parts; video k has label k."""

    def __init__(self, paths, **args):
        samples = [(str(path), k) for k, path in enumerate(paths)]
        parts = {"train": samples, "val": samples, "test": samples}
        super().__init__(class_names=[str(k) for k in range(len(samples))], parts=parts, **(SMALL | args))


def write_folder(path, frames):
    """Write a video without loss, as a folder of images."""
    path.mkdir()
    for k, frame in enumerate(frames):
        Image.fromarray(np.asarray(frame, np.uint8)).save(path / f"{k:03}.png")
    return path


@pytest.fixture
def film(tmp_path):
    """A video of 12 frames; frame k has the value 10 k everywhere."""
    return write_folder(tmp_path / "film", [np.full((6, 4, 3), 10 * k) for k in range(12)])


@pytest.fixture
def files(tmp_path):
    """Twelve short video files; file k has the value 20 k everywhere."""
    (tmp_path / "files").mkdir()
    paths = [tmp_path / "files" / f"{k:02}.mp4" for k in range(12)]
    for k, path in enumerate(paths):
        write_video(path, np.full((5, 12, 16, 3), 20 * k, np.uint8))
    return paths


def spoil(path, how):
    if how == "short":
        write_video(path, np.zeros((3, 12, 16, 3), np.uint8))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:300])
    else:
        path.write_text({"text": "no video at all\n", "empty": ""}[how])


def identity(x):
    return x


def numbers(clip):
    """The numbers of the frames of `film` in a clip (3, T, H, W)."""
    assert (clip == clip[:1, :, :1, :1]).all()
    return (clip[0, :, 0, 0] // 10).tolist()


def shown(x):
    """The numbers of the `files` that a batch of clips or views in [0, 1] shows."""
    return (x.flatten(1).mean(1) * 255 / 20).round().int().tolist()


# Frames


@pytest.mark.parametrize(("frames", "stride", "room"), [(3, 4, 3), (1, 7, 11), (12, 1, 0), (2, 11, 0), (4, 2, 5)])
def test_a_training_clip_starts_anywhere_and_keeps_its_stride(film, frames, stride, room):
    torch.manual_seed(0)
    clips = Clips([(str(film), "label")], frames, stride, identity)
    starts = Counter()
    for _ in range(15 * (room + 1)):
        clip, label = clips[0]
        assert (clip.shape, clip.dtype, label) == ((3, frames, 6, 4), torch.uint8, "label")
        assert clip.is_contiguous()
        first = numbers(clip)[0]
        assert numbers(clip) == [first + k * stride for k in range(frames)]
        starts[first] += 1
    assert set(starts) == set(range(room + 1)), "from the first to the last that fits"


@pytest.mark.parametrize("clips", [None, 1, 3])
@pytest.mark.parametrize(("frames", "stride"), [(13, 1), (4, 4), (2, 12)])
def test_a_video_that_is_too_short_is_corrupt(film, clips, frames, stride):
    message = f"^corrupt video {film}: 12 frames, too short for {frames} with stride {stride}$"
    with pytest.raises(CorruptVideoError, match=message):
        Clips([(str(film), 0)], frames, stride, identity, clips)[0]


@pytest.mark.parametrize(
    ("clips", "frames", "stride", "starts"),
    [
        (1, 3, 2, [3]),  # 7 frames to spare: 3 before the clip, 4 after it
        (1, 2, 5, [3]),
        (1, 12, 1, [0]),
        (4, 3, 4, [0, 1, 2, 3]),
        (2, 3, 4, [0, 3]),
        (3, 2, 1, [0, 5, 10]),
        (3, 12, 1, [0, 0, 0]),
        (10, 2, 8, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]),
    ],
)
def test_clips_are_evenly_spaced_from_the_first_frame_to_the_last_or_in_the_middle(film, clips, frames, stride, starts):
    views, _ = Clips([(str(film), 0)], frames, stride, identity, clips)[0]
    assert views.shape == (clips, 3, frames, 6, 4)
    assert [numbers(view) for view in views] == [[start + k * stride for k in range(frames)] for start in starts]


def test_views_are_clips_by_crops(film):
    views, _ = Clips([(str(film), 0)], 2, 1, identity, 2, 3)[0]
    assert views.shape == (6, 3, 2, 4, 4)
    assert [numbers(view) for view in views] == [[0, 1]] * 3 + [[10, 11]] * 3


def test_labels_may_depend_on_the_time_of_the_clip(film):
    class Timed(Clips):
        def label(self, target, begin, end):
            return target, begin, end

    torch.manual_seed(0)
    for _ in range(9):
        clip, label = Timed([(str(film), "a")], 3, 4, identity, rate=2)[0]
        first = numbers(clip)[0]
        assert label == ("a", first / 2, (first + 9) / 2), "from the start of the first frame to the end of the last"
    for clips in (1, 2):
        assert Timed([(str(film), "a")], 3, 4, identity, clips, rate=2)[0][1] == ("a", 0, math.inf)


# Pixels


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (5, 5), (4, 5)])
@pytest.mark.parametrize("crops", [1, 2, 3, 4])
def test_crops_are_evenly_spaced_from_one_end_to_the_other(shape, crops):
    frames = torch.arange(2 * 3 * math.prod(shape)).reshape(2, 3, *shape)
    side, room = min(shape), max(shape) - min(shape)
    squares = crop(frames, crops)
    assert squares.shape == (crops, 2, 3, side, side)
    starts = [room // 2] if crops == 1 else [math.floor(room * k / (crops - 1)) for k in range(crops)]
    assert (starts[0], starts[-1]) == (0, room) or crops == 1
    for square, start in zip(squares.numpy(), starts, strict=True):
        rows, columns = (start, 0) if shape[0] > shape[1] else (0, start)
        np.testing.assert_array_equal(square, frames.numpy()[..., rows : rows + side, columns : columns + side])
    assert torch.equal(crop(frames, None), frames[None])


@pytest.fixture(params=[(30, 44), (44, 30)], ids=["landscape", "portrait"])
def noisy(request, tmp_path):
    """A video of seven frames, and its pixels."""
    pixels = np.random.default_rng(0).integers(255, size=(7, *request.param, 3), dtype=np.uint8)
    return write_folder(tmp_path / "noisy", pixels), pixels


def resized(frames, short):
    """Frames resized by Pillow to a shorter side of `short`."""
    height, width = frames.shape[1:3]
    size = (short * width // min(height, width), short * height // min(height, width))
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR)) for f in frames])


def normalised(pixels_THWC, mean, std):
    return ((pixels_THWC / 255 - mean) / std).transpose(3, 0, 1, 2)


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def test_validation_takes_the_central_crop_of_the_middle_clip_as_a_single_view(noisy):
    path, pixels = noisy
    data = Films([path], frames=2, stride=2, scale=(15, 99), image_size=10, mean=MEAN, std=STD)
    ((views, labels),) = data.val_dataloader()
    assert (views.shape, views.dtype, labels.dtype) == ((1, 1, 3, 2, 10, 10), torch.float32, torch.int64)
    small = resized(pixels[[2, 4]], 15)
    row, column = (round((side - 10) / 2) for side in small.shape[1:3])
    expected = normalised(small[:, row : row + 10, column : column + 10], MEAN, STD)
    np.testing.assert_allclose(
        views[0, 0], expected, atol=1.01 / 255 / 0.5, err_msg="pixels may be rounded differently"
    )


def test_the_test_takes_squares_or_whole_frames(noisy):
    path, pixels = noisy
    given = {"frames": 3, "stride": 2, "test_size": 15, "test_clips": 2, "mean": MEAN, "std": STD}
    ((views, _),) = Films([path], test_crops=3, **given).test_dataloader()
    ((whole, _),) = Films([path], test_crops="frame", **given).test_dataloader()
    small = [resized(pixels[first : first + 5 : 2], 15) for first in (0, 2)]  # frames 0, 2, 4 and 2, 4, 6 of 7
    expected = np.stack([normalised(clip, MEAN, STD) for clip in small])
    assert whole.shape == (1, 2, 3, 3, *small[0].shape[1:3])
    np.testing.assert_allclose(whole[0], expected, atol=1.01 / 255 / 0.5)
    assert views.shape == (1, 6, 3, 3, 15, 15)
    for k, (clip, start) in enumerate((clip, start) for clip in (0, 1) for start in (0, 3, 7)):
        long = whole[0, clip].shape[-1] > 15
        square = whole[0, clip][..., start : start + 15] if long else whole[0, clip][..., start : start + 15, :]
        assert torch.equal(views[0, k], square)


@pytest.mark.parametrize("crops", [1, "frame"])
def test_a_single_view_keeps_the_axis_of_views(film, crops):
    data = Films([film], test_clips=1, test_crops=crops, **PLAIN)
    data.paths = [str(film)]  # as an argument, a folder is searched for video files
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        ((views, _),) = loader
        assert views.shape == (1, 1, 3, 2, 12 if crops == "frame" else 8, 8)
        assert numbers((views[0, 0] * 255).round()) == [4, 7]


def test_the_default_normalisation_is_that_of_the_released_code(film):
    ((views, _),) = Films([film], frames=1).val_dataloader()
    expected = (50 - 114.75) / 57.375  # frame 5, the middle one
    np.testing.assert_allclose(views, expected, rtol=1e-5)


SIDE = 16


@pytest.fixture(params=[(40, 60), (60, 40)], ids=["landscape", "portrait"])
def ramp(request, tmp_path):
    """Six equal frames and their size; red is 4 x the column and green 4 x the row, to locate a crop."""
    rows, columns = np.indices(request.param)
    return write_folder(tmp_path / "ramp", [np.stack([4 * columns, 4 * rows, 0 * rows], -1)] * 6), request.param


@pytest.mark.parametrize("flip", [True, False])
def test_training_jitters_crops_and_mirrors_whole_clips(ramp, flip):
    path, (height, width) = ramp
    data = Films([path], frames=3, stride=1, image_size=SIDE, scale=(20, 24), flip=flip, **PLAIN)
    seen, loader = [], data.train_dataloader()
    for epoch in range(60):
        loader.sampler.set_epoch(epoch)
        ((clips, _),) = loader
        clip = clips[0] * 255
        assert clip.shape == (3, 3, SIDE, SIDE)
        assert (clip == clip[:, :1]).all(), "the same for all frames"
        right = np.polyfit(range(2, SIDE - 2), clip[0, 0, 0, 2:-2], 1)[0]
        down = np.polyfit(range(2, SIDE - 2), clip[1, 0, 2:-2, 0], 1)[0]
        assert abs(right) == pytest.approx(down, rel=0.04), "same aspect ratio, except for rounding of the longer side"
        short = 4 * 40 / (down if height == 40 else abs(right))
        column, row = clip[0, 0].mean() / 4 / width, clip[1, 0].mean() / 4 / height
        seen.append((round(short), right < 0, round(float(column), 2), round(float(row), 2)))
        assert abs(short - round(short)) < 0.35
    sizes, mirrored, columns, rows = (Counter(values) for values in zip(*seen, strict=True))
    assert set(sizes) == {20, 21, 22, 23, 24}, "both ends of scale included"
    assert 15 < mirrored[True] < 45 if flip else not mirrored[True]
    assert len(columns) > 5
    assert len(rows) > 5
    assert len(set(seen)) > 40


def test_clips_of_a_batch_differ(ramp):
    data = Films([ramp[0]] * 6, frames=2, stride=1, image_size=SIDE, scale=(20, 24), batch_size=6)
    ((clips, labels),) = data.train_dataloader()
    assert sorted(labels.tolist()) == list(range(6))
    assert len({clip.numpy().tobytes() for clip in clips}) >= 5


def test_workers_draw_different_clips(film):
    data = Films([film] * 24, frames=1, batch_size=1, num_workers=2, **PLAIN)
    first = [float(clips.mean()) for clips, _ in data.train_dataloader()]
    assert first[::2] != first[1::2]
    assert len(set(first)) > 6


# Batches


@WORKERS
def test_shapes_labels_and_the_order_by_seed(files, num_workers, monkeypatch):
    data = Films(files, batch_size=5, num_workers=num_workers, test_crops=3, **PLAIN)
    runs = []
    for seed in ("0", "0", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        batches = list(data.train_dataloader())
        assert [clips.shape for clips, _ in batches] == [(5, 3, 2, 8, 8)] * 2, "the incomplete last batch is dropped"
        assert all(shown(clips) == labels.tolist() for clips, labels in batches)
        runs.append([label for _, labels in batches for label in labels.tolist()])
    assert runs[0] == runs[1] != runs[2]
    batches = list(data.val_dataloader())
    assert [views.shape for views, _ in batches] == [(count, 1, 3, 2, 8, 8) for count in (5, 5, 2)]
    assert [k for views, _ in batches for k in shown(views)] == list(range(12))
    assert [label for _, labels in batches for label in labels.tolist()] == list(range(12))
    batches = list(data.test_dataloader())
    assert [views.shape for views, _ in batches] == [(1, 6, 3, 2, 8, 8)] * 12, "test_batch_size is 1"
    assert [k for views, _ in batches for k in shown(views)] == list(range(12))
    assert [int(label) for _, label in batches] == list(range(12))


def test_random_clips_follow_the_seed(film, monkeypatch):
    data = Films([film] * 4, frames=1, batch_size=4, **PLAIN)
    draws = []
    for seed in ("3", "3", "4"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        ((clips, labels),) = data.train_dataloader()
        draws.append(clips[labels.argsort()])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_videos_of_any_size_share_a_batch(tmp_path):
    paths = [
        write_folder(tmp_path / f"{h}x{w}", [np.zeros((h, w, 3))] * 4) for h, w in ((10, 20), (20, 10), (9, 9), (4, 5))
    ]
    data = Films(paths, batch_size=4, test_batch_size=4)
    assert [x.shape for x, _ in data.train_dataloader()] == [(4, 3, 2, 8, 8)]
    assert [x.shape for x, _ in data.val_dataloader()] == [(4, 1, 3, 2, 8, 8)]
    assert [x.shape for x, _ in data.test_dataloader()] == [(4, 6, 3, 2, 8, 8)]


def test_classes_and_input_size_are_known_after_construction(files):
    data = Films(files, image_size=6, frames=4)
    assert (data.num_classes, data.class_names[:2], data.input_size) == (12, ("0", "1"), (3, 4, 6, 6))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"test_clips": 0}, "test_clips must be at least 1, got 0"),
        ({"test_crops": 0}, "test_crops must be an int of at least 1 or 'frame', got 0"),
        ({"test_crops": 2.5}, "test_crops must be an int of at least 1 or 'frame', got 2.5"),
        ({"test_crops": "frames"}, "test_crops must be an int of at least 1 or 'frame', got 'frames'"),
        ({"test_size": 0}, "test_size must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"test_batch_size": 0}, "test_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"scale": (7, 9)}, r"scale must be two rising lengths of at least image_size=8, got \(7, 9\)"),
        ({"scale": (9, 8)}, r"scale must be two rising lengths of at least image_size=8, got \(9, 8\)"),
        (
            {"test_crops": "frame", "test_batch_size": 2},
            "test_crops='frame' needs test_batch_size=1, as sizes vary; got 2",
        ),
        ({"std": (1.0, 0.0, 1.0)}, "mean and std must be three numbers, std above 0"),
        ({"mean": (0.5,)}, "mean and std must be three numbers"),
        ({"corrupt": "skip"}, "corrupt must be 'stop' or 'replace', got 'skip'"),
        ({"max_corrupt": 1.0}, r"max_corrupt must be a share in \[0, 1\), got 1.0"),
        ({"path": "no/such"}, "no file or folder no/such: expected a video, or a folder with videos"),
    ],
)
def test_invalid_arguments(film, args, message):
    with pytest.raises(ValueError, match=message):
        Films([film], **args)


# Corrupt files


@WORKERS
@pytest.mark.parametrize("how", ["cut", "text", "empty", "short"])
def test_a_corrupt_video_stops_with_its_path(files, how, num_workers, failure):
    spoil(files[5], how)
    seen, message = failure(Films(files, batch_size=2, num_workers=num_workers).val_dataloader())
    assert seen == 2, "the batches before it are read"
    assert f"corrupt video {files[5]}: " in message.strip().splitlines()[-1], "the last line of a worker's traceback"


@WORKERS
def test_corrupt_videos_are_replaced_and_named_once(files, num_workers, failure, warnings_of_all_processes):
    for k, how in ((2, "text"), (6, "short"), (7, "cut")):
        spoil(files[k], how)
    given = {"num_workers": num_workers, "corrupt": "replace", "max_corrupt": 0.25}
    loader = Films(files, batch_size=2, **given, **PLAIN).val_dataloader()
    for _ in range(2):
        batches = list(loader)
        labels = [label for _, labels in batches for label in labels.tolist()]
        assert labels == [0, 1, 3, 3, 4, 5, 8, 8, 8, 9, 10, 11], "the next good one, with its own label"
        assert [k for views, _ in batches for k in shown(views)] == labels
    lines = warnings_of_all_processes()
    assert len(lines) == 3
    for k in (2, 6, 7):
        (line,) = (line for line in lines if f"corrupt video {files[k]}: " in line)
        assert "replaced by another" in line
    assert any("(3 of 12 videos so far)" in line for line in lines)


@WORKERS
def test_more_corrupt_videos_than_the_share_stop_with_a_list(files, num_workers, failure):
    for k in (0, 3, 6, 10):
        spoil(files[k], "text")
    data = Films(files, batch_size=1, num_workers=num_workers, corrupt="replace", max_corrupt=0.25)
    seen, message = failure(data.val_dataloader())
    assert seen == 10, "the workers share the count"
    last_line = message.strip().splitlines()[-1]
    assert f"corrupt video {files[10]}: " in last_line
    assert f"4 of 12 videos so far, more than max_corrupt=0.25: {files[0]}" in last_line
    assert last_line.endswith("more)")


# Predict


@WORKERS
def test_predict_gives_views_and_paths_of_a_folder_sorted(files, tmp_path, num_workers):
    (tmp_path / "files" / "z").mkdir()
    write_video(tmp_path / "files" / "z" / "b.MKV", np.full((9, 20, 12, 3), 40, np.uint8))
    (tmp_path / "files" / "notes.txt").write_text("not a video")
    given = {"num_workers": num_workers, "test_batch_size": 5, "path": str(tmp_path / "files")}
    data = Films(files, **given, **PLAIN)
    batches = list(data.predict_dataloader())
    assert [type(paths) for _, paths in batches] == [list] * 3
    expected = [*map(str, files), str(tmp_path / "files" / "z" / "b.MKV")]
    assert [path for _, paths in batches for path in paths] == expected
    views = torch.cat([views for views, _ in batches])
    assert views.shape == (13, 6, 3, 2, 8, 8)
    assert shown(views) == [*range(12), 2]
    assert torch.equal(views[:12], torch.cat([views for views, _ in data.test_dataloader()]))


def test_predict_without_videos_and_on_a_corrupt_one(files, tmp_path):
    with pytest.raises(ValueError, match=r"predict needs videos: --data.path=<file or folder>"):
        Films(files).predict_dataloader()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no video in .*empty: expected files that end in \.mp4"):
        Films(files, path=str(tmp_path / "empty"))
    spoil(files[3], "text")
    data = Films(files, path=str(files[0].parent), corrupt="replace", max_corrupt=0.5)
    with pytest.raises(CorruptVideoError, match=str(files[3])):
        list(data.predict_dataloader())
