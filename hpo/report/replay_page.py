"""The HTML page of `hpo replay`: what other samplers and pruners would have found, ended and saved."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from hpo.console import printable
from hpo.replay.comparison import Compared
from hpo.replay.curves import Curves
from hpo.replay.measures import (
    GROUP,
    Estimate,
    Record,
    lost_share,
    pruned_share,
    rank_correlations,
    regret_at,
)
from hpo.report.html import bullets, figure_element, heading, html_page, html_table
from hpo.report.style import ARMS, BLUE, empty_figure
from hpo.runs.run_dir import write_file

N_POINTS = 60  # of a curve of regret


def write_replay_page(
    curves: Curves, compared: Sequence[Compared], notes: Sequence[str], table: Sequence[Mapping[str, Any]], file: Path
) -> None:
    """Write figures and tables of a replay as one page that needs no network.

    table: one row per set of rules and world.
    """
    title = printable(f"Replay of {curves.name}")
    body = [f"<h1>{escape(title)}</h1>\n", bullets(notes) if notes else ""]
    body += [heading("Searches"), html_table(table), *_figures(compared)]
    body += [heading("Rank correlation"), figure_element(rank_figure(rank_correlations(curves)), "rank", _RANK)]
    write_file(file, html_page(title, "".join(body)))


_RANK = (
    "Spearman's correlation of the value at a rung with the final value, over runs with a known result. A low value at "
    "a rung means that a pruner cannot recognize good trials there. Bars: 95 % bootstrap intervals."
)


def _figures(compared: Sequence[Compared]) -> Iterator[str]:
    for number, name in enumerate(dict.fromkeys(one.world.name for one in compared)):
        members = [one for one in compared if one.world.name == name]
        yield heading(f"World: {name}")
        caption = (
            "Distance of the best trial so far from the best possible result, mean over the searches. Dashed: random "
        )
        caption += "search without pruning."
        yield figure_element(regret_figure(members), f"regret{number}", caption)
        caption = f"Share of trials that were ended, in groups of {GROUP} trials, and share of the best tenth that was "
        caption += "ended. A rule that ends more and more of the best tenth becomes too strict. Bars: 95 % intervals."
        yield figure_element(groups_figure(members), f"groups{number}", caption)


def regret_figure(compared: Sequence[Compared]) -> go.Figure:
    """Draw the mean regret against the tokens that all trials of a search have trained."""
    curves, budget = compared[0].world.curves, compared[0].budget
    counted = curves.rung_tokens * curves.rungs > 1
    figure = empty_figure("tokens trained by all trials" if counted else "full runs trained by all trials", "regret")
    rungs = np.linspace(curves.rungs, budget, N_POINTS)
    _draw_regret(
        figure, rungs, compared[0].reference, curves, name="random search", line={"color": ARMS[0], "dash": "dash"}
    )
    for number, one in enumerate(compared):
        line = {"color": ARMS[1 + number % (len(ARMS) - 1)], "width": 2.0}
        _draw_regret(figure, rungs, one.records, curves, name=one.rules.label, line=line)
    return figure


def _draw_regret(figure: go.Figure, rungs: np.ndarray, records: Sequence[Record], curves: Curves, **style: Any) -> None:
    means = [float(np.mean([regret_at(one, at) for one in records])) for at in rungs]
    y = [mean if math.isfinite(mean) else None for mean in means]
    figure.add_trace(go.Scatter(x=[float(at * curves.rung_tokens) for at in rungs], y=y, mode="lines", **style))


def groups_figure(compared: Sequence[Compared]) -> go.Figure:
    """Draw the shares of trials that were ended, by number of the trial."""
    figure = empty_figure("number of the trial", "share ended")
    figure.update_yaxes(range=[-0.03, 1.03])
    for number, one in enumerate(compared):
        colour = ARMS[1 + number % (len(ARMS) - 1)]
        groups = range(max(len(record["groups"]) for record in one.records))
        parts = [slice(group, group + 1) for group in groups]
        x = [GROUP * group + GROUP / 2 for group in groups]
        pruned = [pruned_share(one.records, part).value for part in parts]
        figure.add_trace(
            go.Scatter(x=x, y=pruned, mode="lines", name=one.rules.label, line={"color": colour, "dash": "dot"})
        )
        lost = [lost_share(one.records, part) for part in parts]
        figure.add_trace(_with_bars(x, lost, name=f"{one.rules.label}: best tenth", line={"color": colour}))
    return figure


def rank_figure(estimates: Sequence[Estimate]) -> go.Figure:
    """Draw the rank correlation of the value at each rung with the final value."""
    figure = empty_figure("rung", "rank correlation", showlegend=False)
    figure.update_yaxes(range=[min(0.0, *(e.low for e in estimates if not math.isnan(e.low))) - 0.03, 1.03])
    figure.add_trace(_with_bars(list(range(1, len(estimates) + 1)), estimates, line={"color": BLUE}))
    return figure


def _with_bars(x: Sequence[float], estimates: Sequence[Estimate], **style: Any) -> go.Scatter:
    """Return a line through estimates with their intervals. Those that do not exist are gaps."""
    y = [None if math.isnan(e.value) else e.value for e in estimates]
    up = [0.0 if math.isnan(e.high) else max(0.0, e.high - e.value) for e in estimates]
    down = [0.0 if math.isnan(e.low) else max(0.0, e.value - e.low) for e in estimates]
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}
    return go.Scatter(x=list(x), y=y, error_y=bars, mode="lines+markers", **style)
