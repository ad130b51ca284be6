"""Pass signals of the launcher on to its workers."""

import os
import signal
import threading
from types import FrameType

from hpo.launcher.processes import WorkerGroup
from hpo.worker.events import Event


class SignalForwarder:
    """Passes SIGINT and SIGTERM on to the workers: the first one ends their rung, the second stops them immediately.

    In another thread than the main one, where Python allows no signal handlers, it passes nothing on.
    """

    def __init__(self) -> None:
        self.group: WorkerGroup | None = None
        self.first: int | None = None
        self.reported = False
        handlers = {signal.SIGINT: self._forward, signal.SIGTERM: self._forward, signal.SIGTSTP: self._suspend}
        if threading.current_thread() is not threading.main_thread():
            handlers = {}
        self.previous = {n: signal.signal(n, handler) for n, handler in handlers.items()}

    def _forward(self, number: int, _: FrameType | None) -> None:
        self.first = self.first or number
        if self.group is not None:
            self.group.send_signal(signal.Signals(number))

    def forward_to(self, group: WorkerGroup) -> None:
        """Pass signals on to this group, including one that has arrived already."""
        self.group = group
        if self.first is not None:
            group.send_signal(signal.Signals(self.first))

    def _suspend(self, number: int, _: FrameType | None) -> None:
        """Suspend the workers and this process until the user continues it. The workers' leases may expire meanwhile.

        The workers are in sessions of their own, so the terminal does not suspend them.
        """
        if self.group is not None:
            self.group.suspend()
        handler = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns when this process is continued
        signal.signal(number, handler)
        if self.group is not None:
            self.group.resume()

    def events(self) -> list[Event]:
        """Return a note after the first signal. The handler does not print it: it may interrupt another line."""
        if self.first is None or self.reported:
            return []
        self.reported = True
        text = "stopping: each worker finishes its rung and saves a checkpoint; press Ctrl-C again to stop immediately"
        return [{"event": "note", "text": text}]

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for n, handler in self.previous.items():
            signal.signal(n, handler)
