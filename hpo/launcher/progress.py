"""What a launch looks like while it runs: a live table on a terminal, a line an event elsewhere."""

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.analysis.snapshot import Snapshot, trial_counts
from hpo.analysis.summary import best_summary, goal_lines, objective_decimals, objective_text
from hpo.console import clock, stderr
from hpo.worker.events import ENDS, Event, event_line


class EventLog:
    """A line an event, for logs and pipes."""

    def __init__(self, snapshot: Snapshot, quiet: bool = False) -> None:
        self.snapshot, self.quiet = snapshot, quiet

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, event: Event) -> None:
        if not self.quiet and (text := event_line(event, self.snapshot.rungs, objective_decimals(self.snapshot))):
            who = f"worker {event['worker']}: " if "worker" in event else ""
            stderr().print(f"{who}{text}", markup=False)

    def refresh(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


class LiveTable:
    """One line a worker, best so far against baseline and anchors, progress, time left."""

    def __init__(self, snapshot: Snapshot, workers: int) -> None:
        self.snapshot = snapshot
        self.workers: dict[int, Event] = {i: {"event": "waking"} for i in range(1, workers + 1)}
        self.rates: dict[int, float] = {}
        self.begun = time.monotonic()
        self.done_before = _done(snapshot)
        self.told = self._standing(snapshot)
        self.live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self.render)

    def __enter__(self) -> "LiveTable":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.refresh()
        self.live.stop()

    def show(self, event: Event) -> None:
        worker = event.get("worker", 0)
        if worker in self.workers:
            self.workers[worker] = {"event": "ended"} if event["event"] == "exit" else event
            if event.get("tokens_per_second"):
                self.rates[worker] = event["tokens_per_second"]
        elif text := event_line(event, self.snapshot.rungs, objective_decimals(self.snapshot)):
            self.live.console.print(text, markup=False, highlight=False)

    def refresh(self, snapshot: Snapshot) -> None:
        self.told = self._standing(snapshot)  # once, not each time the table is drawn
        self.snapshot = snapshot

    def render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("worker", "trial", "rung", self.snapshot.objective, "tokens/s", ""):
            table.add_column(column, justify="left" if column == "" else "right", min_width=6)
        for worker, event in self.workers.items():
            table.add_row(*self._row(worker, event))
        told = [self._progress(), *self.told]
        return Group(Text(self.snapshot.name, style="bold"), table, *map(Text, told))

    def _row(self, worker: int, event: Event) -> tuple[str, ...]:
        if "trial" not in event:
            return str(worker), "", "", "", "", str(event["event"])
        loss, rate = event.get("value"), self.rates.get(worker)
        word = event["event"] if event["event"] in (*ENDS, "requeued", "taken") else ""
        return (
            str(worker),
            str(event["trial"]),
            f"{event.get('rung', 0)}/{self.snapshot.rungs}",
            "" if loss is None else objective_text(self.snapshot, loss),
            "" if rate is None else f"{rate:,.0f}",
            word,
        )

    def _progress(self) -> str:
        n = trial_counts(self.snapshot)
        ended = _done(self.snapshot)
        text = f"{n['complete']} complete, {n['pruned']} pruned, {n['failed']} failed, {n['running']} running"
        total = self.snapshot.budget.get("trials")
        if not total:
            return text
        left, fresh = total - ended, ended - self.done_before
        text += f", {n['waiting']} waiting of {total}"
        if fresh and left > 0:
            text += f"; about {clock((time.monotonic() - self.begun) / fresh * left)} left"
        return text

    @staticmethod
    def _standing(snapshot: Snapshot) -> list[str]:
        return [best_summary(snapshot) or "no trial complete yet", *goal_lines(snapshot)]


def _done(snapshot: Snapshot) -> int:
    n = trial_counts(snapshot)
    return n["complete"] + n["pruned"] + n["failed"]
