"""Figures of hyperparameter importance."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from hpo.analysis.snapshot import Snapshot
from hpo.report.axes import short
from hpo.report.importance import Importance
from hpo.report.style import ARMS, BLUE, FAINT, INK, empty_figure, run_axis

MAX_BARS = 20


def importance_figure(ranked: Sequence[Importance]) -> go.Figure:
    """Draw the importance of each hyperparameter, and the importance that chance alone seldom exceeds."""
    bars = list(reversed(ranked[:MAX_BARS]))
    height = 90 + 26 * len(bars)
    figure = empty_figure("share of total importance", "", height, bargap=0.35, barmode="overlay")
    y = [short(one.path, 32) for one in bars]
    colours = [BLUE if one.chance is None or one.share > one.chance else FAINT for one in bars]
    shown = {"orientation": "h", "showlegend": False, "hovertemplate": "%{x:.0%}<extra></extra>"}
    figure.add_trace(go.Bar(x=[one.share for one in bars], y=y, marker={"color": colours}, **shown))
    mark = {"symbol": "line-ns", "size": 16, "line": {"width": 2.2, "color": INK}}
    name = "exceeded one time in 20 without any effect"
    chance = [one.chance for one in bars]
    figure.add_trace(go.Scatter(x=chance, y=y, mode="markers", marker=mark, name=name, hoverinfo="skip"))
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    return figure


def importance_by_rung_figure(snapshot: Snapshot, by_rung: Mapping[int, Sequence[Importance]]) -> go.Figure:
    """Draw the importance of the most important hyperparameters along the runs."""
    label, step = run_axis(snapshot)
    figure = empty_figure(label, "share of total importance", 300)
    largest: dict[str, float] = {}
    for ranked in by_rung.values():
        for one in ranked:
            largest[one.path] = max(largest.get(one.path, 0.0), one.share)
    paths = sorted(largest, key=lambda path: -largest[path])[: len(ARMS)]
    for path, colour in zip(paths, ARMS, strict=False):
        shares = {rung: one.share for rung, ranked in by_rung.items() for one in ranked if one.path == path}
        x, line = [rung * step for rung in shares], {"color": colour, "width": 2}
        y = list(shares.values())
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", name=short(path, 32), line=line))
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure
