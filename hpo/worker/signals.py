"""Signals of a worker.

The first SIGINT, SIGTERM or SIGUSR1 stops the worker at the end of its rung. A second signal, or a rung that takes
longer than the grace period, stops it immediately. Cluster schedulers such as Slurm send SIGUSR1 as an early warning.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from hpo.errors import Interruption
from hpo.storage.retry import is_waiting, outages
from hpo.worker.events import WARNING_GRACE_S

GRACE_S = 10.0  # time that a rung has to end after the first signal
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class GracePeriodExpired(Interruption):
    """The rung did not end within the grace period."""


class SecondSignal(Interruption):
    """A second signal arrived: the worker must stop now."""


class TrialTimeout(Interruption):
    """A trial took longer than `limits.seconds` of its study."""


class SignalHandler:
    """A context manager that handles SIGINT, SIGTERM, SIGUSR1 and SIGALRM of this process.

    One timer serves two purposes: the timeout of a trial, and after a stop signal the grace period.

    signal: the number of the first stop signal, None before it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._received, self._shielded, self._depth = False, False, 0
        self._warning_grace_s = float(os.environ.get(WARNING_GRACE_S, 0.0))

    def __enter__(self) -> "SignalHandler":
        self._depth += 1
        if self._depth > 1:  # `hpo worker --follow` enters it, and so does each worker that it runs
            return self
        self._previous = {n: signal.signal(n, self._on_stop) for n in _STOP_SIGNALS}
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        _set_timer(0)
        for n, handler in self._previous.items():
            signal.signal(n, handler)

    def request_stop(self, number: int) -> None:
        """Stop the worker as the first signal of this number would, and start the grace period."""
        if self.signal is None:
            self.signal = number
            _set_timer(self._grace_s())

    def start_timeout(self, seconds: float) -> None:
        """Raise TrialTimeout after this time, unless `cancel_timeout` is called before."""
        if self.signal is None:
            self._set_timer_unless_stopping(max(0.001, seconds))

    def cancel_timeout(self) -> None:
        """Cancel the timeout of a trial; a grace period continues."""
        if self.signal is None:
            self._set_timer_unless_stopping(0)

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """Prevent the timer from interrupting the block, and signals too while the storage is reachable.

        The worker stops after the block, which should take seconds at most.
        """
        self._shielded = True
        try:
            yield
        finally:
            _set_timer(0)
            self._shielded = False

    def _set_timer_unless_stopping(self, seconds: float) -> None:
        _set_timer(seconds)
        if self.signal is not None:  # the signal arrived just before the timer was set, which replaced the grace period
            _set_timer(self._grace_s())

    def _grace_s(self) -> float:
        return max(GRACE_S, self._warning_grace_s) if self.signal == signal.SIGUSR1 else GRACE_S

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        # When a launcher dies, the worker may see its closed pipe before the signal that Linux sends for it.
        first, self._received = not self._received, True
        self.request_stop(number)
        if self._shielded and not outages.is_ongoing():
            return
        if not first:
            raise SecondSignal
        if is_waiting():  # nothing can be finished while the storage is unreachable
            raise GracePeriodExpired

    def _on_alarm(self, number: int, _: FrameType | None) -> None:
        if self._shielded:
            return
        raise TrialTimeout if self.signal is None else GracePeriodExpired


def _set_timer(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)
