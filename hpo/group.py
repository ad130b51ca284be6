"""A group of worker processes on this machine, their events, and their end."""

import contextlib
import json
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
from typing import Any

Event = dict[str, Any]
EVENTS = "HPO_EVENTS"  # environment: a worker that finds "json" here prints its events as lines of JSON


@dataclass(frozen=True)
class Member:
    """One worker process; its standard error goes to `log`."""

    number: int
    process: subprocess.Popen[str]
    log: Path

    def last_words(self, lines: int = 15) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""


class Group:
    """Starts workers, hands on what they tell, and leaves none behind."""

    def __init__(self, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self.members = [self._start(i, arguments, env, folder) for i, env in enumerate(environments, 1)]

    def _start(self, number: int, arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Member:
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"worker-{number}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "hpo", "worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **environment, EVENTS: "json"},
                # Ctrl-C is the launcher's to pass on; otherwise each worker would get it twice.
                start_new_session=True,
            )
        member = Member(number, process, log)
        threading.Thread(target=self._listen, args=(member,), daemon=True).start()
        return member

    def _listen(self, member: Member) -> None:
        assert member.process.stdout is not None
        for line in member.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                self._events.put({**json.loads(line), "worker": member.number})
        self._events.put({"event": "exit", "worker": member.number, "status": member.process.wait()})

    def events(self, wait: float) -> Iterator[Event]:
        """Yield what has been told; wait at most so many seconds for the first."""
        with contextlib.suppress(queue.Empty):
            yield self._events.get(timeout=wait)
            while True:
                yield self._events.get_nowait()

    def alive(self) -> bool:
        return any(member.process.poll() is None for member in self.members) or not self._events.empty()

    def failed(self) -> list[Member]:
        """Return the workers that ended otherwise than by seeing the budget spent."""
        return [member for member in self.members if member.process.poll() not in (None, 0)]

    def send(self, number: signal.Signals) -> None:
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
