"""Two real processes give the figures of one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [33, 1])
def test_a_test_counts_each_sample_once_in_two_processes(samples, tmp_path):
    """33 samples in batches of 4 are 17 and 16; of one sample the second process has none."""
    figures = []
    for devices in (1, 2):
        words = [f"--trainer.devices={devices}", "--trainer.strategy=ddp", f"--id={devices}", "--data.batch_size=4"]
        words += [f"--data.test_samples={samples}", "--trainer.enable_progress_bar=false", "--trainer.callbacks=[]"]
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "test",
            "--config",
            str(ROOT / "configs/video/cued_clips.yaml"),
        ]
        done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        figures.append(re.search(r"figures (.*)", done.stdout + done.stderr)[1])
    assert figures[0] == figures[1]
    assert "test/accuracy" in figures[0]
