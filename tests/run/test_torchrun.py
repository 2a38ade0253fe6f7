"""Two nodes by the torchrun command of cluster/README.md, on the loopback."""

import os
import re
import shlex
import signal
import subprocess
import time

import pytest
import torch

from tests.disturbed import (
    ENVIRONMENT,
    HOLD,
    INTERVAL,
    ROOT,
    WORDS,
    checkout,
    held,
    hold,
    is_as_undisturbed,
    repeated,
    weights,
)
from tests.slurm import free_ports

pytestmark = pytest.mark.slow


def documented(port: int, run: str) -> tuple[dict[str, str], list[str]]:
    """The variables and the command in the README."""
    block = re.search(r"```\n(\S+=\S+ torchrun .*?)```", (ROOT / "cluster/README.md").read_text(), re.S)[1]
    line = block.replace("\\\n", " ").replace("<first node>:29500", f"127.0.0.1:{port}").replace("<id of the run>", run)
    variable, *command = shlex.split(line)
    return dict([variable.split("=")]), command


class Nodes:
    """Two of them that run the command in one folder."""

    def __init__(self, folder, run, *more):
        variables, command = documented(free_ports(1)[0], run)
        self.logs = [folder.parent / f"{run}-{node}.log" for node in (1, 2)]
        self.agents = []
        for log in self.logs:
            with log.open("w") as file:
                pipes = {"stdout": file, "stderr": subprocess.STDOUT}
                environment = ENVIRONMENT | variables
                self.agents.append(subprocess.Popen([*command, *WORDS, *more], cwd=folder, env=environment, **pipes))

    def ended(self, seconds=240):
        end = time.monotonic() + seconds
        try:
            return [agent.wait(timeout=end - time.monotonic()) for agent in self.agents]
        finally:
            self.stop()

    def stop(self):
        for agent, log in zip(self.agents, self.logs, strict=True):
            agent.terminate()  # it ends its workers
            agent.wait(timeout=60)
            print(log.read_text()[-5000:])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp("whole"))
    assert Nodes(folder, "whole").ended() == [0, 0]
    return folder


def test_two_nodes_share_one_folder_and_have_the_same_weights(undisturbed):
    assert [path.name for path in (undisturbed / "runs/cued_digits").iterdir()] == ["whole"]
    assert repeated(undisturbed, 0) == repeated(undisturbed, 1) == 0
    first, second = (torch.load(undisturbed / f"weights-{rank}", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = weights(undisturbed, "whole")
    assert all(torch.equal(first[name], saved[name]) for name in first)


def test_a_killed_worker_is_started_again_and_both_go_on_from_the_last_checkpoint(undisturbed, tmp_path):
    nodes = Nodes(checkout(tmp_path / "run"), "killed", hold(HOLD))
    try:
        _, worker = held(tmp_path / "run", HOLD)
        os.kill(worker, signal.SIGKILL)
    except BaseException:
        nodes.stop()
        raise
    assert nodes.ended() == [0, 0]
    for rank in (0, 1):
        assert 0 < repeated(tmp_path / "run", rank) <= INTERVAL
    assert is_as_undisturbed(tmp_path / "run", "killed", weights(undisturbed, "whole"))
