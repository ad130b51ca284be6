"""When a launcher reads the whole study again to show it."""

import time

# Seconds between two reads of the whole study. SOON_S: after a trial has started or ended.
REFRESH_S, SOON_S = 5.0, 1.0


class RefreshTimer:
    """Seconds until the next read. Reading a large study takes long, so reads take at most a fifth of the time."""

    def __init__(self) -> None:
        self._due = self._soon = 0.0  # by time.monotonic(): the next read, and the earliest one that may be requested

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def hasten(self) -> None:
        """Request a read soon, because a trial has started or ended."""
        self._due = min(self._due, self._soon)

    def restart(self, seconds: float) -> None:
        """Plan the next read. seconds: that the last one took."""
        now = time.monotonic()
        self._due, self._soon = now + REFRESH_S, now + max(SOON_S, 4 * seconds)
