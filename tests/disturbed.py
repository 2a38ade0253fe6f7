"""A run of two processes on two nodes, in a folder that looks like this repository, and what is left of it."""

import os
import sys
import time
from pathlib import Path

import torch

from tests.stepwise import process_of, trained

ROOT = Path(__file__).parents[1]
STEPS, INTERVAL = 24, 5
HOLD = 14  # in the second epoch
WORDS = [
    "--trainer.accelerator=cpu",
    "--data.batch_size=4",
    "--data.num_workers=1",
    "--data.train_samples=96",
    "--model.mixup=0.3",
    "--trainer.max_epochs=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    f"--checkpoint.every_n_train_steps={INTERVAL}",
    "--trainer.callbacks=[]",
    "--trainer.callbacks+=tests.stepwise.Stepwise",
]
# One thread, as elsewhere in the tests; two nodes on one machine meet on its loopback.
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def checkout(folder: Path) -> Path:
    """What the commands of cluster/README.md find where a user gives them."""
    folder.mkdir(exist_ok=True)
    for name in ("train.py", "configs", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"runs/cued_digits/{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def is_as_undisturbed(folder: Path, run: str, expected: dict[str, torch.Tensor]) -> bool:
    """One folder, one id, and bit for bit the same weights."""
    assert [path.name for path in (folder / "runs/cued_digits").iterdir()] == [run]
    found = weights(folder, run)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def wait(condition, seconds: float, of: str = ""):
    """What the condition gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {of}"
        time.sleep(0.2)
    return value


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def hold(*steps: int) -> str:
    """To be added to WORDS: these steps wait until their process is told to end."""
    return f"--trainer.callbacks.hold={list(steps)}"


def held(folder: Path, step: int) -> tuple[int, int]:
    """The pids of both processes, once they wait in a step."""
    wait(lambda: all(step in trained(folder, rank) for rank in (0, 1)), 150, f"both in step {step}")
    return process_of(folder, 0), process_of(folder, 1)


def repeated(folder: Path, rank: int) -> int:
    """How many steps a process has done twice; all were done."""
    steps = trained(folder, rank)
    assert set(steps) == set(range(1, STEPS + 1))
    return len(steps) - STEPS
