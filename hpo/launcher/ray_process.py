"""A worker process on a node of a Ray cluster, as the launcher sees it."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpo.runs.run_dir import open_log

LOST = -signal.SIGKILL  # exit status of a worker that was lost with its node, as if SIGKILL had ended it


class RemoteProcess:
    """A worker on a node, with the methods of subprocess.Popen that a WorkerGroup uses.

    node: the node that runs the worker, None before Ray has placed it.
    """

    def __init__(self, actor: Any, log: Path, arguments: Sequence[Any]) -> None:
        """Start a worker. arguments: those of `RayWorker.run`."""
        self.returncode: int | None = None
        self.node: str | None = None
        self.requested_at = time.monotonic()
        self._actor, self._log = actor, log
        self._ended = threading.Event()
        # The arguments hold the storage's URL with its password. Ray's dashboard shows names and environment
        # variables, but no arguments.
        self._output = actor.run.options(num_returns="streaming").remote(*arguments)
        self.stdout = self._lines()

    def poll(self) -> int | None:
        """Return the exit status, None while the worker runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the worker; return its exit status."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("hpo worker", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal from another thread, because signal handlers call this method and must not wait for Ray."""
        threading.Thread(target=self._send, args=(number,), daemon=True).start()

    def kill(self, status: int) -> None:
        """Kill the worker and its child processes. status: the exit status to report."""
        import ray

        self.returncode = status if self.returncode is None else self.returncode
        with suppress(Exception):  # the node may be lost
            if self.node is not None:
                ray.get(self._actor.send_signal.remote(signal.SIGKILL), timeout=2.0)
            ray.kill(self._actor)
        self._ended.set()

    def _send(self, number: int) -> None:
        if self.node is None:
            self.kill(128 + number)
        else:
            with suppress(Exception):
                self._actor.send_signal.remote(int(number))

    def _lines(self) -> Iterator[str]:
        """Yield the worker's standard output and events of its placement; write its standard error to the log."""
        import ray
        from ray.exceptions import RayTaskError

        status = LOST
        try:
            for reference in self._output:
                kind, value = ray.get(reference)
                if kind == "out":
                    yield value
                elif kind == "err":
                    self._write_log(value)
                elif kind == "on":
                    self.node = value
                    self._write_log(f"placed on {value}\n")
                    yield json.dumps({"event": "placed", "text": f"placed on {value}"})
                elif value is None:
                    yield self._lost_event("the node's raylet has ended")
                else:
                    status = value
        except Exception as error:  # the node is lost, or cannot run the actor
            status = 1 if isinstance(error, RayTaskError) else LOST
            if self.returncode is None:
                text = str(error).strip() or type(error).__name__
                self._write_log(f"{text}\n")
                yield self._lost_event(text.splitlines()[-1].strip())  # Ray's last line says why the actor has died
        self._finish(status)

    def _lost_event(self, reason: str) -> str:
        text = f"lost on {self.node}: {reason}" if self.node else f"not placed: {reason}"
        self._write_log(f"{text}\n")
        return json.dumps({"event": "note", "text": text})

    def _finish(self, status: int) -> None:
        import ray

        self.returncode = status if self.returncode is None else self.returncode
        with suppress(Exception):
            ray.kill(self._actor)  # frees the actor's resources
        self._ended.set()

    def _write_log(self, text: str) -> None:
        with suppress(OSError), open_log(self._log) as file:  # the worker continues without its log if the disk is full
            file.write(text)
