"""What a fit prints, seen as by a user: by a process of its own, with the settings that it has by default."""

import os
import re
import subprocess
import sys

import pytest

from tests.run.conftest import SMALL


@pytest.fixture
def printed(small_images):
    """stdout and stderr, by lines; of a bar each state is a line."""
    words = [word for word in SMALL if "progress" not in word and "summary" not in word and "every_n" not in word]
    early = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    early += ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=10", "--checkpoint.monitor=val/loss"]
    command = [sys.executable, "-m", "nonlocal_nets", "fit", *words, *early, "--trainer.max_epochs=9", "--id=seen"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return re.split(r"[\r\n]+", done.stdout), done.stderr.splitlines()


@pytest.mark.slow
def test_a_fit_prints_what_is_of_use(printed):
    bar, lines = printed
    text = "\n".join(lines)
    for useless in ("Flops", "FLOPs", "log_every_n_steps", "Warning", "Tip", "litlogger"):
        assert useless not in text
    (ended,) = [line for line in lines if "early" in line or "did not improve" in line]
    assert re.fullmatch(r"ended   early, in epoch 1: Monitored metric val/loss did not improve in the last 1 .*", ended)
    assert [line[:8].strip() for line in lines[-6:]] == ["figures", "time", "speed", "ended", "best", "folder"]
    number = r"\d\.\d+"
    state = re.compile(
        rf"Epoch 1: 100%.* 3/3 \[\d\d:\d\d<00:00, .*, train/loss_step={number}, val/accuracy={number}, "
        rf"val/balanced_accuracy={number}, val/loss={number}\]"
    )
    assert any(state.fullmatch(line) for line in bar), bar[-3:]
    assert not any("v_num" in line for line in bar)
