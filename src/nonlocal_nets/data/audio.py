"""Recordings, which are mono wav files of 16-bit PCM, and their log-mel spectrograms."""

import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from nonlocal_nets.data.base import CorruptFileError, one_line

WINDOW = 400  # samples in a frame: 25 ms at 16 kHz
HOP = 160  # samples from one frame to the next: 10 ms
N_FFT = 512


def check_wav(path: str, rate: int, max_length: int) -> None:
    """Raise what `read_wav` would raise, as far as the header of the file shows it."""
    with _opened(path, rate, max_length):
        pass


def read_wav(path: str, rate: int, max_length: int) -> Tensor:
    """A recording (1, samples), float32 in [-1, 1).

    Args:
        path: path of the file.
        rate: required sampling rate, in Hz.
        max_length: maximum length, in samples.

    Raises:
        CorruptFileError: a file that is empty, truncated or not a wav file of 16-bit PCM; another sampling rate, more
            than one channel, no samples or too many. The message names the file.
    """
    with _opened(path, rate, max_length) as file:
        count, data = file.getnframes(), file.readframes(file.getnframes())
    if len(data) < 2 * count:
        raise CorruptFileError(f"corrupt recording {path}: truncated, {len(data) // 2} of {count} samples")
    return torch.from_numpy(np.frombuffer(data, "<i2") / np.float32(2**15))[None]


@contextmanager
def _opened(path: str, rate: int, max_length: int) -> Iterator[wave.Wave_read]:
    """The open file, its header checked; any failure becomes a CorruptFileError."""
    try:
        with wave.open(path, "rb") as file:
            if problem := _problem(file, rate, max_length):
                raise CorruptFileError(f"recording {path}: {problem}")
            yield file
    except CorruptFileError:
        raise
    except Exception as error:  # wave.Error, EOFError, OSError, and whatever else a damaged header causes
        empty = Path(path).is_file() and not Path(path).stat().st_size
        reason = "empty file" if empty else one_line(error) or "truncated"
        raise CorruptFileError(f"corrupt recording {path}: {reason}; expected a wav file of 16-bit PCM") from error


def _problem(file: wave.Wave_read, rate: int, max_length: int) -> str | None:
    found = {"bits per sample": 8 * file.getsampwidth(), "channels": file.getnchannels(), "Hz": file.getframerate()}
    for unit, expected in {"bits per sample": 16, "channels": 1, "Hz": rate}.items():
        if found[unit] != expected:
            return f"{found[unit]} {unit}, expected {expected}"
    if not 0 < file.getnframes() <= max_length:
        return f"{file.getnframes()} samples, expected 1 to max_length={max_length}"
    return None


def mel_filters(n_mels: int, rate: int) -> Tensor:
    """Triangular filters (n_mels, N_FFT / 2 + 1) of height 1, evenly spaced on the mel scale from 0 to rate / 2.

    mel = 2595 log10(1 + f / 700), f in Hz (O'Shaughnessy, Speech Communication, 1987).

    Raises:
        ValueError: so many filters that one of them contains no frequency of the transform.
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    frequencies = np.arange(N_FFT // 2 + 1) * rate / N_FFT
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)).clip(0)
    if not filters.any(1).all():
        raise ValueError(f"n_mels={n_mels} is too many for {N_FFT} points at {rate} Hz: a filter contains no frequency")
    return torch.from_numpy(filters).float()


def frames(length: int) -> int:
    """The number of frames in a recording of `length` samples, at least one."""
    return 1 + max(length - WINDOW, 0) // HOP


def log_mel(x: Tensor, filters: Tensor) -> Tensor:
    """(1, samples) -> (n_mels, frames): ln(1e-6 + power) per filter and frame, with a Hann window."""
    x = pad(x[0], (0, max(WINDOW - x.shape[1], 0))).unfold(0, WINDOW, HOP)
    power = torch.fft.rfft(x * torch.hann_window(WINDOW), n=N_FFT).abs().square()
    energy: Tensor = filters @ power.T
    return (energy + 1e-6).log()


def shifted(x: Tensor, max_shift: int) -> Tensor:
    """(1, samples) -> (1, samples), shifted at random by up to `max_shift` samples to either side; zeros fill in."""
    max_shift = min(max_shift, x.shape[1] - 1)
    shift = int(torch.randint(-max_shift, max_shift + 1, ()))
    return pad(x, (shift, -shift))
