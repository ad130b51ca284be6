"""Figures of the search space: slices along each hyperparameter and contours over pairs of hyperparameters."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpo.analysis.snapshot import Snapshot, trial_value
from hpo.report.axes import Axis, axes, value_text
from hpo.report.curve_figures import MAX_MARKS, thinned
from hpo.report.importance import Point, points_at_rung, varied_trials
from hpo.report.style import (
    BLUE,
    FAINT,
    GRID,
    INK,
    ORANGE,
    AnnotatedFigure,
    empty_figure,
    objective_label,
    shades_from_best,
    zoom,
)
from hpo.storage.trials import State, Trial

MAX_ROWS = 3  # of slices in one figure, which must fit on a page
MAX_SLICES = 12
N_GRID = 40  # points of the interpolated surface along each axis
MIN_POINTS = 8  # points that a surface needs
MAX_CONTOUR_FIELDS = 3  # the most important hyperparameters, each pair of which gets a figure


def slice_figures(snapshot: Snapshot, paths: Sequence[str]) -> list[AnnotatedFigure]:
    """Draw the value of each trial against each of these hyperparameters, six hyperparameters in a figure."""
    of_axes = axes(snapshot)
    drawn = [of_axes[path] for path in paths if path in of_axes][:MAX_SLICES]
    return [_slice_figure(snapshot, drawn[i : i + 2 * MAX_ROWS]) for i in range(0, len(drawn), 2 * MAX_ROWS)]


def _slice_figure(snapshot: Snapshot, of_axes: Sequence[Axis]) -> AnnotatedFigure:
    n = math.ceil(len(of_axes) / 2)
    height = 60 + 210 * n
    figure = make_subplots(rows=n, cols=2, shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=62 / height)
    figure.update_layout(empty_figure("", "", height).layout)
    trials = [t for t in varied_trials(snapshot) if trial_value(t) is not None]
    shown = thinned(snapshot, trials, MAX_MARKS)
    for i, axis in enumerate(of_axes):
        cell: dict[str, Any] = {"row": i // 2 + 1, "col": i % 2 + 1}
        _draw_slice(figure, axis, _groups(snapshot, [t for t in shown if axis.path in t.params]), cell, legend=i == 0)
        ticks, labels = axis.ticks()
        title = {"text": axis.label + axis.scale(), "standoff": 4}
        figure.update_xaxes(title=title, tickvals=ticks, ticktext=labels, range=[-0.06, 1.06], **cell)
        figure.update_yaxes(title={"text": objective_label(snapshot) if i % 2 == 0 else ""}, **cell)
    style = {"gridcolor": GRID, "zeroline": False, "showline": True, "linecolor": INK, "ticks": "outside"}
    figure.update_xaxes(**style)
    figure.update_yaxes(**style, matches="y")
    notes = [f"{len(shown):,} of {len(trials):,} trials are drawn."] if len(shown) < len(trials) else []
    paths = {axis.path for axis in of_axes}
    results = [t.values[0] for t in shown if t.state == State.COMPLETE and t.values and paths & set(t.params)]
    early = [v for t in trials if t.state != State.COMPLETE and (v := trial_value(t)) is not None]
    return figure, notes + zoom(figure, [*results, *early], results=results, direction=snapshot.direction)


Group = tuple[str, Sequence[Trial], str, str, int]  # name, trials, colour, symbol, size


def _groups(snapshot: Snapshot, trials: Sequence[Trial]) -> list[Group]:
    """Return the trials as they are drawn, those that ended early first and so behind the others."""
    best = snapshot.best()
    return [
        ("ended early, last value", [t for t in trials if t.state != State.COMPLETE], FAINT, "circle-open", 5),
        ("complete", [t for t in trials if t.state == State.COMPLETE and t is not best], BLUE, "circle", 5),
        ("best", [t for t in trials if t is best], ORANGE, "circle", 9),
    ]


def _draw_slice(figure: go.Figure, axis: Axis, groups: Sequence[Group], cell: Mapping[str, Any], legend: bool) -> None:
    for name, trials, colour, symbol, size in groups:
        marker = {"color": colour, "symbol": symbol, "size": size, "opacity": 0.8}
        text = [f"trial {t.number}: {value_text(t.params[axis.path])}" for t in trials]
        x, y = [axis.unit(t.params[axis.path]) + _jitter(axis, t) for t in trials], [trial_value(t) for t in trials]
        shown = {"name": name, "legendgroup": name, "showlegend": legend and bool(trials)}
        hover = "%{text}, %{y:.4f}<extra></extra>"
        marks = go.Scatter(x=x, y=y, text=text, mode="markers", marker=marker, hovertemplate=hover, **shown)
        figure.add_trace(marks, **cell)


def _jitter(axis: Axis, trial: Trial) -> float:
    """Return how far to move a mark sideways, so that trials with the same choice do not hide each other."""
    return 0.08 * (trial.number * 0.618 % 1 - 0.5) if axis.discrete else 0.0


def contour_figures(snapshot: Snapshot, paths: Sequence[str], rung: int) -> list[AnnotatedFigure]:
    """Draw the value at a rung over each pair of the first three hyperparameters that have enough trials."""
    of_axes, points = axes(snapshot), points_at_rung(snapshot, rung)
    figures = []
    for a, b in combinations(paths[:MAX_CONTOUR_FIELDS], 2):
        both = [p for p in points if a in p.position and b in p.position]
        if len(both) >= MIN_POINTS:
            figures.append(_contour_figure(snapshot, of_axes[a], of_axes[b], both))
    return figures


def _contour_figure(snapshot: Snapshot, x_axis: Axis, y_axis: Axis, points: Sequence[Point]) -> AnnotatedFigure:
    """Draw values, clipped at the worst tenth. Dark is better."""
    loss = snapshot.direction.loss
    at = np.array([[p.position[x_axis.path], p.position[y_axis.path]] for p in points])  # (points, 2)
    losses = np.array([p.loss for p in points])
    losses = np.minimum(losses, float(np.quantile(losses, 0.9)))
    values, shades = np.vectorize(loss)(losses), shades_from_best(snapshot.direction)
    low, top = float(values.min()), float(values.max())
    figure = empty_figure(x_axis.label + x_axis.scale(), y_axis.label + y_axis.scale(), 265)
    bar = {"title": {"text": objective_label(snapshot), "side": "right"}, "thickness": 12, "outlinewidth": 0}
    surface = _surface(at, values)
    if surface is not None:
        side = np.linspace(0, 1, N_GRID).tolist()
        z = [[None if math.isnan(v) else float(v) for v in row] for row in surface]
        style = {"contours": {"coloring": "fill", "showlines": False}, "ncontours": 16, "colorbar": bar}
        style |= {"colorscale": shades, "zmin": low, "zmax": top, "hoverinfo": "skip", "opacity": 0.9}
        figure.add_trace(go.Contour(x=side, y=side, z=z, connectgaps=False, **style))
    step = -(-len(points) // MAX_MARKS)
    marker = {"color": values[::step].tolist(), "colorscale": shades, "cmin": low, "cmax": top, "size": 8}
    marker |= {"line": {"width": 1, "color": "white"}, "showscale": surface is None, "colorbar": bar}
    shown = {"text": [f"{loss(p.loss):.4f}" for p in points[::step]], "hovertemplate": "%{text}<extra></extra>"}
    x, y = at[::step, 0].tolist(), at[::step, 1].tolist()
    figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marker, showlegend=False, **shown))
    for axis, update in ((x_axis, figure.update_xaxes), (y_axis, figure.update_yaxes)):
        ticks, labels = axis.ticks()
        update(tickvals=ticks, ticktext=labels, range=[-0.04, 1.04])
    return figure, []


def _surface(at: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Return values on a grid, linearly interpolated between the points, None where all points are on one line.

    at: (points, 2) positions in [0, 1]. values: (points,). Returns (N_GRID, N_GRID), not a number outside the points.
    """
    from scipy.interpolate import griddata
    from scipy.spatial import QhullError

    side = np.linspace(0, 1, N_GRID)
    x, y = np.meshgrid(side, side)
    try:
        surface: np.ndarray = griddata(at, values, (x, y), method="linear")
    except QhullError:
        return None
    return surface
