"""VideoFolder: random and official splits, the layout with train and val, and packed B-frames as in UCF101."""

import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from nonlocal_nets.data import VideoFolder
from nonlocal_nets.data.decoding import open_video
from nonlocal_nets.data.video_folder import fake

GROUPS = {"train": ("g02", "g03"), "val": ("g01",), "test": ("g04",)}
N = 30


@pytest.fixture
def ucf(tmp_path):
    return tmp_path, fake(tmp_path)


def names(data, part):
    """The videos of a part, as <class>/<file>, after a check that their labels are their folders."""
    paths = [Path(path) for path, _ in data.parts[part]]
    assert [path.parent.name for path in paths] == [data.class_names[label] for _, label in data.parts[part]]
    return [f"{path.parent.name}/{path.name}" for path in paths]


def test_the_official_split_of_ucf101_and_validation_with_whole_groups(ucf, colours_and_labels):
    root, args = ucf
    lists = {part: (root / "ucfTrainTestlist" / f"{part}list01.txt").read_text() for part in ("train", "test")}
    listed = {part: [line.split()[0] for line in text.splitlines()] for part, text in lists.items()}
    validations = []
    for seed in range(3):
        data = VideoFolder(**args, batch_size=3, seed=seed)
        assert data.class_names == ("Archery", "Biking", "Diving")
        assert names(data, "test") == listed["test"]
        assert sorted(names(data, "train") + names(data, "val")) == sorted(listed["train"])
        groups = {part: Counter(name.rpartition("_c")[0] for name in names(data, part)) for part in ("train", "val")}
        assert not groups["train"].keys() & groups["val"].keys()
        assert Counter(name.partition("/")[0] for name in groups["val"]) == {"Archery": 1, "Biking": 1, "Diving": 1}
        assert set(groups["val"].values()) == {2}
        validations.append(sorted(groups["val"]))
    assert len({tuple(groups) for groups in validations}) > 1
    assert validations[0] == sorted({name.rpartition("_c")[0] for name in names(VideoFolder(**args), "val")})
    for part in ("train", "val", "test"):
        colours, labels = colours_and_labels(getattr(data, f"{part}_dataloader")())
        assert (colours == labels[:, None]).all()


def test_the_fold_chooses_the_lists_of_ucf101(ucf):
    root, args = ucf
    folder = root / "ucfTrainTestlist"
    (folder / "trainlist02.txt").write_text("".join(f"Biking/v_Biking_g0{k}_c01.avi 2\n" for k in (1, 2, 3)))
    (folder / "testlist02.txt").write_text("Diving/v_Diving_g04_c02.avi\n")
    data = VideoFolder(**args, fold=2)
    assert names(data, "test") == ["Diving/v_Diving_g04_c02.avi"]
    assert sorted(names(data, "train") + names(data, "val")) == [f"Biking/v_Biking_g0{k}_c01.avi" for k in (1, 2, 3)]


def test_hmdb51_lists(ucf):
    root, args = ucf
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir()
    for name in ("Archery", "Biking", "Diving"):
        files = sorted(path.name for path in (root / "UCF-101" / name).iterdir())
        for fold, uses in ((1, [2, 2, 2, 2, 1, 1, 0, 1]), (2, [1, 1, 1, 1, 2, 2, 0, 0])):
            text = "".join(f"{file} {use} \n" for file, use in zip(files, uses, strict=True))
            (lists / f"{name}_test_split{fold}.txt").write_text(text)
    data = VideoFolder(**args | {"splits": str(lists), "fold": 2})
    train, test = (
        [f"{name}/v_{name}_g0{group}_c0{k}.avi" for name in data.class_names for group in groups for k in (1, 2)]
        for groups in ((1, 2), (3,))
    )
    assert sorted(names(data, "train") + names(data, "val")) == train
    assert names(data, "test") == test, "without group 4, whose use is 0"


def test_a_random_split_is_stratified_and_depends_on_the_seed(ucf):
    root, args = ucf
    args |= {"splits": None, "test_fraction": 0.5, "val_fraction": 0.125}
    splits = [VideoFolder(**args, seed=seed) for seed in range(3)]
    for data in splits:
        for part, count in (("train", 3), ("val", 1), ("test", 4)):
            assert np.bincount([label for _, label in data.parts[part]]).tolist() == [count] * 3
        everything = sorted(name for part in ("train", "val", "test") for name in names(data, part))
        assert everything == sorted(f"{path.parent.name}/{path.name}" for path in root.glob("UCF-101/*/*.avi"))
    assert VideoFolder(**args).parts == splits[0].parts != splits[1].parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "no/such"}, "no video in no/such: expected no/such/<class>"),
        ({"splits": "no/such"}, "no lists for split 1 in no/such: expected UCF101's trainlist01.txt"),
        ({"fold": 3}, "no lists for split 3"),
    ],
)
def test_invalid_arguments(ucf, changes, message):
    with pytest.raises(ValueError, match=message):
        VideoFolder(**ucf[1] | changes)


def test_classes_without_videos_and_listed_videos_that_are_missing(ucf):
    root, args = ucf
    (root / "UCF-101" / "Diving" / "v_Diving_g03_c01.avi").unlink()
    with pytest.raises(ValueError, match=r"1 of 24 listed videos are missing: Diving/v_Diving_g03_c01.avi"):
        VideoFolder(**args)
    (root / "UCF-101" / "Empty").mkdir()
    with pytest.raises(ValueError, match=r"no video in .*Empty: expected"):
        VideoFolder(**args)


@pytest.fixture
def parted(tmp_path):
    """The layout with train, val and test: its folder, and the arguments that read it."""
    args = fake(tmp_path / "source")
    for part, groups in GROUPS.items():
        for path in Path(args["root"]).glob("*/*.avi"):
            if any(group in path.name for group in groups):
                (tmp_path / part / path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, tmp_path / part / path.parent.name)
    return tmp_path, args | {"root": str(tmp_path), "splits": None}


def test_a_folder_with_train_and_val_is_not_split_again(parted):
    root, args = parted
    data = VideoFolder(**args)
    for part in GROUPS:
        assert names(data, part) == sorted(f"{path.parent.name}/{path.name}" for path in (root / part).glob("*/*"))
        assert {Path(path).parts[-3] for path, _ in data.parts[part]} == {part}
    shutil.rmtree(root / "test")
    data = VideoFolder(**args)
    assert data.parts["test"] == data.parts["val"] != data.parts["train"]


def test_invalid_layouts_with_train_and_val(parted):
    root, args = parted
    with pytest.raises(ValueError, match=r"is already split into train and val: splits must be null, got .*lists"):
        VideoFolder(**args | {"splits": "lists"})
    (root / "val" / "Biking").rename(root / "val" / "Bowling")
    message = r"train and .*val have different classes; only in train: Biking; only in val: Bowling"
    with pytest.raises(ValueError, match=message):
        VideoFolder(**args)
    shutil.rmtree(root / "val")
    with pytest.raises(ValueError, match=rf"no video in {root}/val: expected {root}/val/<class>"):
        VideoFolder(**args)


def test_a_class_may_be_called_train(parted):
    root, args = parted
    for name, source in (("train", "Biking"), ("tram", "Diving")):
        shutil.copytree(root / "train" / source, root / "mine" / name)
    assert VideoFolder(**args | {"root": str(root / "mine")}).class_names == ("train", "tram")


# Packed B-frames: DivX stores a B-frame in the chunk of the frame on which it depends, and an empty frame after it.

EMPTY = bytes.fromhex("000001b6504000")
MARK = b"\0\0\1\xb2DivX503b1393p"  # shows decoders that B-frames are packed


def record(path, b_frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"flags": "+qscale", "global_quality": "236"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.max_b_frames = b_frames
        for k in range(N):
            pixels = np.full((48, 64, 3), 20 + 7 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def kind(packet):
    return "IPBS"[packet[packet.find(b"\0\0\1\xb6") + 4] >> 6]


def pack(packets):
    """The same number of packets as stored by DivX; each comes with whether it is a keyframe."""
    kinds, chunks = [*(kind(data) for data, _ in packets), "none"], []
    for k, (data, key) in enumerate(packets):
        if kinds[k] != "B":
            chunks.append((data + packets[k + 1][0] if kinds[k + 1] == "B" else data, key))
            continue
        if kinds[k - 1] == "B":  # else it is in the previous chunk
            chunks.append((data, key))
        if kinds[k + 1] != "B":
            chunks.append((EMPTY, False))
    return chunks


def marked(data):
    begin = data.find(b"\0\0\1\xb2Lavc")
    if begin < 0:
        return data
    return data[:begin] + MARK + data[data.find(b"\0\0\1", begin + 4) :]


@pytest.mark.parametrize("b_frames", [1, 2])
def test_frames_by_number_of_an_avi_with_packed_b_frames(tmp_path, b_frames):
    record(tmp_path / "plain.avi", b_frames)
    with av.open(str(tmp_path / "plain.avi")) as source, av.open(str(tmp_path / "a.avi"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        stream.codec_context.extradata = None
        stream.codec_context.codec_tag = "XVID"
        packets = [(marked(bytes(packet)), packet.is_keyframe) for packet in source.demux(video=0) if packet.size]
        assert "".join(kind(data) for data, _ in packets).count("P" + "B" * b_frames) > 5
        chunks = pack(packets)
        assert (len(chunks), chunks.count((EMPTY, False)) > 5) == (N, True)
        for k, (data, key) in enumerate(chunks):
            packet = av.Packet(data)
            packet.pts = packet.dts = k
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, key
            target.mux(packet)
    for numbers in (range(N), [N - 1], [7, 8, 9], [0, 14, 29], [13]):
        with open_video(tmp_path / "a.avi") as video:
            assert len(video) == N
            greys = video.frames(list(numbers)).mean((1, 2, 3))
        np.testing.assert_allclose(greys, [20 + 7 * k for k in numbers], atol=1.5)
