"""Figures of the progress of a study: learning curves, the best value so far, pruning, and arms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpo.analysis.improvements import CLEAR_SIGMAS, improvements
from hpo.analysis.looks import runs_by_arm
from hpo.analysis.noise import Noise
from hpo.analysis.probes import probe_values
from hpo.analysis.progress import searched_trials
from hpo.analysis.snapshot import Snapshot
from hpo.report.axes import short
from hpo.report.style import (
    ARMS,
    BAND,
    BLUE,
    FAINT,
    GREEN,
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

MAX_CURVES = 300
MAX_MARKS = 1_000
MAX_BEST = 50  # best trials that are always drawn


def curves_figure(snapshot: Snapshot, max_curves: int = MAX_CURVES) -> AnnotatedFigure:
    """Draw the value of each trial along its run."""
    label, step = run_axis(snapshot)
    figure, notes = empty_figure(label, objective_label(snapshot), 380), []
    started = [t for t in snapshot.trials if t.last_step]
    shown = thinned(snapshot, started, max_curves)
    if len(shown) < len(started):
        selection = "the best trials, the baselines, and an even sample of the rest"
        notes.append(f"{len(shown):,} of {len(started):,} curves are drawn: {selection}.")
    best, base = snapshot.best(), snapshot.baseline()
    others = [t for t in shown if t not in (best, base)]
    if snapshot.noise:
        _draw_noise_band(figure, snapshot.noise, step)
    early = {"name": "ended early", "line": {"color": FAINT, "width": 0.9}, "opacity": 0.55}
    complete = {"name": "complete", "line": {"color": BLUE, "width": 1.0}, "opacity": 0.55}
    _draw_curves(figure, [t for t in others if t.state != State.COMPLETE], step, **early)
    _draw_curves(figure, [t for t in others if t.state == State.COMPLETE], step, **complete)
    _draw_curves(figure, [base] if base else [], step, name="baseline", line={"color": INK, "width": 2.2})
    if best is not None and best is not base:
        name = f"best: trial {best.number}"
        _draw_curves(figure, [best], step, name=name, line={"color": ORANGE, "width": 2.4})
    _draw_probes(figure, shown, step)
    anchors, targets = anchor_levels(snapshot), snapshot.spec.get("targets") or {}
    for name, level in anchors.items():
        draw_level(level, name, figure)
    for name, level in targets.items():
        draw_level(level, short(name), figure, ORANGE)
    values = [v for t in shown for v in t.intermediate_values.values()]
    return figure, notes + zoom(figure, values, [*anchors.values(), *targets.values()], direction=snapshot.direction)


def thinned(snapshot: Snapshot, trials: Sequence[Trial], most: int) -> list[Trial]:
    """Return at most `most` of these trials: the best, the baselines, and an even sample of the rest."""
    if len(trials) <= most:
        return list(trials)
    best = sorted(snapshot.feasible, key=snapshot.loss)[: min(MAX_BEST, most // 2)]
    numbers = {t.number for t in best} | {t.number for t in trials if t.user_attrs.get("kind") in ("baseline", "seed")}
    rest = [t for t in trials if t.number not in numbers]
    numbers |= {t.number for t in rest[:: -(-len(rest) // max(1, most - len(numbers)))]}
    return [t for t in trials if t.number in numbers]


def _draw_curves(figure: go.Figure, trials: Sequence[Trial], step: float, **style: Any) -> None:
    """Draw curves as one trace, as marks where most of them have one or two points; style: of the trace."""
    if not trials:
        return
    curves = joined_curves([(t, t.intermediate_values) for t in trials], step)
    mode = "lines" if len(curves["x"]) > 2 * len(trials) else "markers"
    hover = "%{text}: %{y:.4f}<extra></extra>"
    figure.add_trace(go.Scatter(**curves, mode=mode, connectgaps=False, hovertemplate=hover, **style))


def _draw_probes(figure: go.Figure, trials: Sequence[Trial], step: float) -> None:
    """Draw the values of the cool-down probes as marks."""
    probes = [(int(r) * step, v, t.number) for t in trials for r, v in probe_values(t).items() if v is not None]
    if not probes:
        return
    x, y, numbers = zip(*probes, strict=True)
    mark = {"symbol": "triangle-down", "size": 6, "color": GREEN, "opacity": 0.7}
    hover = "probe of trial %{text}: %{y:.4f}<extra></extra>"
    shown = {"mode": "markers", "name": "probes", "marker": mark, "text": numbers, "hovertemplate": hover}
    figure.add_trace(go.Scatter(x=x, y=y, **shown))


def _draw_noise_band(figure: go.Figure, floor: Noise, step: float) -> None:
    """Draw a band of two standard deviations on both sides of the baseline's mean."""
    rungs = sorted(floor.curve)
    upper = [floor.curve[r][0] + 2 * floor.curve[r][1] for r in rungs]
    lower = [floor.curve[r][0] - 2 * floor.curve[r][1] for r in rungs]
    _draw_band(figure, [r * step for r in rungs], (lower, upper), f"baseline ± 2σ ({floor.n} seeds)", BAND)


def _draw_band(
    figure: go.Figure, x: Sequence[float], ends: tuple[Sequence[float], Sequence[float]], name: str | None, colour: str
) -> None:
    """Fill the area between two curves; ends: the lower and the upper curve. name: None for no entry in the legend."""
    lower, upper = ends
    x, y = [*x, *reversed(x)], [*upper, *reversed(lower)]
    line = {"width": 0, "color": colour}
    shown = {"showlegend": name is not None, "name": name, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=x, y=y, fill="toself", fillcolor=colour, line=line, mode="lines", **shown))


def history_figure(snapshot: Snapshot, max_marks: int = MAX_MARKS) -> AnnotatedFigure:
    """Draw the best value so far against the training of the whole study, and what is expected by chance alone."""
    x_label = "tokens trained by all trials" if snapshot.rung_tokens else "rungs trained by all trials"
    figure = empty_figure(x_label, objective_label(snapshot))
    steps, floor, notes = list(study_progress(snapshot)), snapshot.noise, []
    shown = steps[-1 :: -(-(-len(steps) // max_marks) or 1)][::-1]  # always with the last step
    if len(shown) < len(steps):
        notes.append(f"{len(shown):,} of {len(steps):,} trials are drawn.")
    marker, best = {"color": BLUE, "size": 5, "opacity": 0.6}, {"color": ORANGE, "width": 2.2, "shape": "hv"}
    _draw_progress(figure, shown, [s.value for s in shown], "a trial", mode="markers", marker=marker)
    _draw_progress(figure, shown, [s.best for s in shown], "best so far", mode="lines", line=best)
    _draw_improvements(figure, snapshot, shown)
    if floor:
        luck = [floor.expected_best(max(1, s.searched)) for s in shown]
        line = {"color": INK, "width": 1.4, "dash": "dot"}
        _draw_progress(figure, shown, luck, "expected by chance alone", mode="lines", line=line)
    elif snapshot.baseline_value is not None:
        draw_level(snapshot.baseline_value, "baseline", figure, INK)
    values = [s.value for s in shown if s.value is not None]
    return figure, notes + zoom(figure, values, [floor.mean] if floor else [], direction=snapshot.direction)


def _draw_improvements(figure: go.Figure, snapshot: Snapshot, shown: Sequence["_Step"]) -> None:
    """Mark the improvements of the best, those below two sigma with a hollow circle."""
    steps = {step.trial: step for step in improvements(snapshot)}
    for name, small, fill in (("improvement", False, ORANGE), ("improvement below 2σ", True, "white")):
        marked = [(s, steps[s.number]) for s in shown if s.number in steps]
        marked = [(s, step) for s, step in marked if (step.sigmas < CLEAR_SIGMAS) == small]
        if marked:
            marker = {"color": fill, "size": 9, "line": {"color": ORANGE, "width": 1.8}}
            text = [f"trial {step.trial}, gain {step.gain:.4g} ({step.sigmas:.1f} σ)" for _, step in marked]
            x, y = [s.trained for s, _ in marked], [step.value for _, step in marked]
            hover = "%{text}: %{y:.4f}<extra></extra>"
            figure.add_trace(
                go.Scatter(x=x, y=y, text=text, name=name, mode="markers", marker=marker, hovertemplate=hover)
            )


@dataclass(frozen=True)
class _Step:
    """The state of a study when a trial ended.

    number: of the trial. trained: tokens, or rungs, trained by all trials. searched: the number of searched trials
    that had ended. value: of the trial, None if it is not complete. best: the best value so far.
    """

    number: int
    trained: float
    searched: int
    value: float | None
    best: float | None


def study_progress(snapshot: Snapshot) -> Iterator[_Step]:
    """Yield the state of a study at the end of each trial, in the order in which the trials ended."""
    feasible, searched = {t.number for t in snapshot.feasible}, {t.number for t in searched_trials(snapshot)}
    trained, n_searched, best = 0.0, 0, None
    for trial in sorted((t for t in snapshot.own if t.ended), key=lambda t: (t.ended, t.number)):
        trained += (trial.last_step or 0) * (snapshot.rung_tokens or 1.0)
        n_searched += trial.number in searched
        value = trial.values[0] if trial.number in feasible else None
        best = value if best is None else best if value is None else min(best, value, key=snapshot.direction.loss)
        yield _Step(trial.number, trained, n_searched, value, best)


def _draw_progress(
    figure: go.Figure, steps: Sequence[_Step], y: Sequence[float | None], name: str, **style: Any
) -> None:
    text, hover = [f"trial {step.number}" for step in steps], "%{text}: %{y:.4f}<extra></extra>"
    x = [step.trained for step in steps]
    figure.add_trace(go.Scatter(x=x, y=list(y), text=text, name=name, hovertemplate=hover, **style))


def pruning_figure(snapshot: Snapshot) -> AnnotatedFigure:
    """Draw how many trials reached each rung, and how many were pruned before it."""
    label, step = run_axis(snapshot)
    trials = [t for t in snapshot.own if t.state in (State.COMPLETE, State.PRUNED)]
    rungs = range(1, snapshot.rungs + 1)
    reached = [sum((t.last_step or 0) >= rung for t in trials) for rung in rungs]
    stopped = [sum(t.state == State.PRUNED and (t.last_step or 0) < rung for t in trials) for rung in rungs]
    figure = empty_figure(label, "trials", 260, barmode="stack", bargap=0.25)
    x = [rung * step for rung in rungs]
    for name, y, colour in (("trained", reached, BLUE), ("pruned before", stopped, FAINT)):
        figure.add_trace(go.Bar(x=x, y=y, name=name, marker={"color": colour}, hovertemplate="%{y}<extra></extra>"))
    if len(x) <= 16:
        figure.update_xaxes(tickvals=x)
    return figure, []


def arms_figure(snapshot: Snapshot) -> AnnotatedFigure:
    """Draw the mean of each arm along the run, with one standard deviation on both sides."""
    label, step = run_axis(snapshot)
    figure, notes = empty_figure(label, objective_label(snapshot), 380), []
    arms = runs_by_arm(snapshot)
    if len(arms) > len(ARMS):
        notes.append(f"The first {len(ARMS)} of {len(arms)} arms are drawn.")
    values: list[float] = []
    for (name, runs), colour in zip(arms.items(), ARMS, strict=False):
        curves = [t.intermediate_values for t in runs.values() if t.state == State.COMPLETE]
        rungs = sorted(set.intersection(*map(set, curves))) if curves else []
        if not rungs:
            continue
        at = np.array([[curve[rung] for rung in rungs] for curve in curves])  # (runs, rungs)
        values += at.ravel().tolist()
        title = f"{short(name, 40)} ({len(at)})"
        _draw_arm(figure, [rung * step for rung in rungs], at, title, colour)
    for name, level in anchor_levels(snapshot).items():
        draw_level(level, name, figure)
    return figure, notes + zoom(figure, values, list(anchor_levels(snapshot).values()), direction=snapshot.direction)


def _draw_arm(figure: go.Figure, x: Sequence[float], at: np.ndarray, title: str, colour: str) -> None:
    """Draw mean and standard deviation of the runs of an arm; at: (runs, rungs) values."""
    mean, sd = at.mean(0), at.std(0, ddof=1) if len(at) > 1 else np.zeros(at.shape[1])
    _draw_band(figure, x, ((mean - sd).tolist(), (mean + sd).tolist()), None, _transparent(colour))
    y, line = [float(v) if np.isfinite(v) else None for v in mean], {"color": colour, "width": 2.2}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name=title, line=line, hovertemplate="%{y:.4f}"))


def _transparent(colour: str) -> str:
    """Return a colour such as #1d5fa8 with an opacity of 0.13."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.13)"
