"""Pass the signals of a launch on to its workers."""

import os
import signal
from types import FrameType

from hpo.launcher.processes import WorkerGroup
from hpo.worker.events import Event


class SignalForwarder:
    """Passes SIGINT and SIGTERM on to the workers: the first one ends their rung, the second stops them immediately."""

    def __init__(self, group: WorkerGroup) -> None:
        self.group = group
        self.first: int | None = None
        self.reported = False
        self.previous = {n: signal.signal(n, self._forward) for n in (signal.SIGINT, signal.SIGTERM)}
        self.previous[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)

    def _forward(self, number: int, _: FrameType | None) -> None:
        self.first = self.first or number
        self.group.send_signal(signal.Signals(number))

    def _suspend(self, number: int, _: FrameType | None) -> None:
        """Suspend the workers and this process until the user continues it. The workers' leases may expire meanwhile.

        The workers are in sessions of their own, so the terminal does not suspend them.
        """
        self.group.suspend()
        handler = signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns when this process is continued
        signal.signal(number, handler)
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
