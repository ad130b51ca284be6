"""Progress of a launch: a live table in a terminal, otherwise one line per event."""

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.analysis.looks import look_lines
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import best_summary, goal_lines, objective_decimals, objective_text
from hpo.console import format_duration, printable, say
from hpo.worker.events import ENDS, Event, event_line


def is_dumb_terminal() -> bool:
    """Return whether the terminal of standard error cannot move its cursor, so that it cannot show a live table."""
    return Console(stderr=True).is_dumb_terminal


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


class LiveTable:
    """Shows one row per worker, the best trial against baseline and anchors, the progress, and the remaining time."""

    def __init__(self, snapshot: Snapshot, workers: int) -> None:
        self.snapshot = snapshot
        self.events: dict[int, Event] = {i: {"event": "starting"} for i in range(1, workers + 1)}  # the last of each
        self.rates: dict[int, float] = {}  # tokens per second of each worker
        self.started_at = time.monotonic()
        self.finished_before = _n_finished(snapshot)
        self.summary = self._summary(snapshot)
        self.live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self.render)

    def __enter__(self) -> "LiveTable":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.refresh()
        self.live.stop()

    def show(self, event: Event) -> None:
        """Show an event in its worker's row, or above the table if no worker sent it."""
        worker = event.get("worker", 0)
        if worker in self.events:
            self.events[worker] = {"event": "ended"} if event["event"] == "exit" else event
            if event.get("tokens_per_second"):
                self.rates[worker] = event["tokens_per_second"]
        elif text := event_line(event, self.snapshot.rungs, objective_decimals(self.snapshot)):
            self.live.console.print(Text(printable(text)))

    def refresh(self, snapshot: Snapshot) -> None:
        """Use a newer snapshot of the study."""
        self.summary = self._summary(snapshot)  # here and not in `render`, which runs four times per second
        self.snapshot = snapshot

    def render(self) -> RenderableType:
        """Return the table and the lines below it."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("worker", "trial", "rung", printable(self.snapshot.objective, keep=""), "tokens/s", ""):
            table.add_column(Text(column), justify="left" if column == "" else "right", min_width=6)
        for worker, event in self.events.items():
            table.add_row(*(Text(printable(cell)) for cell in self._row(worker, event)))
        lines = [self._progress(), *self.summary]
        name = Text(printable(self.snapshot.name, keep=""), style="bold")
        return Group(name, table, *(Text(printable(line)) for line in lines))

    def _row(self, worker: int, event: Event) -> tuple[str, ...]:
        if "trial" not in event:
            return str(worker), "", "", "", "", str(event["event"])
        loss, rate = event.get("value"), self.rates.get(worker)
        return (
            str(worker),
            str(event["trial"]),
            f"{event.get('rung', 0)}/{self.snapshot.rungs}",
            "" if loss is None else objective_text(self.snapshot, loss),
            "" if rate is None else f"{rate:,.0f}",
            event["event"] if event["event"] in (*ENDS, "paused", "requeued", "taken") else "",
        )

    def _progress(self) -> str:
        n = trial_counts(self.snapshot)
        n_finished = _n_finished(self.snapshot)
        text = f"{n['complete']} complete, {n['pruned']} pruned, {n['failed']} failed, {n['running']} running"
        text += f", {n['paused']} paused" if "paused" in n else ""
        total = self.snapshot.budget.get("trials")
        if not total:
            return text
        left, newly_finished = total - n_finished, n_finished - self.finished_before
        text += f", {n['waiting']} waiting of {total}"
        if newly_finished and left > 0:
            text += f"; about {format_duration((time.monotonic() - self.started_at) / newly_finished * left)} left"
        return text

    @staticmethod
    def _summary(snapshot: Snapshot) -> list[str]:
        return [best_summary(snapshot) or "no trial complete yet", *look_lines(snapshot), *goal_lines(snapshot)]


def _n_finished(snapshot: Snapshot) -> int:
    n = trial_counts(snapshot)
    return n["complete"] + n["pruned"] + n["failed"]
