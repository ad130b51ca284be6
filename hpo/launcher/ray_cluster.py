"""Workers on the nodes of a Ray cluster: Ray finds the room, each worker is a process of its own on its node.

Everything but the place is as on one machine: the leases in the storage decide who trains what, the launcher's
`Group` starts lost workers again, and Ray puts them where there is room.
"""

import importlib.metadata
import importlib.util
import io
import json
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

import sqlalchemy as sa

from hpo.console import say
from hpo.errors import Problem, WorkFailed
from hpo.launcher.processes import WorkerGroup, WorkerProcess
from hpo.launcher.ray_actor import RayWorker
from hpo.storage.url import masked_url, normalise_url
from hpo.worker.events import Event

CPUS = 1  # of a worker; cores beyond one speed up a small GPT less than another worker does
CONNECT_TIMEOUT_S = 5.0  # for which the head's port may take to answer
JOIN_TIMEOUT_S = 20.0  # for which joining the cluster may take; Ray by itself would try for ever
PLACEMENT_WAIT_S = 10.0  # after which a worker without a place is spoken of
LOST = -signal.SIGKILL  # exit status, as of a process, of a worker that was lost with its node


def check_ray_options(storage: str, gpus: float) -> None:
    """Check what can be checked without a cluster.

    Raises:
        Problem: Ray is not installed, or workers on other nodes could not work.
    """
    if importlib.util.find_spec("ray") is None:
        raise Problem("--on ray: needs Ray, which is not installed; pip install 'hpo[ray]'")
    url = normalise_url(storage)
    if url.startswith("sqlite"):
        raise Problem(
            f"--storage: must be Postgres with --on ray, since workers on other nodes cannot reach a file here, "
            f"got {masked_url(url)}; use postgresql://USER@HOST/DATABASE, such as the one of docker-compose.yml"
        )
    if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        raise Problem(f"--gpus-per-worker: must be a fraction of one GPU or a whole number of them, got {gpus:g}")


def join_cluster(address: str, storage: str, gpus: float) -> None:
    """Join a running cluster as a driver; warn where its nodes may not reach the storage.

    Raises:
        WorkFailed: it does not answer. Problem: none of its nodes could ever hold a worker.
    """
    address = address or os.environ.get("RAY_ADDRESS", "") or "auto"
    if address != "auto":
        _reach(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    failed: list[BaseException] = []
    # a thread: from the main one Ray would take SIGTERM, and nothing could end its waiting
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


def _reach(address: str) -> None:
    """Check that something listens there, since Ray tries for ever.

    Raises:
        Problem: it is no HOST:PORT. WorkFailed: nothing does.
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
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    have = [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes]
    if not any(cpu >= CPUS and gpu >= gpus for cpu, gpu in have):
        raise Problem(
            f"--gpus-per-worker: must fit on a node beside {CPUS} CPU, got {gpus:g}; "
            f"the cluster's nodes have {', '.join(f'{cpu:g} CPUs and {gpu:g} GPUs' for cpu, gpu in have)}"
        )
    hosts = {node["NodeManagerHostname"] for node in nodes}
    url = sa.make_url(normalise_url(storage))
    named = str(url.host or url.query.get("host") or "/")
    if len(hosts) > 1 and (named.startswith(("/", "127.")) or named in ("localhost", "::1")):
        say(
            f"note: {masked_url(storage)} is this machine's own; workers on the other {len(hosts) - 1} hosts cannot reach it"
        )


class RemoteProcess:
    """A worker on some node, with what `Group` asks of a process. `on`: where it is, None before it has a place."""

    def __init__(self, actor: Any, log: Path, given: Sequence[Any]) -> None:
        self.returncode: int | None = None
        self.on: str | None = None
        self.asked_at = time.monotonic()
        self._actor, self._log = actor, log
        self._ended = threading.Event()
        # The URL with its password is an argument: Ray shows environments and names, never arguments.
        self._told = actor.run.options(num_returns="streaming").remote(*given)
        self.stdout = self._lines()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("hpo worker", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the worker from another thread: this is called by signal handlers, which must not wait for Ray."""
        threading.Thread(target=self._send, args=(number,), daemon=True).start()

    def give_up(self, status: int) -> None:
        """End with this status, with all that runs on the node."""
        import ray

        self.returncode = status if self.returncode is None else self.returncode
        with suppress(Exception):  # it may be gone
            if self.on is not None:
                ray.get(self._actor.send.remote(signal.SIGKILL), timeout=2.0)
            ray.kill(self._actor)
        self._ended.set()

    def _send(self, number: int) -> None:
        if self.on is None:
            self.give_up(128 + number)
        else:
            with suppress(Exception):
                self._actor.send.remote(int(number))

    def _lines(self) -> Iterator[str]:
        """Yield what the worker prints, and an event of its place; what it says on standard error goes to the log."""
        import ray
        from ray.exceptions import RayTaskError

        status = LOST
        try:
            for reference in self._told:
                kind, what = ray.get(reference)
                if kind == "out":
                    yield what
                elif kind == "err":
                    self._note(what)
                elif kind == "on":
                    self.on = what
                    self._note(f"placed on {what}\n")
                    yield json.dumps({"event": "placed", "text": f"placed on {what}"})
                elif what is None:
                    yield self._lost("the node's raylet is gone")
                else:
                    status = what
        except Exception as error:  # lost with its node, or the node cannot run it
            status = 1 if isinstance(error, RayTaskError) else LOST
            if self.returncode is None:
                yield self._lost(str(error).strip().splitlines()[-1].strip())
        self._over(status)

    def _lost(self, why: str) -> str:
        text = f"lost on {self.on}: {why}" if self.on else f"not placed: {why}"
        self._note(f"{text}\n")
        return json.dumps({"event": "note", "text": text})

    def _over(self, status: int) -> None:
        import ray

        self.returncode = status if self.returncode is None else self.returncode
        with suppress(Exception):
            ray.kill(self._actor)  # its room is for others
        self._ended.set()

    def _note(self, text: str) -> None:
        with self._log.open("a") as file:
            file.write(text)


class RayWorkerGroup(WorkerGroup):
    """A group whose workers are on a Ray cluster that this process has joined."""

    def __init__(
        self, gpus: float, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path
    ) -> None:
        import ray

        # spread: a worker that finds a node's cores taken by others is slow, one that is alone is not
        room = {"num_cpus": CPUS, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        actors: Any = ray.remote(RayWorker)
        self._places = actors.options(**room, max_concurrency=4)  # a place listens while its worker runs
        self._waiting = 0
        self._aside = ExitStack()
        # Ray prints what befalls the cluster on standard output, which is for data.
        self._aside.enter_context(redirect_stdout(io.StringIO()))
        super().__init__(arguments, environments, folder)

    def _process(self, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        given = (importlib.metadata.version("hpo"), list(self._arguments), dict(environment), os.getcwd())
        return cast("subprocess.Popen[str]", RemoteProcess(self._places.remote(), log, given))

    def events(self, wait: float) -> Iterator[Event]:
        """Yield what has been told, and that workers wait for room, each time that more do."""
        yield from super().events(wait)
        late = time.monotonic() - PLACEMENT_WAIT_S
        running = [remote for remote in map(_remote, self.members) if remote.poll() is None]
        waiting = sum(remote.on is None and remote.asked_at < late for remote in running)
        if waiting > self._waiting:
            placed = sum(remote.on is not None for remote in running)
            text = f"waiting for room: {placed} of {len(self.members)} workers placed"
            yield {"event": "note", "text": text}
        self._waiting = waiting

    def alive(self) -> bool:
        """Return whether a worker runs or will; where one saw the budget spent, the others need no place any more."""
        remotes = [_remote(member) for member in self.members]
        if any(remote.poll() == 0 for remote in remotes):
            for remote in remotes:
                if remote.on is None and remote.poll() is None:
                    remote.give_up(0)
        return super().alive()

    def end(self, patience: float = 10.0) -> None:
        """End whatever still runs, and leave the cluster."""
        import ray

        self.send(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for remote in map(_remote, self.members):
            with suppress(subprocess.TimeoutExpired):
                remote.wait(max(0.1, deadline - time.monotonic()))
            if remote.poll() is None:
                remote.give_up(LOST)
        ray.shutdown()
        self._aside.close()


def _remote(member: WorkerProcess) -> RemoteProcess:
    return cast(RemoteProcess, member.process)
