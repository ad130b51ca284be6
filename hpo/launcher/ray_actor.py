"""A worker's place on a node of a Ray cluster: a process of its own, watched and signalled from the launcher."""

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
from pathlib import Path
from typing import IO, Any

from hpo.errors import Problem
from hpo.worker.events import EVENTS

WATCH_S = 0.25  # between looks at the node's raylet


class RayWorker:
    """What Ray puts on a node, as an actor: it runs one worker process there."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._process: subprocess.Popen[str] | None = None
        self._asked: int | None = None
        self._lock = threading.Lock()
        self._node = os.getppid()  # the node's raylet
        self._lost = False

    def run(
        self, version: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str
    ) -> Iterator[tuple[str, Any]]:
        """Run a worker; yield ("on", where), ("out", line), ("err", line) and at last ("exit", status).

        The status of a worker that had to leave because its node was lost is None.
        """
        import ray

        yield "on", f"{socket.gethostname()}, node {ray.get_runtime_context().get_node_id()[:8]}"
        if version != (here := importlib.metadata.version("hpo")):
            yield "err", f"hpo: this node has version {here}, the launcher {version}; install the same on all nodes\n"
            yield "exit", Problem.status
            return
        process = self._start([sys.executable, "-m", "hpo", "worker", *arguments], environment, folder)
        for task in (self._listen, self._leave):
            threading.Thread(target=task, args=(process,), daemon=True).start()
        while True:
            kind, what = self._told.get()
            yield kind, what
            if kind == "exit":
                return

    def send(self, number: int) -> None:
        """Signal the worker, or have it signalled as soon as it is there; SIGKILL is for all that it started."""
        # Ray's processes block SIGINT, and so do those that they start; to a worker the two say the same.
        number = signal.SIGTERM if number == signal.SIGINT else number
        with self._lock:
            self._asked = number
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
                # The launcher's folder, where there is one: a study's own training function is found from there.
                cwd=folder if Path(folder).is_dir() else None,
                env={**os.environ, **environment, EVENTS: "json"},
                start_new_session=True,
            )
        if self._asked is not None:
            self.send(self._asked)
        return self._process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        assert process.stderr
        pipes = {"out": process.stdout, "err": process.stderr}
        readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes.items()]
        for reader in readers:
            reader.start()
        status = process.wait()
        for reader in readers:
            reader.join(2.0)  # what the worker started may hold its pipes open
        self._told.put(("exit", None if self._lost else status))

    def _leave(self, process: subprocess.Popen[str]) -> None:
        """Ask the worker to leave as soon as the node's raylet is gone.

        Ray ends this process seconds later, perhaps after the launcher has freed what the worker held and while it
        holds something new, which would then wait for its lease to run out.
        """
        while process.poll() is None:
            if os.getppid() != self._node:
                self._lost = True
                self.send(signal.SIGTERM)
                return
            time.sleep(WATCH_S)

    def _read(self, kind: str, pipe: IO[str]) -> None:
        for line in pipe:
            self._told.put((kind, line))
