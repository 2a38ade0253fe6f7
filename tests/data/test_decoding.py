"""Frames by number compared with plain PyAV, which counts from the start, and errors for all kinds of damage."""

import gc
import os
import struct
import sys
import wave
from collections import Counter
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nonlocal_nets.data.decoding import QUANTISER_2, CorruptVideoError, open_video, write_video

N = 60
SIZE = (48, 64)
VFR = np.cumsum([0, *(400 if k % 7 == 0 else 40 for k in range(1, N))]).tolist()  # milliseconds


def x264(gop, more=""):
    return {"crf": "10", "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=3:b-adapt=0{more}"}


MPEG = QUANTISER_2 | {"g": "12", "sc_threshold": "1000000000"}  # a keyframe every 12 frames, and no others
CASES = {  # name: codec, options, times in milliseconds
    "one_gop.mp4": ("libx264", x264(250), None),
    "gops.mp4": ("libx264", x264(12), None),
    "open_gops.mp4": ("libx264", x264(12, ":open-gop=1"), None),
    "refresh.mp4": ("libx264", {"crf": "10", "x264-params": "intra-refresh=1:keyint=20:bframes=0"}, None),
    "variable.mp4": ("libx264", x264(20), VFR),
    "late.mp4": ("libx264", x264(20), [5000 + 40 * k for k in range(N)]),
    "edited.mp4": ("libx264", x264(20), [-480 + 40 * k for k in range(N)]),  # an edit list removes frames before 0
    "mpeg4.mp4": ("mpeg4", MPEG | {"bf": "2"}, None),
    "gops.mkv": ("libx264", x264(20, ":open-gop=1"), None),
    "late.mkv": ("libx264", x264(20), [5000 + 40 * k for k in range(N)]),
    "vp9.webm": ("libvpx-vp9", {"crf": "5", "b": "0", "g": "20", "cpu-used": "8"}, None),
    "mpeg4.avi": ("mpeg4", MPEG, None),
    "mpeg4_b.avi": ("mpeg4", MPEG | {"bf": "2"}, None),
    "h264_b.avi": ("libx264", x264(20), None),
    "mpeg1.mpg": ("mpeg1video", MPEG | {"bf": "2"}, None),
    "wmv2.wmv": ("wmv2", MPEG, None),
    "flv1.flv": ("flv1", MPEG, None),
    "gops.ts": ("libx264", x264(12), None),
}


def grey(k):
    return 20 + 3 * k


def scene(k):
    """Frame k, a moving pattern with mean grey(k)."""
    rows, columns = np.indices(SIZE)
    pattern = np.where((rows + k) // 8 % 2 == (columns + 2 * k) // 8 % 2, 12, -12)
    return np.repeat((grey(k) + pattern).astype(np.uint8)[..., None], 3, axis=2)


def record(path, codec="libx264", options=None, times=None, container_options=None):
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000 if times else 25)
        for k in range(N):
            frame = av.VideoFrame.from_ndarray(scene(k), format="rgb24")
            frame.pts, frame.time_base = (times or range(N))[k], stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def counted(path):
    """All frames, decoded from the start."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def packets(path):
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def frames(path, numbers):
    with open_video(path) as video:
        return video.frames(numbers)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A function that returns the path and all frames of a case, which it records once."""
    folder = tmp_path_factory.mktemp("videos")

    @cache
    def get(name):
        codec, options, times = CASES[name]
        path = record(folder / name, codec, options, times)
        return path, counted(path)

    return get


@pytest.mark.parametrize("name", CASES)
def test_frames_by_number_are_those_of_a_sequential_decode(recorded, name):
    path, expected = recorded(name)
    first = N - len(expected)  # the edit list removes 12 frames
    assert first == (12 if name == "edited.mp4" else 0)
    means = expected.mean((1, 2, 3))
    assert np.abs(means - [grey(k) for k in range(first, N)]).max() < 1.5, "neighbours differ by 3"
    last, every = len(expected) - 1, list(range(len(expected)))
    for numbers in ([0], [last], [1], [last - 1, last], [29, 30, 31], [13, 13, 14, 14, 14], [0, last], every):
        with open_video(path) as video:
            assert len(video) == len(expected)
            np.testing.assert_array_equal(video.frames(numbers), expected[numbers])
    with open_video(path) as video:  # one video, many requests in any order
        for k in (40, 5, 41, 0, last, 20, 19, 21):
            np.testing.assert_array_equal(video.frames([k])[0], expected[k])


@pytest.mark.parametrize(
    "name", ["one_gop.mp4", "open_gops.mp4", "variable.mp4", "vp9.webm", "h264_b.avi", "mpeg1.mpg"]
)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, N - 1), min_size=1, max_size=6).map(sorted))
def test_any_frames(recorded, name, numbers):
    path, expected = recorded(name)
    np.testing.assert_array_equal(frames(path, numbers), expected[numbers])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_frame_alone(recorded, name):
    path, expected = recorded(name)
    for k in range(len(expected)):
        np.testing.assert_array_equal(frames(path, [k])[0], expected[k])


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
def test_a_video_cut_from_another_one_begins_with_its_first_complete_frame(recorded, tmp_path, name):
    """A copy from the second keyframe of open GOPs on begins with three frames that depend on lost ones."""
    path = tmp_path / name
    with av.open(str(recorded("open_gops.mp4")[0])) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stored = [packet for packet in source.demux(video=0) if packet.size]
        second = [k for k, packet in enumerate(stored) if packet.is_keyframe][1]
        begin = stored[second].dts
        for packet in stored[second:]:
            packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, stream
            target.mux(packet)
    expected = counted(path)
    with open_video(path) as video:
        assert len(video) == len(expected) == N - 12
        assert video.frames([0]).mean() == pytest.approx(grey(12), abs=2.5)
    for k in (0, 1, 17, len(expected) - 1):
        np.testing.assert_array_equal(frames(path, [k])[0], expected[k])


def test_the_rate_is_that_of_the_file(recorded, tmp_path):
    for name in ("gops.mp4", "vp9.webm", "mpeg4.avi", "mpeg1.mpg"):
        with open_video(recorded(name)[0], rate=3) as video:
            assert video.rate == 25
    write_video(tmp_path / "a.mp4", np.stack([scene(k) for k in range(9)]), rate=10)
    with open_video(tmp_path / "a.mp4") as video:
        assert (video.rate, len(video)) == (10, 9)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_written_videos_are_read_with_little_loss(tmp_path, name, codec):
    rows, columns = np.indices(SIZE)
    pixels = np.stack([np.stack([4 * rows, 3 * columns, np.full(SIZE, 9 * k)], -1) for k in range(20)]).astype(np.uint8)
    write_video(tmp_path / name, pixels, codec=codec)
    read = frames(tmp_path / name, list(range(20)))
    assert (read.shape, read.dtype) == (pixels.shape, np.uint8)
    assert np.abs(read.astype(int) - pixels).mean() < 4


# Phones store frames as recorded by the sensor, and a matrix that turns them upright


TURNS = {  # FFmpeg's filters for a matrix (a, b, c, d): x' = a x + c y, y' = b x + d y
    (0, 1, -1, 0): [("transpose", "clock")],
    (0, -1, 1, 0): [("transpose", "cclock")],
    (-1, 0, 0, -1): [("hflip", ""), ("vflip", "")],
    (-1, 0, 0, 1): [("hflip", "")],
    (1, 0, 0, -1): [("vflip", "")],
    (0, 1, 1, 0): [("transpose", "cclock_flip")],
    (0, -1, -1, 0): [("transpose", "clock_flip")],
}


def filtered(pixels, filters):
    """The result of libavfilter."""
    graph, (height, width, _) = av.filter.Graph(), pixels.shape
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 25))
    graph.link_nodes(source, *(graph.add(*given) for given in filters), graph.add("buffersink")).configure()
    graph.push(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
    return graph.pull().to_ndarray(format="rgb24")


def turn(path, matrix, target):
    """Write a copy of an mp4 file with the matrix in the header of its track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_upright(recorded, tmp_path, matrix):
    path, stored = recorded("gops.mp4")
    turn(path, matrix, tmp_path / "a.mp4")
    expected = [filtered(stored[k], TURNS[matrix]) for k in (7, 20)]
    assert not np.array_equal(expected[0], stored[7])
    with open_video(tmp_path / "a.mp4") as video:
        np.testing.assert_array_equal(video.frames([7, 20]), expected)
        video.times = None  # as in files without reliable times, where frames are counted
        np.testing.assert_array_equal(video.frames([7, 20]), expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the threads of the process from /proc")
def test_decoding_leaves_no_threads(recorded):
    """A forked worker, without its parent's threads, would wait for them forever when it frees their owner.

    Reference cycles must not keep that owner alive either.
    """
    path, _ = recorded("gops.mp4")
    before = len(os.listdir("/proc/self/task"))
    gc.disable()
    try:
        frames(path, [3, 7, 20])
        assert len(os.listdir("/proc/self/task")) == before
    finally:
        gc.enable()


# Folders of images


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "film").mkdir()
    for k in range(12):
        Image.fromarray(scene(k)).save(tmp_path / "film" / f"{k:03}.{'PNG' if k % 2 else 'png'}")
    (tmp_path / "film" / "notes.txt").write_text("no frame")
    return tmp_path / "film"


def test_a_folder_of_images_sorted_by_name(folder):
    with open_video(folder, rate=12) as video:
        assert (len(video), video.rate) == (12, 12)
        read = video.frames([0, 3, 3, 11])
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.stack([scene(k) for k in (0, 3, 3, 11)]))


def test_a_folder_of_images_with_different_sizes_or_damage(folder):
    Image.fromarray(scene(5)[:-1]).save(folder / "005.PNG")
    (folder / "007.PNG").write_text("no image")
    np.testing.assert_array_equal(frames(folder, [3, 4]), np.stack([scene(3), scene(4)]))
    check(folder, [4, 5], "frames of different sizes")
    check(folder, [6, 7], f"corrupt image {folder}/007.PNG: ")


def test_a_folder_without_images(tmp_path):
    check(tmp_path, [0], "a folder without images")


@pytest.mark.parametrize("numbers", [[-1, 0], [11, 12], [12]])
def test_frames_that_a_video_does_not_have(recorded, folder, numbers):
    check(folder, numbers, f"frames {numbers[0]} to {numbers[-1]} requested, but it has 12")
    shifted = [k + (0 if k < 0 else N - 12) for k in numbers]
    check(recorded("gops.mp4")[0], shifted, f"frames {shifted[0]} to {shifted[-1]} requested, but it has 60")


# Bad files


def check(path, numbers, message=""):
    """Check that the message is one line of reasonable length that names the path."""
    with pytest.raises(CorruptVideoError) as caught:
        frames(path, numbers)
    text = str(caught.value)
    assert text.startswith(f"corrupt video {path}: {message}")
    assert "\n" not in text
    assert len(text) < 150 + len(f"corrupt video {path}: ") + 1


@pytest.mark.parametrize("ending", ["mp4", "avi", "mkv", "webm", "mpg", "wmv"])
@pytest.mark.parametrize("content", [b"", b"no video at all\n" * 100, bytes(5000)], ids=["empty", "text", "zeros"])
def test_files_that_are_not_videos(tmp_path, ending, content):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    check(path, [0])


def test_no_such_file(tmp_path):
    check(tmp_path / "none.mp4", [0], "[Errno 2] No such file or directory")


def test_a_path_that_looks_like_a_url(recorded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, expected = recorded("gops.mp4")
    for name in ("http:a.mp4", "12:30.mp4", "ümlaut %03d.mp4"):
        (tmp_path / name).write_bytes(path.read_bytes())
        np.testing.assert_array_equal(frames(name, [7]), expected[[7]])


def test_sound_only(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    for name in ("a.wav", "a.m4a"):
        check(tmp_path / name, [0], "no video stream")


def test_a_header_without_frames(recorded, tmp_path):
    for name in ("gops.mkv", "mpeg4.avi"):
        path = tmp_path / name
        path.write_bytes(recorded(name)[0].read_bytes()[: 1200 if name.endswith("mkv") else 5700])
        with pytest.raises(CorruptVideoError):
            frames(path, [N - 1])


def test_an_mp4_without_its_end_cannot_be_opened(recorded, tmp_path):
    data = recorded("gops.mp4")[0].read_bytes()
    for share in (0.2, 0.5, 0.8):  # the index, moov, is at the end
        (tmp_path / "cut.mp4").write_bytes(data[: int(share * len(data))])
        check(tmp_path / "cut.mp4", [0])


@pytest.mark.parametrize("name", ["fast.mp4", "mpeg4.avi", "mpeg4_b.avi"])
def test_a_truncated_file_still_has_its_first_frames(recorded, tmp_path, name):
    if name == "fast.mp4":
        source = record(tmp_path / "source.mp4", "libx264", x264(20), container_options={"movflags": "faststart"})
    else:
        source = recorded(name)[0]
    data, expected, path = source.read_bytes(), counted(source), tmp_path / name
    for packet in packets(source)[20:60:15]:
        path.write_bytes(data[: packet.pos + packet.size // 2])
        outcomes = [outcome(path, [k], expected) for k in range(0, N, 3)]
        good = outcomes.count("right")
        assert outcomes == ["right"] * good + ["error"] * (len(outcomes) - good)
        assert 0.2 < good / len(outcomes) < 0.9
        if name == "fast.mp4":  # the index at the start has the number of frames
            check(path, [0, N - 1], "frame 59 of 60 is missing")
            with open_video(path) as video:
                assert len(video) == N


def outcome(path, numbers, expected):
    """ "right", "error", "picture" for wrong pixels, or "number" for a frame with another number."""
    try:
        read = frames(path, numbers)
    except CorruptVideoError:
        return "error"
    if np.array_equal(read, expected[numbers]):
        return "right"
    for k, frame in zip(numbers, read, strict=True):
        distances = np.abs(expected.astype(int) - frame).mean((1, 2, 3))
        if distances.argmin() != k and distances.min() < 0.5 and distances[k] > 2:
            return "number"
    return "picture"


NOISE = {  # the share of requests to files with noise that may return wrong pixels without an error
    "gops.mp4": 0.05,
    "gops.mkv": 0.08,
    "mpeg4.avi": 0.08,
    "mpeg4_b.avi": 0.08,
    "mpeg1.mpg": 0.08,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOISE)
def test_noise_is_mostly_an_error_or_harmless(recorded, tmp_path, name):
    """Noise may produce another valid picture, as none of these containers has checksums of the frames.

    VP9 is not tested, because its decoder accepts nearly any bits.
    """
    path, expected = recorded(name)
    counts = noise(path, expected, tmp_path / name, 40)
    total = sum(counts.values())
    assert counts["picture"] + counts["number"] <= NOISE[name] * total, counts
    assert counts["number"] <= 0.02 * total, counts
    assert counts["error"] > 0.1 * total, counts


def noise(path, expected, target, files):
    data, random, counts = path.read_bytes(), np.random.default_rng(0), Counter()
    for _ in range(files):
        spoiled, length = bytearray(data), int(random.choice([4, 50, 400]))
        start = int(random.uniform(0.15, 0.8) * len(data))
        spoiled[start : start + length] = random.bytes(length)
        target.write_bytes(spoiled)
        counts.update(outcome(target, numbers, expected) for numbers in ([5], [20, 22, 24], [30], [41], [N - 1]))
    return counts


def test_frames_that_depend_on_a_damaged_one_are_an_error_too(recorded, tmp_path):
    """FFmpeg marks only the damaged frame, but all frames up to the next keyframe may be wrong."""
    path, expected = recorded("one_gop.mp4")
    packet = packets(path)[17]
    spoiled = bytearray(path.read_bytes())
    spoiled[packet.pos + 8 : packet.pos + packet.size] = np.random.default_rng(1).bytes(packet.size - 8)
    (tmp_path / "a.mp4").write_bytes(spoiled)
    outcomes = [outcome(tmp_path / "a.mp4", [k], expected) for k in range(0, N, 3)]
    assert outcomes[:5] == ["right"] * 5
    assert outcomes[7:] == ["error"] * 13
