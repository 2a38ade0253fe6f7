"""A SLURM of two nodes on this machine, out of Debian's packages, unpacked into a folder: nothing is installed."""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, closing
from pathlib import Path

from tests.disturbed import alive, wait

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge")
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
PluginDir={plugins}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


class Unavailable(Exception):
    """Why there can be no SLURM here."""


class Slurm:
    """Its daemons; all their files lie in `folder`, and commands get `environment`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.root = folder, unpack(folder / "packages")
        libraries = self.root / "usr/lib" / f"{os.uname().machine}-linux-gnu"
        self.plugins = libraries / "slurm-wlm"
        self.environment = environment | {
            "PATH": f"{self.root}/usr/bin:{self.root}/usr/sbin:{environment['PATH']}",
            "LD_LIBRARY_PATH": f"{libraries}:{self.plugins}",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def start(self) -> None:
        words = {"folder": self.folder, "plugins": self.plugins, "user": getpass.getuser(), "ports": free_ports(3)}
        (self.folder / "slurm.conf").write_text(CONF.format(**words))
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"socket": "munge.socket", "key-file": key.name, "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        self.run("munged", "--force", *(f"--{name}={self.folder}/{file}" for name, file in files.items()))
        self.run("slurmctld-wlm")
        for node in ("n1", "n2"):
            self.start_node(node)
        wait(
            lambda: set(self.run("sinfo", "--noheader", "--Node", "--format=%t").split()) == {"idle"}, 30, "idle nodes"
        )

    def start_node(self, node: str) -> None:
        self.run("slurmd-wlm", "-N", node, "-d", f"{self.root}/usr/sbin/slurmstepd-wlm")

    def kill_node(self, node: str, task: int) -> None:
        """As if its power were cut: its daemon, that of the step, and the step's one task there, `task`."""
        step = int(re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{task}/status").read_text(), re.M)[1])
        for pid in (self.daemon(node), step, task):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        for name in ("slurmctld", "n1", "n2", "munged"):
            if (self.folder / f"{name}.pid").exists() and alive(pid := self.daemon(name)):
                os.kill(pid, signal.SIGTERM)
                wait(lambda pid=pid: not alive(pid), 30, f"{name} stopped")

    def daemon(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def job(self, job: str) -> dict[str, str]:
        """What SLURM says of a job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a command of SLURM's says."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run(command, env=self.environment, cwd=cwd, timeout=60, **pipes)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()


def unpack(folder: Path) -> Path:
    """The packages' files, in the state of this machine's lists or, where these are old, of new ones."""
    if not shutil.which("apt-get"):
        raise Unavailable("apt-get, which fetches it, is not there")
    (folder / "partial").mkdir(parents=True)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", "--download-only", "--reinstall"]
    install += ["-o", "Debug::NoLocking=1", "-o", f"Dir::Cache::archives={folder}", *PACKAGES]
    for command in (install, ["apt-get", "update"], install):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if command == install and done.returncode == 0:
            break
    else:
        raise Unavailable(done.stderr.strip())
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "--extract", package, folder], check=True, timeout=60)
    return folder


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
