"""The published layout of the speech commands, on real wav files."""

import re
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import scipy.io.wavfile
import torch

from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.data.audio import log_mel, mel_filters
from nonlocal_nets.data.speech_commands import SpeechCommands, fake, write_wav
from nonlocal_nets.tasks import Blocks, SequenceClassification


def relative(data, part):
    """<word>/<file> of a part, and whether its label is its folder."""
    paths = [Path(path) for path, _ in data.parts[part]]
    words = [path.parent.name for path in paths]
    assert words == [data.class_names[label] for _, label in data.parts[part]]
    return {f"{path.parent.name}/{path.name}" for path in paths}


def test_the_lists_are_the_split(tmp_path):
    data = SpeechCommands(**fake(tmp_path) | {"words": None})
    assert data.class_names == ("no", "up", "yes"), "no noise"
    lists = {part: set((tmp_path / f"{part}_list.txt").read_text().split()) for part in ("validation", "testing")}
    everything = {f"{path.parent.name}/{path.name}" for path in tmp_path.glob("*/*_nohash_*.wav")}
    assert relative(data, "val") == lists["validation"]
    assert relative(data, "test") == lists["testing"]
    assert relative(data, "train") == everything - lists["validation"] - lists["testing"]
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == [9, 6, 6]


def test_some_of_the_words_in_their_order(tmp_path):
    arguments = fake(tmp_path)
    data = SpeechCommands(**arguments | {"words": ["yes", "no"]})
    assert data.class_names == ("yes", "no")
    assert {path.split("/")[0] for part in data.parts for path in relative(data, part)} == {"yes", "no"}
    for path in (tmp_path / "up").iterdir():
        path.unlink()  # what is listed there is not asked for
    assert SpeechCommands(**arguments | {"words": ["yes", "no"]}).parts == data.parts
    for wrong, given in ((["yes", "left"], "yes, left"), (["yes", "yes"], "yes, yes"), ([], "none")):
        with pytest.raises(ValueError, match=f"words must be among the folders in .*: no, up, yes; got {given}"):
            SpeechCommands(**arguments | {"words": wrong})


@pytest.mark.parametrize("features", ["waveform", "log_mel"])
def test_what_a_recording_becomes(tmp_path, features):
    data = SpeechCommands(**fake(tmp_path), features=features, n_mels=20, batch_size=6)
    assert data.input_size == {"waveform": (1, 1600), "log_mel": (20, 8)}[features]
    ((x, mask), labels) = next(iter(data.val_dataloader()))
    for padded, valid, label, (path, number) in zip(x, mask, labels, data.parts["val"], strict=True):
        assert label == number
        rate, samples = scipy.io.wavfile.read(path)
        assert (rate, samples.dtype) == (16_000, np.int16)
        expected = torch.from_numpy(samples / 2**15).float()[None]
        if features == "log_mel":
            expected = log_mel(expected, mel_filters(20, 16_000))
        torch.testing.assert_close(padded[:, valid], expected, rtol=0, atol=0)


def test_training_alone_is_moved_in_time(tmp_path):
    words = fake(tmp_path) | {"features": "waveform"}
    torch.manual_seed(0)
    for shift, moved in ((0.0, set()), (0.01, {"train"})):
        data = SpeechCommands(**words, time_shift=shift)
        for part in ("train", "val", "test"):
            once, twice = ([x for x, _ in data.dataset(part)] for _ in range(2))
            same = all(torch.equal(x, y) for x, y in zip(once, twice, strict=True))
            assert same == (part not in moved)
            for x in once if part in moved else ():
                edge = max(int((x[0] != 0).nonzero()[0]), int((x[0].flip(0) != 0).nonzero()[0]))
                assert edge <= 161, "0.01 s at 16 kHz, and a sample that is 0 itself"


def test_refusals_of_folders(tmp_path):
    expected = "expected .*/<word>/.*wav, validation_list.txt and testing_list.txt"
    with pytest.raises(ValueError, match=f"no folder of a word in .*nowhere: {expected}"):
        SpeechCommands(str(tmp_path / "nowhere"))
    words = fake(tmp_path)
    (tmp_path / "left").mkdir()
    with pytest.raises(ValueError, match=f"no recording in .*left: {expected}"):
        SpeechCommands(**words | {"words": None})
    (tmp_path / "left").rmdir()
    listed = tmp_path / "validation_list.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join([lines[0], "", "yes/00000000_nohash_0.wav", *lines[1:]]))
    with pytest.raises(ValueError, match=r"validation_list.txt, line 3: no file .*/yes/00000000_nohash_0.wav"):
        SpeechCommands(**words)
    listed.write_text("")
    with pytest.raises(ValueError, match="no recording for val in "):
        SpeechCommands(**words)
    listed.unlink()
    with pytest.raises(
        ValueError, match=r"no file .*validation_list.txt: expected lines <word>/<speaker>_nohash_<n>.wav"
    ):
        SpeechCommands(**words)


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_refusals_of_options_come_before_the_folder_is_read(words, message):
    with pytest.raises(ValueError, match=message):
        SpeechCommands("nowhere", **words)


def test_a_recording_of_another_kind_stops_before_any_work(tmp_path):
    words = fake(tmp_path)
    path = next((tmp_path / "yes").iterdir())
    for rate, samples, message in (
        (8000, 800, "8000 Hz, expected 16000"),
        (16_000, 1601, "1601 samples, expected 1 to"),
    ):
        write_wav(path, np.zeros(samples), rate)
        with pytest.raises(CorruptFileError, match=f"recording {re.escape(str(path))}: {message}"):
            SpeechCommands(**words)
    path.write_bytes(b"")
    with pytest.raises(CorruptFileError, match=f"{re.escape(str(path))}: empty file"):
        SpeechCommands(**words)


def test_corrupt_recordings_are_replaced_named_and_counted(tmp_path, failure, warnings_of_all_processes):
    words = fake(tmp_path / "data") | {"corrupt": "replace", "batch_size": 3}
    good = SpeechCommands(**words, time_shift=0)
    bad, _ = good.parts["train"][0]
    Path(bad).write_bytes(b"RIFF")
    data = SpeechCommands(**words, time_shift=0, max_corrupt=0.2)
    dataset = data.dataset("train")
    assert torch.equal(dataset[0][0], dataset[1][0])
    (line,) = warnings_of_all_processes()
    assert re.match(
        rf"corrupt recording {re.escape(bad)}: cut short; .* replaced .* \(1 of 9 recordings so far\)", line
    )
    _, message = failure(SpeechCommands(**words).train_dataloader())
    assert re.search(r"1 of 9 recordings so far, more than max_corrupt=0.01", message)


def test_predicts_files_and_folders_as_it_tests(tmp_path):
    words = fake(tmp_path / "data")
    tested = SpeechCommands(**words, batch_size=6)
    paths = [path for path, _ in tested.parts["test"]]
    ((x, mask), _) = next(iter(tested.test_dataloader()))
    alone = SpeechCommands(**words, path=paths[0])
    ((only, _), names), *rest = alone.predict_dataloader()
    assert (names, rest) == ([paths[0]], [])
    torch.testing.assert_close(only[0], x[0][:, mask[0]], rtol=0, atol=0)
    folder = SpeechCommands(**words, path=str(tmp_path / "data" / "up"))
    assert [name for _, names in folder.predict_dataloader() for name in names] == sorted(
        str(path) for path in (tmp_path / "data" / "up").iterdir()
    )
    with pytest.raises(ValueError, match=r"predict needs recordings: --data.path=<wav file or folder>"):
        tested.predict_dataloader()
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere: expected a recording"):
        SpeechCommands(**words, path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("features", ["waveform", "log_mel"])
def test_trains_and_tests(tmp_path, features):
    torch.manual_seed(0)
    data = SpeechCommands(**fake(tmp_path), features=features, batch_size=4)
    shape = {"input_size": data.input_size, "widths": (8, 8), "stem_stride": 4}
    model = SequenceClassification(data.num_classes, "signal_resnet", **shape, blocks=Blocks(at={"layer2": 1}))
    trainer = pl.Trainer(accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, data)
    (figures,) = trainer.test(model, data, verbose=False)
    assert np.isfinite(figures["test/loss"])
