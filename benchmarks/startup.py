"""Table "startup": how long train.py takes to respond, beside the imports that it needs."""

import random
import statistics
import subprocess
import sys
import time

from benchmarks.measure import Target, markdown, ratio

TRAIN = ["train.py", "fit", "--config", "configs/image/cued_digits.yaml"]
COMMANDS = {
    "imports": ["-c", "import torch, pytorch_lightning, timm"],
    "fit --print_config": [*TRAIN, "--print_config"],
    "fit --help": [*TRAIN, "--help"],
    "an error": [*TRAIN, "--model.optimizer.lr=-1"],
}


def table(_target: Target, rounds: int = 4) -> str:
    """Each command in a process, in rounds of a random order."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name in random.sample(sorted(COMMANDS), len(COMMANDS)):
            started = time.perf_counter()
            subprocess.run([sys.executable, *COMMANDS[name]], capture_output=True, check=name != "an error")
            times[name].append(time.perf_counter() - started)
    rows = []
    for name, mine in times.items():
        rows.append([name, f"{statistics.median(mine):.1f} s", ratio(mine, times["imports"])])
    return markdown(["command", "median", "over `import torch, pytorch_lightning, timm`"], rows)
