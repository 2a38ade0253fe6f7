"""Commands in forked children of one process that has imported everything, so that a start takes no 10 seconds.

As a program it reads the commands from stdin: their arguments and folders, and how long one may take, as JSON.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: a signal), what it printed, and how long it took in seconds."""

    code: int
    stdout: str
    stderr: str
    seconds: float


def commands(given: dict[str, list[str]], folder: Path, at_once: int = 2, timeout: float = 120) -> dict[str, Ended]:
    """Run `train.py` with each list of arguments, each in a folder of its own."""
    jobs = {name: {"args": args, "folder": str(folder / str(k))} for k, (name, args) in enumerate(given.items())}
    work = json.dumps({"jobs": jobs, "at_once": at_once, "timeout": timeout})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], input=work, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: _ended(folder / str(k), *values) for k, (name, values) in enumerate(json.loads(done.stdout).items())}


def _ended(folder: Path, code: int, seconds: float) -> Ended:
    texts = [(folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return Ended(code, *texts, seconds)


def run(jobs: dict[str, dict], at_once: int, timeout: float) -> dict[str, tuple[int, float]]:
    """Exit codes and seconds of the commands."""
    ended, running, waiting = {}, {}, list(jobs.items())
    while waiting or running:
        while waiting and len(running) < at_once:
            name, job = waiting.pop(0)
            running[start(**job)] = name, time.monotonic()
        for child, (name, begun) in list(running.items()):
            seconds = time.monotonic() - begun
            if seconds > timeout:
                os.kill(child, signal.SIGKILL)
            pid, status = os.waitpid(child, 0 if seconds > timeout else os.WNOHANG)
            if pid:
                ended[name] = os.waitstatus_to_exitcode(status), seconds
                del running[child]
        time.sleep(0.01)
    return {name: ended[name] for name in jobs}


def start(args: list[str], folder: str) -> int:
    """The process of a child that runs a command."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.makedirs(folder)
        os.chdir(folder)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = [str(ROOT / "train.py"), *args]
        main(args)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import torch
    import torch.utils.tensorboard  # as a run does
    import torchvision  # noqa: F401

    from nonlocal_nets.run.cli import main

    torch.set_num_threads(1)
    print(json.dumps(run(**json.load(sys.stdin))))
