"""The common style of all figures: Plotly, few colours on white, as wide as a printed page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpo.analysis.snapshot import Snapshot
from hpo.report.axes import short
from hpo.search.direction import Direction
from hpo.storage.trials import Trial
from hpo.study.spec import DEFAULT_CONFIG

WIDTH = 680  # pixels, the width of an A4 page without its margins
INK, FAINT, GRID = "#1f2933", "#aab4bd", "#e8ebee"
BLUE, ORANGE, GREEN = "#1d5fa8", "#c2410c", "#2f7d4f"
BAND = "rgba(29, 95, 168, 0.15)"
ARMS = (INK, ORANGE, BLUE, GREEN, "#8a5aa8", "#8c6d1f", "#3b93a6", "#b04a6f")
SHADES = [[0.0, "#0b3c73"], [0.5, "#7fa6d3"], [1.0, "#f2c48d"]]  # from low, dark, to high, light


def shades_from_best(direction: Direction) -> list[list[Any]]:
    """Return the colours of a scale of the objective, on which better values are darker."""
    if direction is Direction.MINIMIZE:
        return SHADES
    return [[position, colour] for (position, _), (_, colour) in zip(SHADES, reversed(SHADES), strict=True)]


AnnotatedFigure = tuple[go.Figure, list[str]]  # a figure, and sentences to add to its caption


def empty_figure(x: str, y: str, height: int = 290, **layout: Any) -> go.Figure:
    """Return a figure without data; x, y: labels of the axes. layout: of Plotly."""
    axis = {"gridcolor": GRID, "zeroline": False, "showline": True, "linecolor": INK, "automargin": True}
    axis |= {"ticks": "outside", "tickcolor": INK}
    figure = go.Figure()
    figure.update_layout(
        template="none",
        width=WIDTH,
        height=height,
        margin={"l": 62, "r": 18, "t": 36, "b": 58},
        font={"family": "Helvetica, Arial, sans-serif", "size": 12, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        legend={"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        hovermode="closest",
        **layout,
    )
    figure.update_xaxes(title={"text": x, "standoff": 6}, tickformat=".3~s" if x.startswith("tokens") else None, **axis)
    figure.update_yaxes(title={"text": y, "standoff": 10}, **axis)
    return figure


def objective_unit(snapshot: Snapshot) -> str:
    """Return the unit of the objective, "" for the user's own training function."""
    if snapshot.spec["config"] != DEFAULT_CONFIG:
        return ""
    return "bits per byte" if snapshot.objective.endswith("bpb") else "nats per token"


def objective_label(snapshot: Snapshot) -> str:
    """Return the label of an axis that shows the objective."""
    unit = objective_unit(snapshot)
    return short(snapshot.objective, 40) + (f" ({unit})" if unit else "")


def run_axis(snapshot: Snapshot) -> tuple[str, float]:
    """Return the label of an axis along a run, and the length of one rung on that axis."""
    return ("tokens of the run", snapshot.rung_tokens) if snapshot.rung_tokens else ("rung", 1.0)


def anchor_levels(snapshot: Snapshot) -> dict[str, float]:
    """Return the losses of the n-gram models in the unit of the objective, by name."""
    suffix = "_bpb" if snapshot.objective.endswith("val_bpb") else ""
    names = ("unigram", "bigram", "trigram") if snapshot.objective.endswith(("val_loss", "val_bpb")) else ()
    return {name: float(snapshot.anchors[name + suffix]) for name in names if name + suffix in snapshot.anchors}


def draw_level(level: float, name: str, figure: go.Figure, colour: str = GREEN) -> None:
    """Draw a dashed horizontal line with a name at its right end."""
    label = {"text": name, "textposition": "end", "font": {"size": 11, "color": colour}}
    figure.add_hline(y=level, line={"color": colour, "width": 1.2, "dash": "dash"}, label=label)


def zoom(
    figure: go.Figure,
    values: Sequence[float],
    also: Sequence[float] = (),
    results: Sequence[float] = (),
    direction: Direction = Direction.MINIMIZE,
) -> list[str]:
    """Set the range of the y axis without values far worse than the others, such as those of diverged runs.

    values: everything drawn. also: values that must stay visible. results: the values that decide what is far worse;
    all values by default. direction: of the study. Returns a note on how many values are outside.
    """
    finite = [direction.loss(v) for v in values if math.isfinite(v)]
    deciding = [direction.loss(v) for v in results if math.isfinite(v)] or finite
    also = [direction.loss(v) for v in also]
    if not deciding:
        return []
    far = float(np.quantile(deciding, 0.95)) if len(deciding) >= 8 else max(finite)
    low, high = min([*deciding, *also]), max([far, *also])
    if max(finite) <= high + (high - low):
        high = max([*finite, *also])
    top = high + 0.06 * (high - low)
    if top > low:
        figure.update_yaxes(range=sorted(direction.loss(end) for end in (low - 0.06 * (top - low), top)))
    n, side = sum(v > top for v in finite), direction.worse_side
    return [f"{n} values are {side} the figure." if n > 1 else f"One value is {side} the figure."] if n else []


def joined_curves(members: Sequence[tuple[Trial, Mapping[int, float]]], step: float) -> dict[str, list[Any]]:
    """Return x, y and hover text of many curves as one trace, with gaps between the curves.

    step: length of one rung on the x axis.
    """
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for trial, curve in members:
        for rung, value in sorted(curve.items()):
            x.append(rung * step)
            y.append(value if math.isfinite(value) else None)
            text.append(f"trial {trial.number}")
        x.append(None)
        y.append(None)
        text.append("")
    return {"x": x, "y": y, "text": text}
