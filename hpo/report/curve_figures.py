"""The figures of a study's course: curves, the best so far, what pruning saved, arms, importance."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpo.analysis.noise import Noise, expected_minimum
from hpo.analysis.snapshot import Snapshot
from hpo.evidence.paired import runs_by_arm
from hpo.report.axes import short
from hpo.report.style import (
    ARMS,
    BAND,
    BLUE,
    FAINT,
    INK,
    ORANGE,
    AnnotatedFigure,
    anchor_levels,
    draw_level,
    empty_figure,
    joined_curves,
    objective_label,
    run_axis,
    zoom,
)
from hpo.storage.trials import State, Trial

MOST_CURVES = 300
MOST_MARKS = 1_000
BEST_CURVES = 50  # of these


def curves_figure(snapshot: Snapshot, most: int = MOST_CURVES) -> AnnotatedFigure:
    """Draw the value of each trial along its run."""
    label, step = run_axis(snapshot)
    figure, told = empty_figure(label, objective_label(snapshot), 380), []
    begun = [t for t in snapshot.trials if t.last_step]
    shown = thinned(snapshot, begun, most)
    if len(shown) < len(begun):
        told.append(
            f"{len(shown):,} of {len(begun):,} curves are drawn: the best, the baseline, and every so many of the rest."
        )
    best, base, floor = snapshot.best(), snapshot.baseline(), snapshot.noise
    others = [t for t in shown if t not in (best, base)]
    if floor:
        _band(figure, floor, step)
    _draw(figure, [t for t in others if t.state != State.COMPLETE], step, "ended early", FAINT, 0.9, 0.55)
    _draw(figure, [t for t in others if t.state == State.COMPLETE], step, "complete", BLUE, 1.0, 0.55)
    _draw(figure, [t for t in (base,) if t], step, "baseline", INK, 2.2, 1.0)
    _draw(
        figure,
        [t for t in (best,) if t and t is not base],
        step,
        f"best: trial {best and best.number}",
        ORANGE,
        2.4,
        1.0,
    )
    for name, at in anchor_levels(snapshot).items():
        draw_level(at, name, figure)
    targets: Mapping[str, float] = snapshot.spec.get("targets") or {}
    for name, at in targets.items():
        draw_level(at, short(name), figure, ORANGE)
    values = [v for t in shown for v in t.intermediate_values.values()]
    return figure, told + zoom(figure, values, [*anchor_levels(snapshot).values(), *targets.values()])


def thinned(snapshot: Snapshot, begun: Sequence[Trial], most: int) -> list[Trial]:
    """Return so many trials at most: the best, the baseline's, and every so many of the rest."""
    if len(begun) <= most:
        return list(begun)
    best = sorted(snapshot.feasible, key=lambda t: t.values[0])[: min(BEST_CURVES, most // 2)]
    kept = {t.number for t in best} | {t.number for t in begun if t.user_attrs.get("kind") in ("baseline", "seed")}
    rest = [t for t in begun if t.number not in kept]
    kept |= {t.number for t in rest[:: -(-len(rest) // max(1, most - len(kept)))]}
    return [t for t in begun if t.number in kept]


def _draw(
    figure: go.Figure, trials: Sequence[Trial], step: float, name: str, colour: str, width: float, opacity: float
) -> None:
    if not trials:
        return
    found = joined_curves([(t, t.intermediate_values) for t in trials], step)
    figure.add_trace(
        go.Scatter(
            **found,
            name=name,
            mode="lines" if len(found["x"]) > 2 * len(trials) else "markers",
            connectgaps=False,
            opacity=opacity,
            line={"color": colour, "width": width},
            hovertemplate="%{text}: %{y:.4f}<extra></extra>",
        )
    )


def _band(figure: go.Figure, floor: Noise, step: float) -> None:
    """Draw two standard deviations either way of the baseline's mean."""
    rungs = sorted(floor.curve)
    upper = [floor.curve[r][0] + 2 * floor.curve[r][1] for r in rungs]
    lower = [floor.curve[r][0] - 2 * floor.curve[r][1] for r in rungs]
    _filled(figure, [r * step for r in rungs], lower, upper, f"baseline ± 2σ ({floor.n} seeds)", BAND)


def _filled(
    figure: go.Figure, x: Sequence[float], lower: Sequence[float], upper: Sequence[float], name: str | None, colour: str
) -> None:
    x, y = [*x, *reversed(x)], [*upper, *reversed(lower)]
    line = {"width": 0, "color": colour}
    shown = {"showlegend": name is not None, "name": name, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=x, y=y, fill="toself", fillcolor=colour, line=line, mode="lines", **shown))


def history_figure(snapshot: Snapshot, most: int = MOST_MARKS) -> AnnotatedFigure:
    """Draw the best value so far against what the whole study has trained, and what luck alone would have found."""
    figure = empty_figure(
        "tokens trained by all trials" if snapshot.rung_tokens else "rungs trained by all trials",
        objective_label(snapshot),
    )
    told, steps, floor = [], list(_steps(snapshot)), snapshot.noise
    shown = steps[-1 :: -(-(-len(steps) // most) or 1)][::-1]  # the last one is among them
    if len(shown) < len(steps):
        told.append(f"{len(shown):,} of {len(steps):,} trials are drawn.")
    _step(figure, shown, [s.value for s in shown], "a trial", {"color": BLUE, "size": 5, "opacity": 0.6}, None)
    _step(figure, shown, [s.best for s in shown], "best so far", None, {"color": ORANGE, "width": 2.2, "shape": "hv"})
    if floor:
        lucky = [expected_minimum(s.tried, floor.mean, floor.sigma) for s in shown]
        _step(
            figure, shown, lucky, "best that luck alone would find", None, {"color": INK, "width": 1.4, "dash": "dot"}
        )
    elif (base := snapshot.baseline()) is not None and base.state == State.COMPLETE:
        draw_level(base.values[0], "baseline", figure, INK)
    also = [floor.mean] if floor else []
    return figure, told + zoom(figure, [s.value for s in shown if s.value is not None], also)


@dataclass(frozen=True)
class _Step:
    """The end of a trial: what the study had trained by then, how many trials it had tried, and the best of them."""

    number: int
    spent: float
    tried: int
    value: float | None
    best: float | None


def _steps(snapshot: Snapshot) -> Iterator[_Step]:
    """Yield the ends of a study's trials in their order."""
    fits, spent, tried, best = {t.number for t in snapshot.feasible}, 0.0, 0, None
    for trial in sorted((t for t in snapshot.own if t.ended), key=lambda t: (t.ended, t.number)):
        spent += (trial.last_step or 0) * (snapshot.rung_tokens or 1.0)
        tried += snapshot.kind(trial) != "seed"
        value = trial.values[0] if trial.number in fits else None
        best = value if best is None else best if value is None else min(best, value)
        yield _Step(trial.number, spent, max(1, tried), value, best)


def _step(
    figure: go.Figure, steps: Sequence[_Step], y: Sequence[float | None], name: str,
    marker: Mapping[str, Any] | None, line: Mapping[str, Any] | None,
) -> None:  # fmt: skip
    how = {"mode": "markers", "marker": marker} if marker else {"mode": "lines", "line": line}
    told = [f"trial {step.number}" for step in steps]
    under = "%{text}: %{y:.4f}<extra></extra>"
    figure.add_trace(
        go.Scatter(x=[s.spent for s in steps], y=list(y), text=told, name=name, hovertemplate=under, **how)
    )


def pruning_figure(snapshot: Snapshot) -> AnnotatedFigure:
    """Draw how many trials came to each rung, and how many had been stopped before."""
    label, step = run_axis(snapshot)
    own = [t for t in snapshot.own if t.state in (State.COMPLETE, State.PRUNED)]
    rungs = range(1, snapshot.rungs + 1)
    reached = [sum((t.last_step or 0) >= rung for t in own) for rung in rungs]
    stopped = [sum(t.state == State.PRUNED and (t.last_step or 0) < rung for t in own) for rung in rungs]
    figure = empty_figure(label, "trials", 260, barmode="stack", bargap=0.25)
    x = [rung * step for rung in rungs]
    for name, y, colour in (("trained this stretch", reached, BLUE), ("stopped before", stopped, FAINT)):
        figure.add_trace(go.Bar(x=x, y=y, name=name, marker={"color": colour}, hovertemplate="%{y}<extra></extra>"))
    if len(x) <= 16:
        figure.update_xaxes(tickvals=x)
    return figure, []


def arms_figure(snapshot: Snapshot) -> AnnotatedFigure:
    """Draw the mean of each arm along the run, with one standard deviation either way, and its runs behind."""
    label, step = run_axis(snapshot)
    figure, told = empty_figure(label, objective_label(snapshot), 380), []
    found = runs_by_arm(snapshot)
    if len(found) > len(ARMS):
        told.append(f"{len(ARMS)} of {len(found)} arms are drawn: the first ones.")
    values: list[float] = []
    for (name, trials), colour in zip(found.items(), ARMS, strict=False):
        whole = [t.intermediate_values for t in trials.values() if t.state == State.COMPLETE]
        rungs = sorted(set.intersection(*map(set, whole))) if whole else []
        at = np.array([[curve[rung] for rung in rungs] for curve in whole])
        if not rungs:
            continue
        mean, sd, x = at.mean(0), at.std(0, ddof=1) if len(at) > 1 else np.zeros(len(rungs)), [r * step for r in rungs]
        values += at.ravel().tolist()
        _filled(figure, x, (mean - sd).tolist(), (mean + sd).tolist(), None, _clear(colour))
        title = f"{short(name, 40)} ({len(at)})"
        line = {"color": colour, "width": 2.2}
        y = [float(v) if np.isfinite(v) else None for v in mean]
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name=title, line=line, hovertemplate="%{y:.4f}"))
    for name, height in anchor_levels(snapshot).items():
        draw_level(height, name, figure)
    return figure, told + zoom(figure, values, list(anchor_levels(snapshot).values()))


def _clear(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.13)"
