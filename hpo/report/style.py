"""How our figures look: plotly's, in SVG, few colours on white, as wide as a printed page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpo.analysis.snapshot import Snapshot
from hpo.report.axes import short
from hpo.storage.trials import Trial
from hpo.study.spec import DEFAULT_CONFIG

WIDTH = 680  # pixels: an A4 page between its margins
INK, FAINT, GRID = "#1f2933", "#aab4bd", "#e8ebee"
BLUE, ORANGE, GREEN = "#1d5fa8", "#c2410c", "#2f7d4f"
BAND = "rgba(29, 95, 168, 0.15)"
ARMS = (INK, ORANGE, BLUE, GREEN, "#8a5aa8", "#8c6d1f", "#3b93a6", "#b04a6f")
SHADES = [[0.0, "#0b3c73"], [0.5, "#7fa6d3"], [1.0, "#f2c48d"]]  # from low, dark, to high, light

AnnotatedFigure = tuple[go.Figure, list[str]]  # a figure, and what is to be said of it


def empty_figure(x: str, y: str, height: int = 340, **layout: Any) -> go.Figure:
    """Return a figure with nothing drawn yet, its axes labelled."""
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
    """Return the unit of the objective, "" for that of a training function of the user's own."""
    if snapshot.spec["config"] != DEFAULT_CONFIG:
        return ""
    return "bits per byte" if snapshot.objective.endswith("bpb") else "nats per token"


def objective_label(snapshot: Snapshot) -> str:
    """Return the label of an axis of the objective."""
    return short(snapshot.objective, 40) + (f" ({objective_unit(snapshot)})" if objective_unit(snapshot) else "")


def run_axis(snapshot: Snapshot) -> tuple[str, float]:
    """Return the label of an axis along a run, and how long a rung is on it."""
    return ("tokens of the run", snapshot.rung_tokens) if snapshot.rung_tokens else ("rung", 1.0)


def anchor_levels(snapshot: Snapshot) -> dict[str, float]:
    """Return the anchors that are in the unit of the objective, by name."""
    suffix = "_bpb" if snapshot.objective.endswith("val_bpb") else ""
    names = ("unigram", "bigram") if snapshot.objective.endswith(("val_loss", "val_bpb")) else ()
    return {name: float(snapshot.anchors[name + suffix]) for name in names if name + suffix in snapshot.anchors}


def draw_level(at: float, text: str, figure: go.Figure, colour: str = GREEN) -> None:
    """Draw a level across a figure, named at its right end."""
    label = {"text": text, "textposition": "end", "font": {"size": 11, "color": colour}}
    figure.add_hline(y=at, line={"color": colour, "width": 1.2, "dash": "dash"}, label=label)


def zoom(
    figure: go.Figure, values: Sequence[float], also: Sequence[float] = (), results: Sequence[float] = ()
) -> list[str]:
    """Leave out of a figure what lies far above all else, such as runs that diverged; say how many values do.

    also: what must be seen. results: those of the values that decide what is far above; else all.
    """
    finite = [v for v in values if math.isfinite(v)]
    deciding = [v for v in results if math.isfinite(v)] or finite
    if not deciding:
        return []
    far = float(np.quantile(deciding, 0.95)) if len(deciding) >= 8 else max(finite)
    low, high = min([*deciding, *also]), max([far, *also])
    if max(finite) <= high + (high - low):
        high = max([*finite, *also])
    top = high + 0.06 * (high - low)
    if top > low:
        figure.update_yaxes(range=[low - 0.06 * (top - low), top])
    n = sum(v > top for v in finite)
    return [f"{n} values lie above the figure." if n > 1 else "One value lies above the figure."] if n else []


def joined_curves(members: Sequence[tuple[Trial, Mapping[int, float]]], step: float) -> dict[str, list[Any]]:
    """Return x, y and what is shown under the mouse for many curves as one, with gaps between them."""
    x: list[float | None] = []
    y: list[float | None] = []
    told: list[str] = []
    for trial, curve in members:
        for rung, value in sorted(curve.items()):
            x.append(rung * step)
            y.append(value if math.isfinite(value) else None)
            told.append(f"trial {trial.number}")
        x.append(None)
        y.append(None)
        told.append("")
    return {"x": x, "y": y, "text": told}
