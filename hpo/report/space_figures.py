"""The figures of the searched space: importance, slices, contours of pairs, what the learning rate does."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpo.analysis.snapshot import Snapshot, trial_value
from hpo.report.axes import Axis, axes, short
from hpo.report.curve_figures import MOST_MARKS, thinned
from hpo.report.importance import Importance, Point, points_at_rung, varied_trials
from hpo.report.style import (
    ARMS,
    BLUE,
    FAINT,
    GRID,
    INK,
    ORANGE,
    SHADES,
    AnnotatedFigure,
    draw_level,
    empty_figure,
    objective_label,
    run_axis,
    zoom,
)
from hpo.runs.run_dir import read_metrics as records
from hpo.runs.run_dir import trial_folder
from hpo.storage.trials import State, Trial

ROWS = 3  # of slices in one figure, which must fit on a page
MOST_SLICES = 12
GRID_POINTS = 40
FEWEST = 8  # trials without which no surface is drawn


def slice_figures(snapshot: Snapshot, paths: Sequence[str]) -> list[AnnotatedFigure]:
    """Draw the result of each trial against each of these hyperparameters, six to a figure."""
    of_axes = axes(snapshot)
    wanted = [path for path in paths if path in of_axes][:MOST_SLICES]
    return [
        _slices(snapshot, [of_axes[path] for path in wanted[i : i + 2 * ROWS]]) for i in range(0, len(wanted), 2 * ROWS)
    ]


def _slices(snapshot: Snapshot, some: Sequence[Axis]) -> AnnotatedFigure:
    n = math.ceil(len(some) / 2)
    height = 60 + 210 * n
    figure = make_subplots(rows=n, cols=2, shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=62 / height)
    figure.update_layout(empty_figure("", "", height).layout)
    seen: list[float] = []
    for i, axis in enumerate(some):
        where: dict[str, Any] = {"row": i // 2 + 1, "col": i % 2 + 1}
        seen += _slice(snapshot, figure, axis, where, legend=i == 0)
        at, text = axis.ticks()
        title = {"text": axis.label + axis.scale(), "standoff": 4}
        figure.update_xaxes(title=title, tickvals=at, ticktext=text, range=[-0.06, 1.06], **where)
        figure.update_yaxes(title={"text": objective_label(snapshot) if i % 2 == 0 else ""}, **where)
    style = {"gridcolor": GRID, "zeroline": False, "showline": True, "linecolor": INK, "ticks": "outside"}
    figure.update_xaxes(**style)
    figure.update_yaxes(**style, matches="y")
    few = [f"{MOST_MARKS:,} trials are drawn: the best, and every so many of the rest."]
    return figure, (few if len(varied_trials(snapshot)) > MOST_MARKS else []) + zoom(
        figure, [*seen, *_early(snapshot)], results=seen
    )


def _early(snapshot: Snapshot) -> list[float]:
    return [v for t in varied_trials(snapshot) if t.state != State.COMPLETE and (v := trial_value(t)) is not None]


def _slice(snapshot: Snapshot, figure: go.Figure, axis: Axis, where: Mapping[str, Any], legend: bool) -> list[float]:
    """Draw the trials along one axis, those that ended early behind; return the values of the others."""
    trials = [
        t
        for t in thinned(snapshot, varied_trials(snapshot), MOST_MARKS)
        if axis.path in t.params and trial_value(t) is not None
    ]
    best = snapshot.best()
    groups = (
        ("ended early, last value", [t for t in trials if t.state != State.COMPLETE], FAINT, "circle-open", 5),
        ("complete", [t for t in trials if t.state == State.COMPLETE and t is not best], BLUE, "circle", 5),
        ("best", [t for t in trials if t is best], ORANGE, "circle", 9),
    )
    for name, members, colour, symbol, size in groups:
        marker = {"color": colour, "symbol": symbol, "size": size, "opacity": 0.8}
        told = [f"trial {t.number}: {_word(t.params[axis.path])}" for t in members]
        x, y = [axis.unit(t.params[axis.path]) + _aside(axis, t) for t in members], [trial_value(t) for t in members]
        shown = {"name": name, "legendgroup": name, "showlegend": legend and bool(members)}
        under = "%{text}, %{y:.4f}<extra></extra>"
        marks = go.Scatter(x=x, y=y, text=told, mode="markers", marker=marker, hovertemplate=under, **shown)
        figure.add_trace(marks, **where)
    complete = [t for t in trials if t.state == State.COMPLETE]
    return [float(v) for t in complete if (v := trial_value(t)) is not None]


def _aside(axis: Axis, trial: Trial) -> float:
    """Return how far to move a mark along a list of choices, so that marks of one choice do not hide one another."""
    return 0.08 * (trial.number * 0.618 % 1 - 0.5) if axis.discrete else 0.0


def _word(found: Any) -> str:
    return f"{found:.4g}" if isinstance(found, float) else short(str(found), 60)


def contour_figures(snapshot: Snapshot, paths: Sequence[str], rung: int) -> list[AnnotatedFigure]:
    """Draw the value at a rung over each pair of the first three hyperparameters, as far as there are trials enough."""
    of_axes = axes(snapshot)
    found = points_at_rung(snapshot, rung)
    pairs = [(a, b) for i, a in enumerate(paths[:3]) for b in paths[i + 1 : 3]]
    drawn = [
        _contour(snapshot, of_axes[a], of_axes[b], [p for p in found if a in p.place and b in p.place])
        for a, b in pairs
    ]
    return [one for one in drawn if one is not None]


def _contour(snapshot: Snapshot, one: Axis, other: Axis, found: Sequence[Point]) -> AnnotatedFigure | None:
    if len(found) < FEWEST:
        return None
    at = np.array([[p.place[one.path], p.place[other.path]] for p in found])
    values = np.array([p.value for p in found])
    top = float(np.quantile(values, 0.9))
    values = np.minimum(values, top)
    every = -(-len(found) // MOST_MARKS)
    figure = empty_figure(one.label + one.scale(), other.label + other.scale(), 360)
    scale = {"colorscale": SHADES, "zmin": float(values.min()), "zmax": top}
    surface = _surface(at, values)
    bar = {"title": {"text": objective_label(snapshot), "side": "right"}, "thickness": 12, "outlinewidth": 0}
    if surface is not None:
        side = np.linspace(0, 1, GRID_POINTS).tolist()
        z = [[None if math.isnan(v) else float(v) for v in row] for row in surface]
        shape = {"contours": {"coloring": "fill", "showlines": False}, "ncontours": 16, "colorbar": bar, **scale}
        figure.add_trace(go.Contour(x=side, y=side, z=z, hoverinfo="skip", connectgaps=False, opacity=0.9, **shape))
    marker = {"color": values[::every].tolist(), "colorscale": SHADES, "cmin": scale["zmin"], "cmax": top, "size": 8}
    marker |= {"line": {"width": 1, "color": "white"}, "showscale": surface is None, "colorbar": bar}
    under = {"text": [f"{p.value:.4f}" for p in found[::every]], "hovertemplate": "%{text}<extra></extra>"}
    marks = go.Scatter(
        x=at[::every, 0].tolist(), y=at[::every, 1].tolist(), mode="markers", marker=marker, showlegend=False, **under
    )
    figure.add_trace(marks)
    for axis, update in ((one, figure.update_xaxes), (other, figure.update_yaxes)):
        places, text = axis.ticks()
        update(tickvals=places, ticktext=text, range=[-0.04, 1.04])
    return figure, []


def _surface(at: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Return values between the trials, None where these lie on one line."""
    from scipy.interpolate import griddata
    from scipy.spatial import QhullError

    side = np.linspace(0, 1, GRID_POINTS)
    x, y = np.meshgrid(side, side)
    try:
        found: np.ndarray = griddata(at, values, (x, y), method="linear")
    except QhullError:
        return None
    return found


def lr_path(snapshot: Snapshot) -> str | None:
    """Return the learning rate among the hyperparameters."""
    return next((path for path in axes(snapshot) if path.rpartition(".")[2] in ("lr", "learning_rate")), None)


def lr_figure(snapshot: Snapshot, paths: Sequence[str]) -> AnnotatedFigure | None:
    """Draw the result against the learning rate, coloured by the most important other hyperparameter."""
    of_axes, path = axes(snapshot), lr_path(snapshot)
    found = [
        t
        for t in thinned(snapshot, varied_trials(snapshot), MOST_MARKS)
        if path in t.params and t.state == State.COMPLETE and t.values
    ]
    if path is None or not found:
        return None
    other = next((of_axes[p] for p in paths if p != path and any(p in t.params for t in found)), None)
    lr = of_axes[path]
    figure = empty_figure(lr.label + lr.scale(), objective_label(snapshot), 360)
    marker: dict[str, Any] = {"size": 8, "color": BLUE, "line": {"width": 0.5, "color": "white"}}
    if other is not None:
        found = [t for t in found if other.path in t.params]
        at, text = other.ticks()
        bar = {"title": {"text": other.label, "side": "right"}, "tickvals": at, "ticktext": text, "thickness": 12}
        marker |= {"color": [other.unit(t.params[other.path]) for t in found], "cmin": 0, "cmax": 1}
        marker |= {"colorscale": SHADES, "showscale": True, "colorbar": bar | {"outlinewidth": 0}}
    told = [f"trial {t.number}: {_word(t.params[path])}" for t in found]
    x, y = [lr.unit(t.params[path]) for t in found], [t.values[0] for t in found]
    under = "%{text}, %{y:.4f}<extra></extra>"
    figure.add_trace(
        go.Scatter(x=x, y=y, text=told, mode="markers", marker=marker, showlegend=False, hovertemplate=under)
    )
    if (base := snapshot.baseline()) is not None and base.state == State.COMPLETE:
        draw_level(base.values[0], "baseline", figure, INK)
    at, text = lr.ticks()
    figure.update_xaxes(tickvals=at, ticktext=text, range=[-0.04, 1.04])
    return figure, zoom(figure, y)


def schedule_figure(snapshot: Snapshot, out: Path) -> AnnotatedFigure | None:
    """Draw the learning rate along the best run, at its rungs, where the run's files are on this machine."""
    best = snapshot.best()
    found = [] if best is None else list(records(trial_folder(out, snapshot.name, best.number) / "metrics.jsonl"))
    found = [m for m in found if isinstance(m.get("lr"), int | float) and "rung" in m]
    if len(found) < 2:
        return None
    by_tokens = all("tokens" in m for m in found)
    figure = empty_figure("tokens of the run" if by_tokens else "rung", "learning rate", 240)
    x, y = [m["tokens" if by_tokens else "rung"] for m in found], [m["lr"] for m in found]
    line = {"color": ORANGE, "width": 2}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", line=line, showlegend=False))
    figure.update_yaxes(rangemode="tozero", exponentformat="power")
    return figure, []


def importance_figure(found: Sequence[Importance]) -> go.Figure:
    """Draw each hyperparameter's importance, and what one without effect would seldom exceed."""
    shown = list(reversed(found[:20]))
    figure = empty_figure("share of the importance of all", "", 90 + 26 * len(shown), bargap=0.35, barmode="overlay")
    y, x = [short(w.path, 32) for w in shown], [w.share for w in shown]
    clear = [BLUE if w.chance is None or w.share > w.chance else FAINT for w in shown]
    figure.add_trace(
        go.Bar(
            x=x,
            y=y,
            orientation="h",
            marker={"color": clear},
            showlegend=False,
            hovertemplate="%{x:.0%}<extra></extra>",
        )
    )
    mark = {"symbol": "line-ns", "size": 16, "line": {"width": 2.2, "color": INK}}
    chance = [w.chance for w in shown]
    figure.add_trace(
        go.Scatter(
            x=chance,
            y=y,
            mode="markers",
            marker=mark,
            name="a hyperparameter without effect reaches this one time in 20",
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    return figure


def importance_by_rung_figure(snapshot: Snapshot, found: Mapping[int, Sequence[Importance]]) -> go.Figure:
    """Draw how the shares change along the runs, those of the most important hyperparameters."""
    label, step = run_axis(snapshot)
    figure = empty_figure(label, "share of the importance of all", 300)
    order: dict[str, float] = {}
    for weights in found.values():
        for weight in weights:
            order[weight.path] = max(order.get(weight.path, 0.0), weight.share)
    paths = sorted(order, key=lambda path: -order[path])[: len(ARMS)]
    for path, colour in zip(paths, ARMS, strict=False):
        told = {rung: w.share for rung, weights in found.items() for w in weights if w.path == path}
        x = [rung * step for rung in told]
        line = {"color": colour, "width": 2}
        figure.add_trace(go.Scatter(x=x, y=list(told.values()), mode="lines+markers", name=short(path, 32), line=line))
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure
