"""A private Slurm cluster in a temporary folder: a controller and two nodes, on the loopback address."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.support.command import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = "no Slurm: apt-get install munge slurmctld slurmd slurm-client"
LIFETIME_S = 900  # the servers end by themselves, even if nobody stops them

CONFIGURATION = """
ClusterName=hpo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
KillWait=10
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES DefaultTime=10 MaxTime=15 PriorityTier=1
PartitionName=urgent Nodes=n1,n2 DefaultTime=10 MaxTime=15 PriorityTier=9
JobSubmitPlugins=lua
EnforcePartLimits=ALL
"""
# A site's policy: one account may submit no jobs.
POLICY = """
function slurm_job_submit(job, partitions, user)
    if job.account == "spent" then
        slurm.log_user("account spent has no hours left")
        return 2045
    end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
"""


def missing_programs() -> list[str]:
    """Return the programs of Slurm that this machine lacks."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Slurm:
    """A cluster of two nodes with two CPUs each."""

    def __init__(self) -> None:
        # /tmp, because the path of a socket must be shorter than 108 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-slurm-", dir="/tmp"))
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self.servers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> "Slurm":
        """Start all servers and wait until both nodes are idle."""
        for name in ("state", "n1", "n2"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self.folder.chmod(0o755)  # munged refuses a socket in a folder that others cannot enter
        values = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "folder": self.folder}
        text = CONFIGURATION.format(ports=_free_ports(3), **values)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "job_submit.lua").write_text(POLICY)
        files = {"key-file": key, **{f"{kind}-file": self.folder / f"munged.{kind}" for kind in ("pid", "log", "seed")}}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._serve("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *options)
        assert until(lambda: (self.folder / "munge.socket").exists(), 20), self.said()
        self._serve("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._serve(node, "-D", "-N", node, program="slurmd")
        assert until(lambda: self.states() == ["idle", "idle"], 30), self.said()
        return self

    def _serve(self, name: str, *arguments: str, program: str = "") -> None:
        command = ["timeout", "--kill-after=5", str(LIFETIME_S), program or name, *arguments]
        with (self.folder / "said").open("ab") as log:
            self.servers[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | self.env, cwd=self.folder
            )

    def said(self) -> str:
        """Return what the servers have printed."""
        return (self.folder / "said").read_text()

    def run(self, *command: str) -> str:
        """Run a command of Slurm; return its output without the last line break."""
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def states(self) -> list[str]:
        """Return the states of both nodes."""
        return self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split()

    def jobs(self, *states: str) -> list[str]:
        """Return the ids of the jobs in these states."""
        chosen = [f"--states={','.join(states)}"] if states else []
        return self.run("squeue", "--noheader", "--array", "--format=%i", *chosen).split()

    def processes(self, node: str) -> list[int]:
        """Return the processes of the jobs on a node, those of Slurm included."""
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"SLURMD_NODENAME={node}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found |= {int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])}
        return sorted(found - {1, os.getpid()})

    def lose(self, node: str) -> None:
        """Kill all processes of a node at the same time, as a power failure does."""
        for pid in (int((self.folder / f"{node}.pid").read_text()), *self.processes(node)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def restore(self, node: str) -> None:
        """Start a lost node again."""
        self.servers[node].wait(10)
        self._serve(node, "-D", "-N", node, program="slurmd")

    def remove(self) -> None:
        """End all jobs and servers, and delete the folder."""
        self.run("scancel", f"--user={getpass.getuser()}")
        until(lambda: not self.processes("n1") + self.processes("n2"), 15)
        for node in ("n1", "n2"):
            for pid in self.processes(node):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for server in reversed(self.servers.values()):
            if server.poll() is None:
                server.terminate()
        for server in self.servers.values():
            server.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
