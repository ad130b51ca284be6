"""Progress of a launch: a live view in a terminal or a notebook, otherwise one line per event."""

import sys
import time

from rich.console import Console

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import objective_decimals
from hpo.console import say
from hpo.launcher.options import LaunchOptions
from hpo.view.live import LiveView
from hpo.view.notebook import NotebookView, in_notebook
from hpo.worker.events import Event, event_line


class RegistrationProgress:
    """Prints how many trials of a large study are registered, at most one line in two seconds."""

    EVERY_S = 2.0

    def __init__(self, study: str) -> None:
        self.study, self.next_at = study, time.monotonic() + self.EVERY_S

    def __call__(self, n: int, total: int) -> None:
        if time.monotonic() >= self.next_at:
            say(f"{self.study}: registering trials, {n:,} of {total:,}")
            self.next_at = time.monotonic() + self.EVERY_S


class EventLog:
    """Prints one line per event, for logs and pipes."""

    def __init__(self, snapshot: Snapshot, quiet: bool = False) -> None:
        self.snapshot, self.quiet = snapshot, quiet

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, event: Event) -> None:
        """Print an event."""
        if not self.quiet and (text := event_line(event, self.snapshot.rungs, objective_decimals(self.snapshot))):
            prefix = f"worker {event['worker']}: " if "worker" in event else ""
            say(f"{prefix}{text}")

    def refresh(self, snapshot: Snapshot) -> None:
        """Use a newer snapshot of the study."""
        self.snapshot = snapshot


View = EventLog | LiveView | NotebookView


def choose_view(options: LaunchOptions, snapshot: Snapshot, n_workers: int) -> View:
    """Return what shows a launch: the live view if a terminal or a notebook can redraw it, otherwise lines."""
    if options.plain or options.quiet:
        return EventLog(snapshot, options.quiet)
    if in_notebook():
        return NotebookView(snapshot, n_workers)
    is_plain = not sys.stderr.isatty() or Console(stderr=True).is_dumb_terminal  # which cannot move its cursor
    return EventLog(snapshot) if is_plain else LiveView(snapshot, n_workers)
