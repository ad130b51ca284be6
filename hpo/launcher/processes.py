"""A group of worker processes on this machine, their events, and their end."""

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
from hpo.worker.events import ENDS, EVENTS, Event

# Ends of one worker in a row after which it is not started again: of one that never joined its study; of one that
# reached no rung in between, which is more than it takes for the trial that ends its workers to be given up.
MAX_CRASHES_BEFORE_JOIN, MAX_CRASHES_AFTER_JOIN = 3, MAX_FAILURES + 1
RESTART_STATUSES = (75,)  # exit status: the device failed, and a new process may find it well


@dataclass
class WorkerProcess:
    """One worker, whatever process it runs in; its standard error goes to `log`.

    owner: under which its process holds leases. ends: how often in a row it ended though there was work.
    """

    number: int
    process: subprocess.Popen[str]
    log: Path
    environment: Mapping[str, str]
    owner: str | None = None
    ends: int = 0
    start_at: float | None = None  # when to start it again, by this process's clock

    def crashed(self) -> bool:
        """Return whether its process ended in a way that a new one may not: by a signal, or with a failed device."""
        status = self.process.poll()
        return status is not None and (status < 0 or status in RESTART_STATUSES)

    def given_up(self) -> bool:
        """Return whether starting it again has not helped."""
        return self.ends >= (MAX_CRASHES_BEFORE_JOIN if self.owner is None else MAX_CRASHES_AFTER_JOIN)

    def outlook(self) -> str:
        """Return how its process ended, and whether there will be another."""
        how = self.end().splitlines()[0].partition(" ended ")[2]
        if self.given_up():
            return f"ended {how.rstrip(':')}, {self.ends} times in a row; it is not started again"
        return f"ended {how.rstrip(':')}; it is started again"

    def end(self) -> str:
        """Return how its process ended, and what it said last."""
        status = self.process.returncode
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"worker {self.number} ended with {how}:\n{self.last_words()}".strip()

    def last_words(self, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""


class WorkerGroup:
    """Starts workers, hands on what they tell, and leaves none behind."""

    def __init__(self, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self._arguments, self._ending = arguments, False
        folder.mkdir(parents=True, exist_ok=True)
        self.members = []
        for number, environment in enumerate(environments, 1):
            log = folder / f"worker-{number}.log"
            log.write_bytes(b"")
            member = WorkerProcess(number, self._process(log, environment), log, environment)
            self.members.append(member)
            self._listen_to(member)

    def _process(self, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
        with log.open("a") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "hpo", "worker", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **environment, EVENTS: "json"},
                # Ctrl-C is the launcher's to pass on; otherwise each worker would get it twice.
                start_new_session=True,
            )

    def _listen_to(self, member: WorkerProcess) -> None:
        threading.Thread(target=self._listen, args=(member, member.process), daemon=True).start()

    def _listen(self, member: WorkerProcess, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if event["event"] == "joined":
                    member.owner = event["owner"]
                elif event["event"] in (*ENDS, "rung"):
                    member.ends = 0
                self._events.put({**event, "worker": member.number})
        self._events.put({"event": "exit", "worker": member.number, "status": process.wait()})

    def tend(self) -> Iterator[WorkerProcess]:
        """Start again what has crashed, after a pause that grows; yield each that has just been found so.

        One that ends three times in a row without ending a trial stays away: starting it again does not help.
        """
        for member in self.members:
            if self._ending or not member.crashed():
                continue
            if member.start_at is None:
                member.ends += 1
                again = time.monotonic() + 2.0 ** (member.ends - 1)
                member.start_at = math.inf if member.given_up() else again
                yield member
            elif time.monotonic() >= member.start_at:
                member.process, member.owner, member.start_at = (
                    self._process(member.log, member.environment),
                    None,
                    None,
                )
                self._listen_to(member)

    def events(self, wait: float) -> Iterator[Event]:
        """Yield what has been told; wait at most so many seconds for the first."""
        with contextlib.suppress(queue.Empty):
            yield self._events.get(timeout=wait)
            while True:
                yield self._events.get_nowait()

    def alive(self) -> bool:
        """Return whether a worker runs, is about to be started again, or has told something that was not read."""
        again = [m for m in self.members if m.crashed() and m.start_at != math.inf and not self._ending]
        return bool(again) or any(m.process.poll() is None for m in self.members) or not self._events.empty()

    def failed(self) -> list[WorkerProcess]:
        """Return the workers that ended otherwise than by seeing the budget spent."""
        return [member for member in self.members if member.process.poll() not in (None, 0)]

    def send(self, number: signal.Signals) -> None:
        """Signal all workers; none is started again from now on."""
        self._ending = True
        for member in self.members:
            if member.process.poll() is None:
                member.process.send_signal(number)

    def end(self, patience: float = 10.0) -> None:
        """End whatever still runs."""
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + patience
        for member in self.members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.1, deadline - time.monotonic()))
        for member in self.members:
            if member.process.poll() is None:
                os.killpg(member.process.pid, signal.SIGKILL)
                member.process.wait()
