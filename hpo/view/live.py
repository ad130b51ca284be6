"""The live view of a study: a bar for the study and one for each trial, curves against the best, the last events."""

import time
from collections import deque
from datetime import datetime, timedelta

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from hpo.analysis.looks import look_lines
from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.summary import best_summary, goal_lines, objective_decimals
from hpo.console import format_duration, printable
from hpo.storage.trials import State, Trial, load_details
from hpo.view.history import TimedEvent, last_events
from hpo.view.marks import Marks
from hpo.view.remaining import elapsed_seconds, limits, seconds_left
from hpo.view.rows import RowLayout, TrialRow, running_trials, short_names, trial_row
from hpo.worker.events import ENDS, Event, event_line

N_EVENTS = 5  # lines of events; fewer in a low terminal
MIN_EVENTS = 2


class LiveView:
    """Shows a study while it runs.

    `hpo launch` passes the events of its workers to `show`, and both `hpo launch` and `hpo status --watch` pass a newer
    snapshot to `refresh` from time to time.

    workers: number of workers that send events; None: the events are read from the snapshots.
    """

    def __init__(self, snapshot: Snapshot, workers: int | None = None, console: Console | None = None) -> None:
        self.idle = dict.fromkeys(range(1, (workers or 0) + 1), "starting")  # what each worker without a trial does
        self.from_events = workers is not None
        self.trial_of: dict[int, set[int]] = {}  # the trials of each worker
        self.rates: dict[int, float] = {}  # tokens per second of each trial
        self.reported: dict[int, dict[int, float]] = {}  # values of running trials that events have reported, by rung
        self.ended: set[int] = set()  # trials that have ended since the snapshot
        self.events: deque[TimedEvent] = deque(maxlen=N_EVENTS)
        self.launched_at = time.monotonic()
        self.console = console or Console(stderr=True)
        self.live = Live(self, console=self.console, refresh_per_second=4)
        self.refresh(snapshot)
        self.events.extend(last_events(snapshot, N_EVENTS))

    def __enter__(self) -> "LiveView":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.refresh()
        self.live.stop()

    def show(self, event: Event) -> None:
        """Take up an event of a worker or of the launcher."""
        worker, trial = event.get("worker", 0), event.get("trial")
        if trial is not None and worker in self.idle:
            self._follow(worker, trial, event)
        elif event["event"] == "exit":
            self.idle[worker] = "ended"
            self.trial_of.pop(worker, None)
        text = event_line(event, self.snapshot.rungs, objective_decimals(self.snapshot))
        if text and event["event"] != "rung":
            prefix = f"worker {worker}: " if worker and trial is None else ""
            self.events.append(TimedEvent(datetime.now(), f"{prefix}{text}"))

    def _follow(self, worker: int, trial: int, event: Event) -> None:
        """Note which trials a worker trains, and how far they are."""
        self.idle[worker] = ""
        trials = self.trial_of.setdefault(worker, set())
        if event["event"] in (*ENDS, "paused", "requeued", "taken"):
            trials.discard(trial)
            self.ended.add(trial)
            self.rates.pop(trial, None)
            return
        trials.add(trial)
        self.ended.discard(trial)
        if event["event"] == "rung":
            value = event.get("value")
            self.reported.setdefault(trial, {})[event["rung"]] = float("nan") if value is None else value
            if event.get("tokens_per_second"):
                self.rates[trial] = event["tokens_per_second"]

    def refresh(self, snapshot: Snapshot) -> None:
        """Use a newer snapshot of the study. All that the view needs of it is read here, not for each frame."""
        self.snapshot, self.read_at = snapshot, time.monotonic()
        running, best = running_trials(snapshot), snapshot.best()
        load_details([*running, *([best] if best else [])])
        names = short_names(snapshot)
        self.running = {t.number: trial_row(snapshot, t, names) for t in running}
        self.best = trial_row(snapshot, best, names, f"best {best.number}") if best else None
        self.summary = [best_summary(snapshot) or "no trial complete yet", *look_lines(snapshot), *goal_lines(snapshot)]
        ended = {t.number for t in snapshot.trials if _is_over(t)}
        self.ended -= ended
        self.reported = {trial: curve for trial, curve in self.reported.items() if trial not in ended}
        if not self.from_events:
            self.events.clear()
            self.events.extend(last_events(snapshot, N_EVENTS))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the view in the width and height of the terminal."""
        yield Group(*self.lines(options.max_width, options.max_height, "utf" in console.encoding.lower()))

    def lines(self, width: int, height: int, unicode: bool = True) -> list[Text]:
        """Return the lines of the view; trials that do not fit into the height are counted in one line."""
        marks, rows = Marks(unicode), self._rows()
        head = self._head(rows, width, marks)
        foot = [Text(line) for text in self.summary for line in wrapped(text, width)]
        layout = RowLayout(self.snapshot, [*rows, *([self.best] if self.best else [])], self._best_curve(), width)
        trials = [layout.lines(row, marks) for row in rows]
        best = layout.lines(self.best, marks) if self.best else []
        room = height - len(head) - 2 - MIN_EVENTS
        if sum(map(len, [*trials, best, foot])) > room:  # first the parameters, then most of the summary are left out
            trials, best = [lines[:1] for lines in trials], best[:1]
            foot = foot[: max(2, room - len(trials) - len(best))]
        shown = _fitting([len(lines) for lines in trials], room - len(best) - len(foot))
        body = [line for lines in trials[:shown] for line in lines]
        if shown < len(trials):
            body.append(Text(f"and {len(trials) - shown} more running trials", style="dim"))
        table = [layout.header(), *body, *best] if trials or best else []
        n_events = max(MIN_EVENTS, height - 1 - len(head) - len(foot) - len(table))
        events = list(self.events)[-n_events:]
        return [*head, *table, *foot, *(_event_text(event, width) for event in events)]

    def _rows(self) -> list[TrialRow]:
        """Return the rows of the running trials, with what events have reported since the snapshot."""
        followed = {trial for trials in self.trial_of.values() for trial in trials}
        rows = []
        for number in sorted((self.running.keys() | followed) - self.ended):
            known = self.running.get(number) or TrialRow(str(number), 0, {}, {})
            curve = {**known.curve, **self.reported.get(number, {})}
            rows.append(TrialRow(known.label, max([known.rung, *curve]), curve, known.params))
        return rows

    def _best_curve(self) -> dict[int, float]:
        return dict(self.best.curve) if self.best else {}

    def _head(self, rows: list[TrialRow], width: int, marks: Marks) -> list[Text]:
        """Return the name of the study, its times, its bars and its counts."""
        elapsed = elapsed_seconds(self.snapshot, time.monotonic() - self.read_at)
        left = seconds_left(self.snapshot, elapsed)
        since = time.monotonic() - self.launched_at if self.from_events else elapsed
        state = "" if self.snapshot.state == "active" else f" ({self.snapshot.state})"
        name = Text(printable(self.snapshot.name, keep="") + state, style="bold")
        times = f"elapsed {format_duration(since)}" + ("" if left is None else f", about {format_duration(left)} left")
        together = cell_len(name.plain) + 2 + len(times) <= width
        lines = [Text.assemble(name, times.rjust(width - cell_len(name.plain)))] if together else [name, Text(times)]
        running = sum(row.rung / self.snapshot.rungs for row in rows)
        for share, text in limits(self.snapshot, elapsed, running).values():
            label = f" {share:4.0%} {text}"
            lines.append(Text.assemble(marks.bar(share, max(8, min(60, width - len(label)))), label))
        return lines + [Text(line) for line in wrapped(self._counts(rows), width)] + self._idle_lines(width)

    def _counts(self, rows: list[TrialRow]) -> str:
        n = trial_counts(self.snapshot)
        text = f"{n['complete']} complete, {n['pruned']} pruned, {n['failed']} failed, {len(rows)} running"
        text += f", {n['paused']} paused" if "paused" in n else ""
        text += f", {n['waiting']} waiting" if self.snapshot.budget.get("trials") else ""
        rate = sum(self.rates.get(int(row.label), 0) for row in rows)
        return text + (f"; {rate:,.0f} tokens/s" if rate else "")

    def _idle_lines(self, width: int) -> list[Text]:
        """Return a line for the workers without a trial, by what they do."""
        doing: dict[str, list[str]] = {}
        for worker, state in self.idle.items():
            if not self.trial_of.get(worker):
                doing.setdefault(state or "waiting", []).append(str(worker))
        words = [f"worker{'s' * (len(n) > 1)} {', '.join(n)}: {state}" for state, n in doing.items()]
        return [Text(line, style="dim") for line in wrapped("; ".join(words), width)] if words else []


def wrapped(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` cells, broken between words; later lines are indented."""
    import textwrap

    safe = printable(text)
    return [s for line in safe.split("\n") for s in textwrap.wrap(line, max(width, 20), subsequent_indent="  ") or [""]]


def _is_over(trial: Trial) -> bool:
    return trial.state in (State.COMPLETE, State.PRUNED, State.FAIL)


def _fitting(heights: list[int], room: int) -> int:
    """Return how many of the first rows fit; if not all fit, one line is left for the number of the others."""
    if sum(heights) <= room:
        return len(heights)
    shown, used = 0, 1
    while shown < len(heights) and used + heights[shown] <= room:
        used += heights[shown]
        shown += 1
    return shown


def _event_text(event: TimedEvent, width: int) -> Text:
    """Return an event in one line; the date stands where it is not today's."""
    today = datetime.now() - event.at < timedelta(hours=20)
    text = Text(f"{event.at:{'%H:%M:%S' if today else '%m-%d %H:%M'}}  ", style="dim")
    text.append(printable(event.text, keep="").partition("\n")[0])
    text.truncate(width, overflow="ellipsis")
    return text
