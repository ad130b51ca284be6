"""Signals of a worker: the first asks it to leave at the end of its rung, the second or too long a rung ends it now."""

import signal
from typing import Any

GRACE_S = 10.0  # that a rung has to end in, once the worker is asked to leave
_STOP = (signal.SIGINT, signal.SIGTERM)


class GracePeriodExpired(BaseException):
    """The rung did not end in time after the worker was asked to leave. No `except Exception` of a user's holds it."""


class TrialTimeout(BaseException):
    """A trial took longer than its study allows."""


class SignalHandler:
    """While it is entered, this process's signals are ours. `signal`: the first that asked to leave."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._depth = 0

    def __enter__(self) -> "SignalHandler":
        self._depth += 1
        if self._depth > 1:  # a worker inside of one that follows several studies
            return self
        self._before = {n: signal.signal(n, self._on_stop) for n in _STOP}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        for n, handler in self._before.items():
            signal.signal(n, handler)

    def ask(self, number: int) -> None:
        """Ask to leave, as a signal would."""
        if self.signal is None:
            self.signal = number
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def overdue_in(self, seconds: float) -> None:
        """Raise Overdue after so many seconds, unless it is turned off before."""
        if self.signal is not None:
            return
        signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
        if self.signal is not None:  # asked in between
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def off(self) -> None:
        """Forget about a trial that would be overdue."""
        if self.signal is not None:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.signal is not None:  # asked in between
            signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    def rest(self) -> None:
        """Let what is left to do take the time that it takes."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_stop(self, number: int, _: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.ask(number)

    def _on_alarm(self, number: int, _: Any) -> None:
        raise TrialTimeout if self.signal is None else GracePeriodExpired
