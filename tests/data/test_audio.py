"""wav files and log-mel spectrograms, compared with scipy and the textbook formula."""

import struct
import wave

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nonlocal_nets.data import CorruptFileError
from nonlocal_nets.data.audio import check_wav, frames, log_mel, mel_filters, read_wav, shifted


def write(path, samples=(1, 2, 3), rate=16_000, channels=1, width=2):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", "not compressed"))
        file.writeframes(np.asarray(samples, f"<i{width}").tobytes())
    return str(path)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50))
def test_read_what_scipy_writes(tmp_path_factory, samples):
    path = str(tmp_path_factory.mktemp("wav") / "x.wav")
    scipy.io.wavfile.write(path, 16_000, np.array(samples, np.int16))
    x = read_wav(path, 16_000, 50)
    assert (x.dtype, x.tolist()) == (torch.float32, [[value / 32768 for value in samples]])


def header(count, kind=1):
    """The header of a file that claims to have `count` samples; kind 1 is PCM, 3 floating point."""
    return (
        b"RIFF"
        + struct.pack("<I", 36 + 2 * count)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, kind, 1, 16_000, 32_000, 2, 16)
        + b"data"
        + struct.pack("<I", 2 * count)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "corrupt recording .*x.wav: empty file; expected a wav file of 16-bit PCM"),
        (b"RIFF", "corrupt recording .*x.wav: truncated; expected a wav file of 16-bit PCM"),
        (b"an mp3 perhaps", "corrupt recording .*x.wav: file does not start with RIFF id; expected a wav"),
        (
            header(2, kind=3) + b"\0" * 4,
            "corrupt recording .*x.wav: unknown format: 3; expected a wav file of 16-bit PCM",
        ),
        (header(0), r"recording .*x.wav: 0 samples, expected 1 to max_length=5"),
        (header(6) + b"\0" * 12, r"recording .*x.wav: 6 samples, expected 1 to max_length=5"),
    ],
)
def test_invalid_files(tmp_path, content, message):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    for read in (check_wav, read_wav):
        with pytest.raises(CorruptFileError, match=message):
            read(str(path), 16_000, 5)


def test_other_kinds_of_recordings(tmp_path):
    check_wav(write(tmp_path / "x.wav"), 16_000, 3)
    for args, message in (
        ({"rate": 8000}, "8000 Hz, expected 16000"),
        ({"channels": 2, "samples": (1, 2)}, "2 channels, expected 1"),
        ({"width": 4}, "32 bits per sample, expected 16"),
    ):
        path = write(tmp_path / "x.wav", **args)
        with pytest.raises(CorruptFileError, match=f"recording {path}: {message}"):
            check_wav(path, 16_000, 3)


def test_a_truncated_file_is_not_mistaken_for_a_short_one(tmp_path):
    (tmp_path / "x.wav").write_bytes(header(5) + b"\0" * 7)
    check_wav(str(tmp_path / "x.wav"), 16_000, 5)
    with pytest.raises(CorruptFileError, match=r"corrupt recording .*x.wav: truncated, 3 of 5 samples"):
        read_wav(str(tmp_path / "x.wav"), 16_000, 5)


def mel(frequency):
    return 1127 * np.log1p(frequency / 700)  # the same scale, as in the HTK book


@pytest.mark.parametrize("n_mels", [1, 40, 80])
def test_filters_are_triangles_evenly_spaced_in_mel(n_mels):
    filters = mel_filters(n_mels, 16_000)
    assert filters.shape == (n_mels, 257)
    step = mel(8000) / (n_mels + 1)
    for k, row in enumerate(filters.numpy(), 1):
        edges = [700 * np.expm1((k + d) * step / 1127) for d in (-1, 0, 1)]
        expected = np.interp(np.linspace(0, 8000, 257), edges, [0, 1, 0], left=0, right=0)
        np.testing.assert_allclose(row, expected, atol=1e-3)  # 2595 / ln 10 is 1127.01


def test_too_many_filters():
    with pytest.raises(ValueError, match="n_mels=128 is too many for 512 points at 16000 Hz"):
        mel_filters(128, 16_000)


@pytest.mark.parametrize("length", [16_000, 1000, 400, 559, 560])
def test_log_mel_of_scipys_spectrogram(length):
    x = torch.randn(1, length, generator=torch.Generator().manual_seed(0)) / 10
    filters = mel_filters(40, 16_000)
    window = scipy.signal.get_window("hann", 400)
    args = {"window": window, "noverlap": 240, "nfft": 512, "detrend": False, "scaling": "spectrum", "mode": "psd"}
    _, _, spectrum = scipy.signal.spectrogram(x[0].numpy(), 16_000, return_onesided=False, **args)
    power = spectrum[:257] * window.sum() ** 2
    features = log_mel(x, filters)
    assert features.shape == (40, frames(length)) == (40, 1 + (length - 400) // 160)
    np.testing.assert_allclose(features, np.log(1e-6 + filters.numpy() @ power), rtol=1e-3)


def test_a_tone_peaks_in_the_filter_of_its_frequency_and_silence_is_finite():
    time = torch.arange(16_000) / 16_000
    filters = mel_filters(40, 16_000)
    for frequency in (300, 1000, 4000):
        nearest = round(mel(frequency) / mel(8000) * 41) - 1
        features = log_mel(torch.sin(2 * np.pi * frequency * time)[None], filters)
        assert set(features.argmax(0).tolist()) == {nearest}
    assert log_mel(torch.zeros(1, 7), filters).tolist() == [[pytest.approx(np.log(1e-6))]] * 40


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30))
def test_shifted_moves_a_recording_to_either_side_and_fills_with_zeros(length, max_shift):
    x = torch.arange(1.0, length + 1)[None]
    torch.manual_seed(length)
    found = set()
    for _ in range(30):
        y = shifted(x, max_shift)
        assert y.shape == x.shape
        shift = int((y[0] == 0).sum()) * (1 if y[0, 0] == 0 else -1)
        expected = torch.zeros(1, length)
        expected[:, max(shift, 0) : length + min(shift, 0)] = x[:, max(-shift, 0) : length - max(shift, 0)]
        assert torch.equal(y, expected)
        assert abs(shift) <= max_shift
        found.add(shift)
    assert min(found) < 0 < max(found) or length == 1
