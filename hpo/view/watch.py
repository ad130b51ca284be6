"""`hpo status --watch` in a terminal, and `Study.watch`: the live view of a study that runs elsewhere."""

import time

from rich.console import Console

from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.console import show
from hpo.queue.inspect import BeingRegistered
from hpo.storage.retry import OpenStorage
from hpo.view.live import LiveView
from hpo.view.notebook import NotebookView, in_notebook

READ_S = 2.0  # seconds between two reads of the study, more where a read takes long


def can_watch() -> bool:
    """Return whether a terminal or a notebook can redraw the view; otherwise the status is printed again and again."""
    console = Console()
    return in_notebook() or (console.is_terminal and not console.is_dumb_terminal)


def watch_study(store: OpenStorage, name: str | None) -> None:
    """Show a study until it ends."""
    snapshot = _first_snapshot(store, name)
    with NotebookView(snapshot) if in_notebook() else LiveView(snapshot, console=Console()) as view:
        while not has_ended(snapshot):
            started_at = time.monotonic()
            snapshot = read_snapshot(store, snapshot.name)
            view.refresh(snapshot)
            time.sleep(max(READ_S, 4 * (time.monotonic() - started_at)))


def _first_snapshot(store: OpenStorage, name: str | None) -> Snapshot:
    """Return a study as soon as it is registered."""
    said = ""
    while True:
        try:
            return read_snapshot(store, name)
        except BeingRegistered as problem:
            if str(problem) != said:
                show(said := str(problem))
            time.sleep(READ_S)
