"""Figures of a ladder: the bowls of its cells, and the law of the optimum with its band."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from hpo.analysis.snapshot import Snapshot
from hpo.report.style import ARMS, BAND, BLUE, INK, ORANGE, AnnotatedFigure, empty_figure, objective_label, zoom
from hpo.transfer.fields import Axis
from hpo.transfer.fit import LEVEL, Surface
from hpo.transfer.ladder import Ladder
from hpo.transfer.laws import excess, minimum, optimum
from hpo.transfer.prediction import Prediction
from hpo.transfer.scale import scale_of

POINTS = 60  # of a curve


def cell_name(ladder: Ladder, cell: Sequence[object]) -> str:
    """Return the fields of a cell as text, such as tokens 8,000, n_embd 16."""
    fields = zip(ladder.cell_fields, cell, strict=True)
    return ", ".join(f"{path.rpartition('.')[2]} {value:,}" for path, value in fields)


def bowls_figure(snapshot: Snapshot, ladder: Ladder, surface: Surface, i: int) -> AnnotatedFigure:
    """Draw the loss of each run against one field, with the fitted bowl of each cell; i: index of the field."""
    axis = ladder.axes[i]
    figure = empty_figure(axis.path + (" (log scale)" if axis.scale == "log" else ""), objective_label(snapshot))
    drawn: list[float] = []
    for k, cell in enumerate(ladder.cells):
        runs = [run for run in ladder.runs if run.cell == cell]
        colour, name = ARMS[k % len(ARMS)], cell_name(ladder, cell)
        values = [run.values[axis.path] for run in runs]
        losses = [snapshot.direction.loss(run.loss) for run in runs]
        marker = {"color": colour, "size": 7}
        figure.add_trace(go.Scatter(x=values, y=losses, mode="markers", name=name, legendgroup=name, marker=marker))
        x, y = _bowl(ladder, surface, i, k)
        line = {"color": colour, "width": 1.5}
        y = [snapshot.direction.loss(value) for value in y]
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", legendgroup=name, showlegend=False, line=line))
        drawn += [*losses, *y]
    if axis.scale == "log":
        figure.update_xaxes(type="log")
    return figure, zoom(figure, drawn, direction=snapshot.direction)


def _bowl(ladder: Ladder, surface: Surface, i: int, k: int) -> tuple[list[float], list[float]]:
    """Return values of a field and the fitted loss, with all other fields at the optimum of the cell."""
    axis, layout = ladder.axes[i], surface.layout
    s = np.array([scale_of(ladder.at(ladder.cells[k]))])
    points = np.repeat(optimum(layout, surface.p, s)[0], POINTS, 0)
    points[:, i] = np.linspace(axis.coordinate(axis.low), axis.coordinate(axis.high), POINTS)
    level = minimum(layout, surface.p, s)[0, 0] + layout.parts(surface.p)["deviations"][0, k]
    losses = level + excess(layout, surface.p, points, np.repeat(s, POINTS, 0))[0]
    return [_exact(axis, x) for x in points[:, i]], losses.tolist()


def _exact(axis: Axis, coordinate: float) -> float:
    """Return the value at a coordinate without rounding it to a whole number."""
    return float(np.exp(coordinate)) if axis.scale == "log" else float(axis.value(coordinate))


def law_figure(ladder: Ladder, surface: Surface, prediction: Prediction, i: int) -> AnnotatedFigure:
    """Draw the optimum of one field over tokens at the target's size, with its band, and the optimum of each cell."""
    axis, layout = ladder.axes[i], surface.layout
    goal = ladder.study.configured({k: v for k, v in prediction.copied.items() if k in ladder.cell_fields})
    log_tokens, log_size = scale_of(goal)
    lengths = [scale_of(ladder.at(cell))[0] for cell in ladder.cells]
    grid = np.linspace(min(lengths), log_tokens, POINTS)
    s = np.column_stack([grid, np.full(POINTS, log_size)])
    draws = optimum(layout, surface.draws, s)[:, :, i]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    middle = np.median(draws, axis=0)
    tokens = np.exp(grid)
    figure = empty_figure("tokens of the run", axis.path)
    ends = [_exact(axis, c) for c in (*high, *low[::-1])]
    outline = {"x": [*tokens, *tokens[::-1]], "y": ends, "fill": "toself", "fillcolor": BAND, "line": {"width": 0}}
    figure.add_trace(go.Scatter(**outline, mode="lines", name=f"{LEVEL:.0%} interval", hoverinfo="skip"))
    line = {"color": BLUE, "width": 2}
    law = [_exact(axis, c) for c in middle]
    figure.add_trace(go.Scatter(x=tokens, y=law, mode="lines", name="optimum at the target's size", line=line))
    places = optimum(layout, surface.p, np.array([scale_of(ladder.at(cell)) for cell in ladder.cells]))[0][:, i]
    text = [cell_name(ladder, cell) for cell in ladder.cells]
    shown = {"mode": "markers", "marker": {"color": INK, "size": 8}, "text": text, "name": "optimum of a cell"}
    figure.add_trace(go.Scatter(x=np.exp(lengths), y=[_exact(axis, c) for c in places], **shown))
    field = prediction.fields[i]
    for value, name, symbol in ((field.value, "predicted", "star"), (field.copied, "copied", "x")):
        marker = {"color": ORANGE, "size": 11, "symbol": symbol}
        figure.add_trace(go.Scatter(x=[tokens[-1]], y=[value], mode="markers", name=name, marker=marker))
    figure.update_xaxes(type="log")
    if axis.scale == "log":
        figure.update_yaxes(type="log")
    return figure, []
