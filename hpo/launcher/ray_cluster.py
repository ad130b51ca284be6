"""Workers on the nodes of a Ray cluster. Ray chooses the nodes, and each worker is a process on its node.

Everything else works as on one machine: leases in the storage decide which worker trains which trial, and the
launcher's WorkerGroup restarts lost workers, which Ray places on nodes with free resources.
"""

import importlib.metadata
import importlib.util
import io
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any, cast

from hpo.errors import Problem, WorkFailed
from hpo.launcher.postgres_only import check_postgres, note_local_address
from hpo.launcher.processes import WorkerGroup, WorkerProcess
from hpo.launcher.ray_actor import RayWorker
from hpo.launcher.ray_process import LOST, RemoteProcess
from hpo.worker.events import Event

CPUS = 1  # cores of a worker: another worker uses a core better than more threads of a small GPT do
CONNECT_TIMEOUT_S = 5.0  # seconds that the port of the cluster's head may take to answer
JOIN_TIMEOUT_S = 20.0  # seconds that joining the cluster may take, because Ray itself has no limit
PLACEMENT_WAIT_S = 10.0  # seconds after which a worker without a node is reported


def check_ray_options(storage: str, gpus: float) -> None:
    """Check the options that do not need a cluster.

    gpus: GPUs of each worker.

    Raises:
        Problem: Ray is not installed, workers on other nodes cannot reach the storage, or `gpus` is not valid.
    """
    if importlib.util.find_spec("ray") is None:
        raise Problem("--on ray: needs Ray, which is not installed; pip install 'hpo[ray]'")
    check_postgres("ray", storage)
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise Problem(f"--gpus-per-worker: must be a fraction of one GPU or a whole number of them, got {gpus:g}")


def join_cluster(address: str, storage: str, gpus: float) -> None:
    """Join a running cluster as a driver, and warn if its nodes may not reach the storage.

    address: HOST:PORT of the head, or "" for RAY_ADDRESS or the cluster of this machine.

    Raises:
        WorkFailed: the cluster does not answer.
        Problem: no node of the cluster is large enough for a worker.
    """
    address = address or os.environ.get("RAY_ADDRESS", "") or "auto"
    if address != "auto":
        _check_connection(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    failed: list[BaseException] = []
    # In the main thread Ray would replace the handler of SIGTERM, and a join without a limit could not be ended.
    thread = threading.Thread(target=_init, args=(address, failed), daemon=True)
    thread.start()
    thread.join(JOIN_TIMEOUT_S)
    if thread.is_alive():
        raise WorkFailed(
            f"--address: {address} does not answer as the head of a Ray cluster within {JOIN_TIMEOUT_S:.0f} s"
        )
    if failed:
        text = " ".join(str(failed[0]).split())
        raise WorkFailed(
            f"--address: cannot join the Ray cluster at {address}: {text}; "
            "run `hpo launch` on a machine of the cluster (`ray start --address HOST:PORT` makes it one)"
        )
    _check_nodes(storage, gpus)


def _init(address: str, failed: list[BaseException]) -> None:
    try:
        import ray

        # `hpo claims` joins the cluster to check its options, and again for its first study.
        ray.init(address=address, ignore_reinit_error=True, logging_level=logging.CRITICAL, log_to_driver=False)
    except BaseException as error:
        failed.append(error)


def _check_connection(address: str) -> None:
    """Check that a server listens at an address, because Ray itself would retry without a limit.

    Raises:
        Problem: the address is not HOST:PORT.
        WorkFailed: no server listens.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise Problem(f"--address: must be HOST:PORT of the cluster's head, or auto, got {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise WorkFailed(
            f"--address: no Ray cluster answers at {address}: {error}; `ray start --head` starts one"
        ) from None


def _check_nodes(storage: str, gpus: float) -> None:
    """Check that a worker fits on a node, and warn if the storage's address is local to this machine."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes]
    if not any(cpu >= CPUS and gpu >= gpus for cpu, gpu in resources):
        raise Problem(
            f"--gpus-per-worker: must fit on a node beside {CPUS} CPU, got {gpus:g}; "
            f"the cluster's nodes have {', '.join(f'{cpu:g} CPUs and {gpu:g} GPUs' for cpu, gpu in resources)}"
        )
    hosts = {node["NodeManagerHostname"] for node in nodes}
    if len(hosts) > 1:
        note_local_address(storage, f"workers on the other {len(hosts) - 1} hosts cannot reach it")


class RayWorkerGroup(WorkerGroup):
    """A group of workers on the Ray cluster that this process has joined."""

    def __init__(
        self, gpus: float, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path
    ) -> None:
        """Start one worker for each environment. gpus: GPUs of each worker; the other arguments: see WorkerGroup."""
        import ray

        # SPREAD, because workers that share a node's cores with other processes are slow.
        resources = {"num_cpus": CPUS, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        actors: Any = ray.remote(RayWorker)
        # max_concurrency: the actor must answer send_signal while run is active.
        self._actors = actors.options(**resources, max_concurrency=4)
        self._n_waiting = 0
        self._stack = ExitStack()
        # Ray prints events of the cluster on standard output, which hpo reserves for data.
        self._stack.enter_context(redirect_stdout(io.StringIO()))
        super().__init__(arguments, environments, folder)

    def _signal_groups(self, number: signal.Signals) -> None:
        """Do nothing, so that the workers on the nodes continue while the launcher is suspended."""

    def _start_process(self, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        arguments = (importlib.metadata.version("hpo"), list(self._arguments), dict(environment), os.getcwd())
        return cast("subprocess.Popen[str]", RemoteProcess(self._actors.remote(), log, arguments))

    def events(self, wait: float) -> Iterator[Event]:
        """Yield the events that have arrived, and a note when more workers than before wait for resources."""
        yield from super().events(wait)
        late = time.monotonic() - PLACEMENT_WAIT_S
        running = [remote for remote in map(_remote, self.workers) if remote.poll() is None]
        n_waiting = sum(remote.node is None and remote.requested_at < late for remote in running)
        if n_waiting > self._n_waiting:
            n_placed = sum(remote.node is not None for remote in running)
            text = f"waiting for free resources: {n_placed} of {len(self.workers)} workers are placed"
            yield {"event": "note", "text": text}
        self._n_waiting = n_waiting

    def is_active(self) -> bool:
        """Return whether a worker runs or will run. After one has found the budget spent, the others need no node."""
        remotes = [_remote(worker) for worker in self.workers]
        if any(remote.poll() == 0 for remote in remotes):
            for remote in remotes:
                if remote.node is None and remote.poll() is None:
                    remote.kill(0)
        return super().is_active()

    def stop(self, patience: float = 10.0) -> None:
        """Stop all workers, and leave the cluster."""
        import ray

        self.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for remote in map(_remote, self.workers):
            with suppress(subprocess.TimeoutExpired):
                remote.wait(max(0.1, deadline - time.monotonic()))
            if remote.poll() is None:
                remote.kill(LOST)
        ray.shutdown()
        self._stack.close()


def _remote(worker: WorkerProcess) -> RemoteProcess:
    return cast(RemoteProcess, worker.process)
