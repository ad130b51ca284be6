"""The Ray actor that runs one worker process on a node of the cluster, and passes signals of the launcher on."""

import importlib.metadata
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hpo.errors import Problem
from hpo.worker.events import EVENTS

WATCH_S = 0.25  # seconds between two checks of the node's raylet, the process by which Ray manages the node


class RayWorker:
    """A Ray actor that runs one worker process on its node."""

    def __init__(self) -> None:
        self._output: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._requested_signal: int | None = None
        self._lock = threading.Lock()
        self._raylet = os.getppid()
        self._raylet_ended = False

    def run(
        self, version: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str
    ) -> Iterator[tuple[str, Any]]:
        """Run a worker; yield ("on", node), ("out", line), ("err", line) and finally ("exit", status).

        The status is None if the worker had to stop because the node was lost.

        version: of hpo in the launcher. arguments: those of `hpo worker`. folder: working directory of the launcher.
        """
        import ray

        yield "on", f"{socket.gethostname()}, node {ray.get_runtime_context().get_node_id()[:8]}"
        node_version = importlib.metadata.version("hpo")
        if version != node_version:
            rule = f"hpo: must have the launcher's version {version} on all nodes, this node has {node_version}"
            yield "err", f"{rule}; install {version} here\n"
            yield "exit", Problem.status
            return
        process = self._start([sys.executable, "-m", "hpo", "worker", *arguments], environment, folder)
        for task in (self._read_output, self._watch_raylet):
            threading.Thread(target=task, args=(process,), daemon=True).start()
        while True:
            kind, value = self._output.get()
            yield kind, value
            if kind == "exit":
                return

    def send_signal(self, number: int) -> None:
        """Send a signal to the worker as soon as its process has started. SIGKILL also ends its child processes."""
        # Ray's processes block SIGINT, and their child processes inherit this. A worker handles both signals alike.
        number = signal.SIGTERM if number == signal.SIGINT else number
        with self._lock:
            self._requested_signal = number
            if self._process is None or self._process.poll() is not None:
                return
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def _start(self, command: Sequence[str], environment: Mapping[str, str], folder: str) -> subprocess.Popen[str]:
        with self._lock:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # A study's own training function is imported from the launcher's folder, if the node has this folder.
                cwd=folder if Path(folder).is_dir() else None,
                env={**os.environ, **environment, EVENTS: "json"},
                start_new_session=True,
            )
        if self._requested_signal is not None:
            self.send_signal(self._requested_signal)
        return self._process

    def _read_output(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        assert process.stderr
        pipes = {"out": process.stdout, "err": process.stderr}
        readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes.items()]
        for reader in readers:
            reader.start()
        status = process.wait()
        with suppress(ProcessLookupError, PermissionError):  # child processes of the worker, such as data loaders
            os.killpg(process.pid, signal.SIGKILL)
        for reader in readers:
            reader.join(2.0)  # not longer: child processes of the worker may hold its pipes open
        self._output.put(("exit", None if self._raylet_ended else status))

    def _watch_raylet(self, process: subprocess.Popen[str]) -> None:
        """Stop the worker as soon as the node's raylet has ended.

        Ray ends this process some seconds later. In the meantime the launcher may have freed the worker's trials, and
        the worker may have claimed others, which would then wait until their leases expire.
        """
        while process.poll() is None:
            if os.getppid() != self._raylet:
                self._raylet_ended = True
                self.send_signal(signal.SIGTERM)
                return
            time.sleep(WATCH_S)

    def _read(self, kind: str, pipe: IO[str]) -> None:
        for line in pipe:
            self._output.put((kind, line))
