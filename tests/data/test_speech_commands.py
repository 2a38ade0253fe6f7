"""The published layout of Speech Commands, on real wav files."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import torch

from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.data.audio import log_mel, mel_filters
from nonlocal_nets.data.speech_commands import SpeechCommands, fake, write_wav


def relative(data, part):
    """The files <word>/<file> of a part, after a check that their labels are their folders."""
    paths = [Path(path) for path, _ in data.parts[part]]
    assert [path.parent.name for path in paths] == [data.class_names[label] for _, label in data.parts[part]]
    return {f"{path.parent.name}/{path.name}" for path in paths}


def test_the_lists_determine_the_split(tmp_path):
    data = SpeechCommands(**fake(tmp_path) | {"words": None})
    assert data.class_names == ("no", "up", "yes"), "without the background noise"
    lists = {part: set((tmp_path / f"{part}_list.txt").read_text().split()) for part in ("validation", "testing")}
    everything = {f"{path.parent.name}/{path.name}" for path in tmp_path.glob("*/*_nohash_*.wav")}
    assert relative(data, "val") == lists["validation"]
    assert relative(data, "test") == lists["testing"]
    assert relative(data, "train") == everything - lists["validation"] - lists["testing"]
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == [9, 6, 6]


def test_some_words_in_a_given_order(tmp_path):
    args = fake(tmp_path)
    data = SpeechCommands(**args | {"words": ["yes", "no"]})
    assert data.class_names == ("yes", "no")
    assert {path.split("/")[0] for part in data.parts for path in relative(data, part)} == {"yes", "no"}
    for path in (tmp_path / "up").iterdir():
        path.unlink()  # the lists still name these files, but not for the chosen words
    assert SpeechCommands(**args | {"words": ["yes", "no"]}).parts == data.parts
    for wrong, given in ((["yes", "left"], "left"), (["yes", "yes"], "yes, yes"), ([], "none")):
        message = f"words must be distinct folders in .*, which has no, up, yes; got {given}"
        with pytest.raises(ValueError, match=message):
            SpeechCommands(**args | {"words": wrong})


def waveform(path):
    rate, samples = scipy.io.wavfile.read(path)
    assert (rate, samples.dtype) == (16_000, np.int16)
    return torch.from_numpy(samples / 2**15).float()[None]


@pytest.mark.parametrize("features", ["waveform", "log_mel"])
def test_batches_of_waveforms_and_spectrograms(tmp_path, features):
    data = SpeechCommands(**fake(tmp_path), features=features, n_mels=20, batch_size=6)
    assert data.input_size == {"waveform": (1, 1600), "log_mel": (20, 8)}[features]
    ((x, mask), labels) = next(iter(data.val_dataloader()))
    for padded, valid, label, (path, number) in zip(x, mask, labels, data.parts["val"], strict=True):
        assert label == number
        expected = waveform(path)
        if features == "log_mel":
            expected = log_mel(expected, mel_filters(20, 16_000))
        torch.testing.assert_close(padded[:, valid], expected, rtol=0, atol=0)


def test_only_training_is_shifted_in_time(tmp_path):
    args = fake(tmp_path) | {"features": "waveform"}
    torch.manual_seed(0)
    shifts = set()
    for seconds in (0.0, 0.01):
        data = SpeechCommands(**args, time_shift=seconds)
        for part in ("train", "val", "test"):
            for (x, _), (path, _) in zip(data.dataset(part), data.parts[part], strict=True):
                original = waveform(path)
                most = 160 if part == "train" and seconds else 0  # 0.01 s at 16 kHz
                padded = torch.nn.functional.pad(original, (most, most))
                length = original.shape[1]
                (shift,) = (k for k in range(2 * most + 1) if torch.equal(padded[:, k : k + length], x))
                shifts.add(shift - most)
    assert min(shifts) < -100
    assert max(shifts) > 100


def test_invalid_folders(tmp_path):
    expected = "expected .*/<word>/.*wav, validation_list.txt and testing_list.txt"
    with pytest.raises(ValueError, match=f"no word folder in .*nowhere: {expected}"):
        SpeechCommands(str(tmp_path / "nowhere"))
    args = fake(tmp_path)
    (tmp_path / "left").mkdir()
    with pytest.raises(ValueError, match=f"no recording in .*left: {expected}"):
        SpeechCommands(**args | {"words": None})
    (tmp_path / "left").rmdir()
    listed = tmp_path / "validation_list.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([lines[0], "", "yes/00000000_nohash_0.wav", *lines[1:]]))
    with pytest.raises(ValueError, match=r"validation_list.txt, line 3: no file .*/yes/00000000_nohash_0.wav"):
        SpeechCommands(**args)
    listed.write_text("")
    with pytest.raises(ValueError, match="no recording for val in "):
        SpeechCommands(**args)
    listed.unlink()
    with pytest.raises(
        ValueError, match=r"no file .*validation_list.txt: expected lines <word>/<speaker>_nohash_<n>.wav"
    ):
        SpeechCommands(**args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"features": "mfcc"}, "features must be 'log_mel' or 'waveform', got 'mfcc'"),
        ({"n_mels": 0}, "n_mels must be at least 1, got 0"),
        ({"n_mels": 200}, "n_mels=200 is too many"),
        ({"path": "nowhere"}, "no file or folder nowhere: expected a recording"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"time_shift": -0.1}, "time_shift must be at least 0 seconds, got -0.1"),
        ({"corrupt": "skip"}, "corrupt must be 'stop' or 'replace', got 'skip'"),
        ({"max_corrupt": 1.0}, "max_corrupt must be a share in"),
    ],
)
def test_arguments_are_checked_before_the_folder_is_read(args, message):
    with pytest.raises(ValueError, match=message):
        SpeechCommands("nowhere", **args)


def test_an_invalid_recording_is_found_on_construction(tmp_path):
    args = fake(tmp_path)
    path = next((tmp_path / "yes").iterdir())
    for rate, samples, message in (
        (8000, 800, "8000 Hz, expected 16000"),
        (16_000, 1601, "1601 samples, expected 1 to"),
    ):
        write_wav(path, np.zeros(samples), rate)
        with pytest.raises(CorruptFileError, match=f"recording {re.escape(str(path))}: {message}"):
            SpeechCommands(**args)
    path.write_bytes(b"")
    with pytest.raises(CorruptFileError, match=f"{re.escape(str(path))}: empty file"):
        SpeechCommands(**args)


def test_corrupt_recordings_are_replaced_named_and_counted(tmp_path, failure, warnings_of_all_processes):
    args = fake(tmp_path / "data") | {"corrupt": "replace", "batch_size": 3}
    good = SpeechCommands(**args, time_shift=0)
    (bad, _), (following, label) = good.parts["train"][:2]
    Path(bad).write_bytes(b"RIFF")
    data = SpeechCommands(**args, time_shift=0, max_corrupt=0.2, features="waveform")
    replacement, its_label = data.dataset("train")[0]
    assert torch.equal(replacement, waveform(following))
    assert its_label == label
    (line,) = warnings_of_all_processes()
    assert re.match(
        rf"corrupt recording {re.escape(bad)}: truncated; .* replaced .* \(1 of 9 recordings so far\)", line
    )
    _, message = failure(SpeechCommands(**args).train_dataloader())
    assert re.search(r"1 of 9 recordings so far, more than max_corrupt=0.01", message)


def test_predict_on_files_and_folders_reads_as_the_test(tmp_path):
    args = fake(tmp_path / "data")
    tested = SpeechCommands(**args, batch_size=6)
    paths = [path for path, _ in tested.parts["test"]]
    ((x, mask), _) = next(iter(tested.test_dataloader()))
    alone = SpeechCommands(**args, path=paths[0])
    ((only, _), names), *rest = alone.predict_dataloader()
    assert (names, rest) == ([paths[0]], [])
    torch.testing.assert_close(only[0], x[0][:, mask[0]], rtol=0, atol=0)
    folder = SpeechCommands(**args, path=str(tmp_path / "data" / "up"))
    assert [name for _, names in folder.predict_dataloader() for name in names] == sorted(
        str(path) for path in (tmp_path / "data" / "up").iterdir()
    )
    with pytest.raises(ValueError, match=r"predict needs recordings: --data.path=<wav file or folder>"):
        tested.predict_dataloader()
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere: expected a recording"):
        SpeechCommands(**args, path=str(tmp_path / "nowhere"))
