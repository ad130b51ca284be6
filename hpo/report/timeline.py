"""Who worked when: the workers of a study, their shares of the work, and the figure of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import plotly.graph_objects as go

from hpo.analysis.snapshot import Snapshot
from hpo.console import clock
from hpo.report.style import BLUE, ORANGE, AnnotatedFigure, empty_figure
from hpo.storage.trials import State, Trial

Span = tuple[datetime, datetime]

MOST_BARS = 400
MOST_ROWS = 40
COLOURS = {State.COMPLETE: BLUE, State.PRUNED: "#9dbbdc", State.FAIL: ORANGE}
NAMES = {State.COMPLETE: "complete", State.PRUNED: "pruned", State.FAIL: "failed"}


@dataclass(frozen=True)
class WorkerTime:
    """One worker: where it ran, the trials that it ended, and the seconds in which it trained one at least.

    share: of the time from its first trial to the end of the study.
    """

    name: str
    trials: Sequence[Trial]
    seconds: float
    share: float


def finished_trials(snapshot: Snapshot) -> list[Trial]:
    """Return the study's own trials that have begun and ended."""
    return [t for t in snapshot.own if t.started and t.ended and t.user_attrs.get("worker")]


def worker_times(snapshot: Snapshot) -> list[WorkerTime]:
    """Return the workers in the order of their first trial."""
    found: dict[str, list[Trial]] = {}
    for trial in sorted(finished_trials(snapshot), key=_begin):
        found.setdefault(str(trial.user_attrs["worker"]), []).append(trial)
    if not found:
        return []
    end = max(_end(t) for trials in found.values() for t in trials)
    told = []
    for owner, trials in found.items():
        busy = sum((b - a).total_seconds() for a, b in merged_spans([(_begin(t), _end(t)) for t in trials]))
        whole = (end - _begin(trials[0])).total_seconds()
        told.append(WorkerTime(owner.rpartition(":")[0] or owner, trials, busy, busy / whole if whole else 1.0))
    return told


def _begin(trial: Trial) -> datetime:
    assert trial.started
    return trial.started


def _end(trial: Trial) -> datetime:
    assert trial.ended
    return trial.ended


def merged_spans(spans: Iterable[Span], gap: timedelta = timedelta()) -> list[Span]:
    """Return the stretches of time that these cover together, gaps up to that long closed."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1] + gap:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def timeline_figure(snapshot: Snapshot) -> AnnotatedFigure | None:
    """Draw when each worker trained: each trial as a bar, or of many trials the stretches that they fill."""
    workers = worker_times(snapshot)
    if not workers:
        return None
    told = []
    if len(shown := workers[:MOST_ROWS]) < len(workers):
        told.append(f"{len(shown)} of {len(workers)} workers are drawn: the first ones.")
    zero = min(_begin(w.trials[0]) for w in workers)
    scale, name = (60.0, "minutes") if duration_s(snapshot) > 180 else (1.0, "seconds")
    figure = empty_figure(f"{name} since the first trial began", "", 110 + 34 * len(shown), barmode="overlay")
    if sum(len(w.trials) for w in shown) > MOST_BARS:
        told.append("Trials that follow one another are drawn as one bar.")
        gap = timedelta(seconds=duration_s(snapshot) / 400)
        stretches = [
            Bar(row, begin, end, "training")
            for row, worker in enumerate(shown)
            for begin, end in merged_spans([(_begin(t), _end(t)) for t in worker.trials], gap)
        ]
        figure.add_trace(_bars(stretches, zero, scale, "training", BLUE))
    else:
        bars = {state: _of_trials(shown, state) for state in COLOURS}
        for state, mine in bars.items():
            if mine:
                figure.add_trace(_bars(mine, zero, scale, NAMES[state], COLOURS[state]))
    names = [f"worker {i + 1}" for i in range(len(shown))]
    figure.update_yaxes(tickvals=list(range(len(shown))), ticktext=names, range=[len(shown) - 0.4, -0.6])
    figure.update_xaxes(rangemode="tozero")
    return figure, told


@dataclass(frozen=True)
class Bar:
    """A stretch of time in the row of a worker; lane, of lanes: its place among those that it trained side by side."""

    row: int
    begin: datetime
    end: datetime
    name: str
    lane: int = 0
    lanes: int = 1


def _of_trials(shown: Sequence[WorkerTime], state: State) -> list[Bar]:
    found = []
    for row, worker in enumerate(shown):
        placed = _lanes(worker.trials)
        lanes = 1 + max(lane for _, lane in placed)
        mine = [(t, lane) for t, lane in placed if t.state == state]
        found += [Bar(row, _begin(t), _end(t), f"trial {t.number}{_again(t)}", lane, lanes) for t, lane in mine]
    return found


def _bars(bars: Sequence[Bar], zero: datetime, scale: float, name: str, colour: str) -> go.Bar:
    """Return bars as plotly draws them; those that one worker trained side by side lie one below the other."""
    return go.Bar(
        base=[(bar.begin - zero).total_seconds() / scale for bar in bars],
        x=[(bar.end - bar.begin).total_seconds() / scale for bar in bars],
        y=[bar.row - 0.4 + (bar.lane + 0.5) * 0.8 / bar.lanes for bar in bars],
        width=[0.72 / bar.lanes for bar in bars],
        orientation="h",
        name=name,
        marker={"color": colour, "line": {"width": 0.5 if len(bars) <= 100 else 0, "color": "white"}},
        text=[bar.name for bar in bars],
        textposition="none",
        hovertemplate="%{text}, %{x:.1f}<extra></extra>",
    )


def _again(trial: Trial) -> str:
    n = int(trial.user_attrs.get("attempt", 1))
    return f", attempt {n}" if n > 1 else ""


def _lanes(trials: Sequence[Trial]) -> list[tuple[Trial, int]]:
    """Return each trial with the first lane that is free when it begins."""
    free: list[datetime] = []
    found = []
    for trial in sorted(trials, key=_begin):
        lane = next((i for i, until in enumerate(free) if until <= _begin(trial)), len(free))
        free[lane : lane + 1] = [_end(trial)]
        found.append((trial, lane))
    return found


def worker_records(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return a record a worker."""
    return [
        {
            "worker": i,
            "ran on (host:process)": work.name,
            "trials": len(work.trials),
            "attempts after the first": sum(int(t.user_attrs.get("attempt", 1)) - 1 for t in work.trials),
            "time in training": clock(work.seconds),
            "share of its time": f"{work.share:.0%}",
        }
        for i, work in enumerate(worker_times(snapshot), 1)
    ]


def duration_s(snapshot: Snapshot) -> float:
    """Return the seconds from the beginning of the first trial to the end of the last."""
    found = finished_trials(snapshot)
    return (max(map(_end, found)) - min(map(_begin, found))).total_seconds() if found else 0.0
