"""Show when each worker of a study trained, and the share of its time in which it trained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import plotly.graph_objects as go

from hpo.analysis.snapshot import Snapshot
from hpo.console import format_duration
from hpo.report.style import BLUE, ORANGE, AnnotatedFigure, empty_figure
from hpo.storage.trials import State, Trial

Span = tuple[datetime, datetime]

MAX_BARS = 400
MAX_ROWS = 40
COLOURS = {State.COMPLETE: BLUE, State.PRUNED: "#9dbbdc", State.FAIL: ORANGE}
NAMES = {State.COMPLETE: "complete", State.PRUNED: "pruned", State.FAIL: "failed"}


@dataclass(frozen=True)
class WorkerTime:
    """The training time of one worker.

    name: host and process. trials: those that it ended. seconds: with at least one trial in training. share: of the
    time from its first trial to the end of the study.
    """

    name: str
    trials: Sequence[Trial]
    seconds: float
    share: float


def finished_trials(snapshot: Snapshot) -> list[Trial]:
    """Return the trials that workers of this study have started and ended."""
    return [t for t in snapshot.own if t.started and t.ended and t.user_attrs.get("worker")]


def worker_times(snapshot: Snapshot) -> list[WorkerTime]:
    """Return the workers in the order of their first trial."""
    by_worker: dict[str, list[Trial]] = {}
    for trial in sorted(finished_trials(snapshot), key=_start):
        by_worker.setdefault(str(trial.user_attrs["worker"]), []).append(trial)
    if not by_worker:
        return []
    end = max(_end(t) for trials in by_worker.values() for t in trials)
    workers = []
    for owner, trials in by_worker.items():
        busy = sum((b - a).total_seconds() for a, b in merged_spans([(_start(t), _end(t)) for t in trials]))
        total = (end - _start(trials[0])).total_seconds()
        workers.append(WorkerTime(owner.rpartition(":")[0] or owner, trials, busy, busy / total if total else 1.0))
    return workers


def _start(trial: Trial) -> datetime:
    assert trial.started
    return trial.started


def _end(trial: Trial) -> datetime:
    assert trial.ended
    return trial.ended


def merged_spans(spans: Iterable[Span], gap: timedelta = timedelta()) -> list[Span]:
    """Return the union of time spans; gaps up to `gap` are closed."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def timeline_figure(snapshot: Snapshot) -> AnnotatedFigure | None:
    """Draw when each worker trained, with a bar for each trial or, for many trials, for each span without a gap."""
    workers = worker_times(snapshot)
    if not workers:
        return None
    notes = []
    if len(shown := workers[:MAX_ROWS]) < len(workers):
        notes.append(f"The first {len(shown)} of {len(workers)} workers are drawn.")
    zero = min(_start(w.trials[0]) for w in workers)
    scale, name = (60.0, "minutes") if duration_s(snapshot) > 180 else (1.0, "seconds")
    figure = empty_figure(f"{name} since the start of the first trial", "", 110 + 34 * len(shown), barmode="overlay")
    if sum(len(w.trials) for w in shown) > MAX_BARS:
        notes.append("Consecutive trials are drawn as one bar.")
        gap = timedelta(seconds=duration_s(snapshot) / 400)
        spans = [
            Bar(row, start, end, "training")
            for row, worker in enumerate(shown)
            for start, end in merged_spans([(_start(t), _end(t)) for t in worker.trials], gap)
        ]
        figure.add_trace(_bars(spans, zero, scale, "training", BLUE))
    else:
        for state in COLOURS:
            if bars := _trial_bars(shown, state):
                figure.add_trace(_bars(bars, zero, scale, NAMES[state], COLOURS[state]))
    names = [f"worker {i + 1}" for i in range(len(shown))]
    figure.update_yaxes(tickvals=list(range(len(shown))), ticktext=names, range=[len(shown) - 0.4, -0.6])
    figure.update_xaxes(rangemode="tozero")
    return figure, notes


@dataclass(frozen=True)
class Bar:
    """A span of time in the row of a worker.

    lane: its position among the `lanes` trials that the worker trains together.
    """

    row: int
    start: datetime
    end: datetime
    name: str
    lane: int = 0
    lanes: int = 1


def _trial_bars(workers: Sequence[WorkerTime], state: State) -> list[Bar]:
    bars = []
    for row, worker in enumerate(workers):
        lanes = _lanes(worker.trials)
        n = 1 + max(lane for _, lane in lanes)
        trials = [(t, lane) for t, lane in lanes if t.state == state]
        bars += [Bar(row, _start(t), _end(t), f"trial {t.number}{_attempt(t)}", lane, n) for t, lane in trials]
    return bars


def _bars(bars: Sequence[Bar], zero: datetime, scale: float, name: str, colour: str) -> go.Bar:
    """Return bars as a Plotly trace; trials that one worker trains together are drawn one below the other."""
    return go.Bar(
        base=[(bar.start - zero).total_seconds() / scale for bar in bars],
        x=[(bar.end - bar.start).total_seconds() / scale for bar in bars],
        y=[bar.row - 0.4 + (bar.lane + 0.5) * 0.8 / bar.lanes for bar in bars],
        width=[0.72 / bar.lanes for bar in bars],
        orientation="h",
        name=name,
        marker={"color": colour, "line": {"width": 0.5 if len(bars) <= 100 else 0, "color": "white"}},
        text=[bar.name for bar in bars],
        textposition="none",
        hovertemplate="%{text}, %{x:.1f}<extra></extra>",
    )


def _attempt(trial: Trial) -> str:
    n = int(trial.user_attrs.get("attempt", 1))
    return f", attempt {n}" if n > 1 else ""


def _lanes(trials: Sequence[Trial]) -> list[tuple[Trial, int]]:
    """Return each trial with the first lane that is free when the trial starts."""
    free: list[datetime] = []
    lanes = []
    for trial in sorted(trials, key=_start):
        lane = next((i for i, until in enumerate(free) if until <= _start(trial)), len(free))
        free[lane : lane + 1] = [_end(trial)]
        lanes.append((trial, lane))
    return lanes


def worker_records(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return one row per worker for a table."""
    return [
        {
            "worker": i,
            "host:process": worker.name,
            "trials": len(worker.trials),
            "repeated attempts": sum(int(t.user_attrs.get("attempt", 1)) - 1 for t in worker.trials),
            "training time": format_duration(worker.seconds),
            "training share": f"{worker.share:.0%}",
        }
        for i, worker in enumerate(worker_times(snapshot), 1)
    ]


def duration_s(snapshot: Snapshot) -> float:
    """Return the seconds from the start of the first trial to the end of the last."""
    trials = finished_trials(snapshot)
    return (max(map(_end, trials)) - min(map(_start, trials))).total_seconds() if trials else 0.0
