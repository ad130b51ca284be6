"""Workers on two Ray nodes, which are two raylets of this machine with processes of their own."""

import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.evidence.claims.results import load_results
from hpo.launcher.ray_cluster import check_ray_options
from hpo.storage.engine import open_readonly
from tests.support.command import environment, run_in_process, until, write_base
from tests.support.ledger import BASE, claim
from tests.support.planted import planted_study as planted
from tests.support.postgres import Postgres

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray: pip install 'hpo[ray]'")

POSTGRES = "postgresql://hpo:secret@127.0.0.1:1/hpo"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Nodes:
    """A cluster of a head and one more node, of two CPUs each; every process of a node is in one process group."""

    def __init__(self) -> None:
        # /tmp: the paths of Ray's sockets must stay below 108 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="hpo-ray-", dir="/tmp"))
        self.address = f"127.0.0.1:{free_port()}"
        # Ray listens on all interfaces and runs what it is sent: only with this token, please
        self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        # a lost node is noticed after 3 x 0.5 s
        self.env |= {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
        self.env |= {"RAY_health_check_timeout_ms": "2000", "RAY_health_check_initial_delay_ms": "2000"}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> "Nodes":
        host, port = self.address.split(":")
        temporary = ["--temp-dir", str(self.folder), "--include-dashboard", "false"]
        self._node("--head", "--port", port, *temporary)
        assert until(lambda: self._listens(host, int(port))), self.said()
        self._node("--address", self.address)
        assert until(lambda: self.said().count("Ray runtime started") == 2), self.said()
        return self

    def _node(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--num-cpus", "2"]
        command += ["--num-gpus", "0", "--object-store-memory", "80000000", "--include-log-monitor", "false", "--block"]
        with (self.folder / "said").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=environment(**self.env),
                    start_new_session=True,
                )
            )

    def _listens(self, host: str, port: int) -> bool:
        with socket.socket() as s:
            return s.connect_ex((host, port)) == 0

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def lose(self, node: int) -> None:
        """Kill all processes of a node at the same time, as a power failure does."""
        os.killpg(self.processes[node].pid, signal.SIGKILL)
        self.processes[node].wait(30)

    def remove(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes.start()
    finally:
        nodes.remove()


def left_over(folder: Path) -> list[str]:
    """Return the processes of workers that were started in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == folder:
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return [command for command in found if "worker" in command]


def launch(url: str, nodes: Nodes, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a launch on the cluster; its output goes to launch.log."""
    asked = ["launch", "--on", "ray", "--address", nodes.address, "--plain", *arguments]
    with (folder / "launch.log").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "hpo", *asked],
            cwd=folder,
            env=environment(HPO_STORAGE=url, **nodes.env),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def numbers(url: str) -> tuple[int, ...]:
    with open_readonly(url) as reader:
        n = trial_counts(read_snapshot(reader, "planted"))
    return n["complete"], n["pruned"], n["failed"], n["running"], n["waiting"]


def test_a_worker_that_no_node_can_hold_is_refused(tcp_server: Postgres, nodes: Nodes, tmp_path: Path) -> None:
    process = launch(
        tcp_server.url(tcp=True), nodes, tmp_path, "--study", str(planted(tmp_path)), "--gpus-per-worker", "0.5"
    )
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert (tmp_path / "launch.log").read_text().splitlines()[-1] == (
        "hpo: --gpus-per-worker: must fit on a node beside 1 CPU, got 0.5; "
        "the cluster's nodes have 2 CPUs and 0 GPUs, 2 CPUs and 0 GPUs"
    )


def test_a_study_on_two_nodes_ends_complete_though_one_is_lost(
    tcp_server: Postgres, nodes: Nodes, tmp_path: Path
) -> None:
    url = tcp_server.url(tcp_server.database(), tcp=True)
    file = planted(tmp_path, base={"pause": 0.1}, budget={"trials": 40}, pruner={"name": "none"})
    process, log = launch(url, nodes, tmp_path, "--study", str(file), "--workers", "4"), tmp_path / "launch.log"
    try:
        assert until(lambda: len(set(re.findall(r"(worker \d): trial \d+: complete", log.read_text()))) == 4)
        on = re.findall(r"worker \d: placed on \S+ node (\w+)", log.read_text())
        assert sorted(on.count(node) for node in set(on)) == [2, 2]
        nodes.lose(1)
        stdout, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    log_text = log.read_text()
    assert process.returncode == 0, log_text
    assert stdout.startswith("best: trial")  # and no line of Ray
    assert len(re.findall(r"worker \d: lost on .* node \w+: ", log_text)) == 2, log_text
    assert len(re.findall(r"worker \d: ended with signal 9; it is restarted", log_text)) == 2
    assert numbers(url) == (40, 0, 0, 0, 0)
    assert until(lambda: not left_over(tmp_path)), left_over(tmp_path)
    for path in [log, *(tmp_path / "runs").rglob("worker-*.log"), *nodes.folder.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            assert tcp_server.password.encode() not in path.read_bytes(), path


def test_ctrl_c_reaches_workers_with_and_without_a_node(tcp_server: Postgres, nodes: Nodes, tmp_path: Path) -> None:
    url = tcp_server.url(tcp_server.database(), tcp=True)
    file = planted(tmp_path, base={"pause": 0.3}, budget={"trials": 400}, pruner={"name": "none"})
    process, log = launch(url, nodes, tmp_path, "--study", str(file), "--workers", "5"), tmp_path / "launch.log"
    try:
        assert until(lambda: "waiting for free resources: " in log.read_text() and ": complete" in log.read_text())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, log.read_text()
    assert f"--on ray --address {nodes.address}" in log.read_text()  # in the command that resumes the study
    complete, *others, running, waiting = numbers(url)
    assert (*others, running, complete + waiting) == (0, 0, 0, 400)
    assert until(lambda: not left_over(tmp_path)), left_over(tmp_path)


def test_claims_run_one_study_after_the_other_on_the_same_cluster(
    tcp_server: Postgres, nodes: Nodes, tmp_path: Path
) -> None:
    write_base(tmp_path, "mine", BASE)
    claims = {"C009-01": claim({"arms": {"a": {}, "b": {"optimizer.lr": 1e-2}, "c": {"optimizer.lr": 1e-1}}})}
    (tmp_path / "mine.yaml").write_text(dump_yaml({"claims": claims}))
    place = ["--on", "ray", "--address", nodes.address, "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "hpo", "claims", "--ledger", "mine.yaml", "--format", "json", "--plain", *place],
        cwd=tmp_path,
        env=environment(HPO_STORAGE=tcp_server.url(tcp_server.database(), tcp=True), **nodes.env),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (verdict,) = json.loads(done.stdout)
    assert (verdict["id"], verdict["n"]) == ("C009-01", 3)
    result = load_results(tmp_path / "runs" / "claims.json").claims["C009-01"]
    assert {run.study for run in result.runs} == {"claim-C009-01", "claim-C009-01-2"}


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--on", "ray"], "--storage: must be Postgres with --on ray, since workers on other nodes cannot reach", 2),
        (["--on", "ray", "--gpus", "0"], "--gpus: must be left out with --on ray; use --gpus-per-worker", 2),
        (["--gpus-per-worker", "0.5"], "--gpus-per-worker: must be left out without --on ray", 2),
        (["--address", "127.0.0.1:1"], "--address: must be left out without --on ray", 2),
        (["--on", "ray", "--storage", POSTGRES, "--gpus-per-worker", "1.5"], "--gpus-per-worker: must be a frac", 2),
        (["--on", "ray", "--storage", POSTGRES, "--address", "ray://here"], "--address: must be HOST:PORT of", 2),
        (["--on", "ray", "--storage", POSTGRES, "--address", "127.0.0.1:1"], "--address: no Ray cluster answers", 1),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    arguments: list[str], message: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Problem) as refused:
        run_in_process("launch", "--study", str(planted(tmp_path)), *arguments, cwd=tmp_path)
    assert str(refused.value).startswith(message)
    assert "secret" not in str(refused.value)
    assert refused.value.status == status
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Problem, match=r"needs Ray, which is not installed; pip install 'hpo\[ray\]'"):
        check_ray_options(POSTGRES, 0)


def test_a_server_that_is_no_ray_cluster_is_an_error() -> None:
    program = """
import hpo.launcher.ray_cluster, sys
hpo.launcher.ray_cluster.JOIN_TIMEOUT_S = 2.0
try:
    hpo.launcher.ray_cluster.join_cluster(sys.argv[1], "", 0)
except hpo.launcher.ray_cluster.WorkFailed as failed:
    print(failed)
"""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", program, address], env=environment(), capture_output=True, text=True
        )
    assert done.stdout == f"--address: {address} does not answer as the head of a Ray cluster within 2 s\n", done.stderr
