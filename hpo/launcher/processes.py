"""A group of worker processes on this machine: start, restart, signal and stop them, and read their events."""

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpo.queue.slots import MAX_FAILURES
from hpo.runs.run_dir import open_log
from hpo.worker.events import ENDS, EVENTS, Event

# Consecutive crashes after which a worker is not restarted. BEFORE_JOIN: of a worker that never joined its study.
# AFTER_JOIN: of a worker that reached no rung in between. This number is larger than MAX_FAILURES, so that a trial that
# crashes its workers fails first.
MAX_CRASHES_BEFORE_JOIN, MAX_CRASHES_AFTER_JOIN = 3, MAX_FAILURES + 1
READ_S = 5.0  # seconds for which the launcher reads the last events after all workers have ended
# Exit statuses after which a worker is restarted: its device failed, and may work again in a new process.
RESTART_STATUSES = (75,)


@dataclass
class WorkerProcess:
    """One worker of a group.

    process: the current process; for a worker on a Ray cluster, an object with the same methods.
    log: file that receives the worker's standard error.
    owner: name under which the process holds leases, None before it has joined its study.
    n_crashes: consecutive crashes without a new rung.
    restart_at: when to restart the process, by time.monotonic(); infinity: never.
    cleaned: the ended process whose child processes were killed.
    """

    number: int
    process: subprocess.Popen[str]
    log: Path
    environment: Mapping[str, str]
    owner: str | None = None
    n_crashes: int = 0
    restart_at: float | None = None
    cleaned: subprocess.Popen[str] | None = None

    def has_crashed(self) -> bool:
        """Return whether the process ended by a signal or with a failed device, so that a new one may succeed."""
        status = self.process.poll()
        return status is not None and (status < 0 or status in RESTART_STATUSES)

    def kill_children(self) -> None:
        """Kill the processes that an ended worker has left behind, such as data loaders, once for each process.

        They would hold memory of the GPU, and the worker's standard output.
        """
        if self.process.poll() is None or self.cleaned is self.process:
            return
        self.cleaned = self.process
        if pid := getattr(self.process, "pid", None):  # a worker on a Ray cluster has none here; see RayWorker
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def is_given_up(self) -> bool:
        """Return whether the worker has crashed too often to be restarted."""
        return self.n_crashes >= (MAX_CRASHES_BEFORE_JOIN if self.owner is None else MAX_CRASHES_AFTER_JOIN)

    def describe_crash(self) -> str:
        """Return how the process ended, and whether it is restarted."""
        if self.is_given_up():
            return f"ended with {self._exit()}, {self.n_crashes} times in a row; it is not restarted (see {self.log})"
        return f"ended with {self._exit()}; it is restarted"

    def describe_exit(self) -> str:
        """Return how the process ended, and the last lines of its log."""
        log = self._last_log_lines() or "it printed nothing"
        return f"worker {self.number} ended with {self._exit()}:\n{log}"

    def _exit(self) -> str:
        status = self.process.returncode
        return f"signal {-status}" if status < 0 else f"status {status}"

    def _last_log_lines(self, n_lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-n_lines:])
        return ""


class WorkerGroup:
    """Starts workers, collects their events, restarts those that crash, and stops all of them at the end."""

    def __init__(self, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path) -> None:
        """Start one worker for each environment.

        arguments: those of `hpo worker`. environments: variables added to this process's. folder: folder of the logs.
        """
        self._events: queue.Queue[Event] = queue.Queue()
        self._arguments, self._stopping = arguments, False
        self._readers: list[threading.Thread] = []
        self._ended_at = math.inf  # when all workers had ended, by time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.workers = []
        for number, environment in enumerate(environments, 1):
            log = folder / f"worker-{number}.log"
            log.unlink(missing_ok=True)  # it may be a link that another user has made
            worker = WorkerProcess(number, self._start_process(log, environment), log, environment)
            self.workers.append(worker)
            self._start_reader(worker)

    def _start_process(self, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        with open_log(log) as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "hpo", "worker", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **environment, EVENTS: "json"},
                # The launcher passes Ctrl-C on. In its own session a worker does not receive Ctrl-C a second time.
                start_new_session=True,
            )

    def _start_reader(self, worker: WorkerProcess) -> None:
        reader = threading.Thread(target=self._read_events, args=(worker, worker.process), daemon=True)
        self._readers = [thread for thread in self._readers if thread.is_alive()] + [reader]
        reader.start()

    def _read_events(self, worker: WorkerProcess, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with contextlib.closing(process.stdout) as lines:
            for line in lines:
                event = _parse_event(line)
                if event is None:
                    continue
                if event["event"] == "joined":
                    worker.owner = event["owner"]
                elif event["event"] in (*ENDS, "rung"):
                    worker.n_crashes = 0
                self._events.put({**event, "worker": worker.number})
        self._events.put({"event": "exit", "worker": worker.number, "status": process.wait()})

    def restart_crashed(self) -> Iterator[WorkerProcess]:
        """Yield each worker that has just crashed, and restart it after a pause that doubles with each crash."""
        for worker in self.workers:
            worker.kill_children()
            if self._stopping or not worker.has_crashed():
                continue
            if worker.restart_at is None:
                worker.n_crashes += 1
                restart_at = time.monotonic() + 2.0 ** (worker.n_crashes - 1)
                worker.restart_at = math.inf if worker.is_given_up() else restart_at
                yield worker
            elif time.monotonic() >= worker.restart_at:
                worker.process = self._start_process(worker.log, worker.environment)
                worker.owner, worker.restart_at = None, None
                self._start_reader(worker)

    def events(self, wait: float) -> Iterator[Event]:
        """Yield the events that have arrived; wait at most this many seconds for the first one."""
        with contextlib.suppress(queue.Empty):
            yield self._events.get(timeout=wait)
            while True:
                yield self._events.get_nowait()

    def is_active(self) -> bool:
        """Return whether a worker runs, will be restarted, or has sent events that are not read yet."""
        restarting = any(w.has_crashed() and w.restart_at != math.inf for w in self.workers) and not self._stopping
        if restarting or any(w.process.poll() is None for w in self.workers):
            self._ended_at = math.inf
            return True
        self._ended_at = min(self._ended_at, time.monotonic())
        # A process that a training function has started may keep the pipe open.
        reading = any(thread.is_alive() for thread in self._readers) and time.monotonic() < self._ended_at + READ_S
        return reading or not self._events.empty()

    def cancel_pending(self) -> None:
        """End the workers that have not started, because the study has ended. Here, workers start immediately."""

    def failed(self) -> list[WorkerProcess]:
        """Return the workers that ended with another status than 0."""
        return [worker for worker in self.workers if worker.process.poll() not in (None, 0)]

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all workers. None of them is restarted afterwards."""
        self._stopping = True
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(number)

    def suspend(self) -> None:
        """Suspend all workers, with the processes that they have started."""
        self._signal_groups(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue all suspended workers."""
        self._signal_groups(signal.SIGCONT)

    def _signal_groups(self, number: signal.Signals) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):  # the reader may have waited for its end meanwhile
                    os.killpg(worker.process.pid, number)

    def stop(self, patience: float = 10.0) -> None:
        """Stop all workers: SIGTERM, and after `patience` seconds SIGKILL."""
        self.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.1, deadline - time.monotonic()))
        for worker in self.workers:
            if worker.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.wait()
            worker.kill_children()


def _parse_event(line: str) -> Event | None:
    """Return the event in a line, None for a line that the user's training function has printed."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("event"), str)
    return event if is_event and (event["event"] != "joined" or "owner" in event) else None
