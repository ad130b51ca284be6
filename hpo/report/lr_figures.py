"""Figures of the learning rate: the value of each trial against it, and its schedule in the best run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hpo.analysis.snapshot import Snapshot
from hpo.report.axes import Axis, value_text
from hpo.report.curve_figures import MAX_MARKS, thinned
from hpo.report.importance import varied_trials
from hpo.report.style import BLUE, INK, ORANGE, SHADES, AnnotatedFigure, draw_level, empty_figure, objective_label, zoom
from hpo.runs.metrics import metric, read_metrics
from hpo.runs.run_dir import study_folder, trial_folder
from hpo.storage.trials import State


def lr_path(paths: Sequence[str]) -> str | None:
    """Return the path of the learning rate, None if it is not among these hyperparameters."""
    return next((path for path in paths if path.rpartition(".")[2] in ("lr", "learning_rate")), None)


def lr_figure(snapshot: Snapshot, of_axes: Mapping[str, Axis], paths: Sequence[str]) -> AnnotatedFigure | None:
    """Draw the value of each complete trial against its learning rate.

    paths: hyperparameters by importance; the first one other than the learning rate gives the colour.
    """
    path = lr_path(list(of_axes))
    trials = [
        t
        for t in thinned(snapshot, varied_trials(snapshot), MAX_MARKS)
        if path in t.params and t.state == State.COMPLETE and t.values
    ]
    if path is None or not trials:
        return None
    lr, other = of_axes[path], next((p for p in paths if p != path and any(p in t.params for t in trials)), None)
    figure = empty_figure(lr.label + lr.scale(), objective_label(snapshot), 300)
    marker: dict[str, Any] = {"size": 8, "color": BLUE, "line": {"width": 0.5, "color": "white"}}
    if other is not None:
        trials = [t for t in trials if other in t.params]
        axis = of_axes[other]
        ticks, labels = axis.ticks()
        bar = {"title": {"text": axis.label, "side": "right"}, "tickvals": ticks, "ticktext": labels}
        marker |= {"color": [axis.unit(t.params[other]) for t in trials], "cmin": 0, "cmax": 1, "showscale": True}
        marker |= {"colorscale": SHADES, "colorbar": bar | {"thickness": 12, "outlinewidth": 0}}
    x, y = [lr.unit(t.params[path]) for t in trials], [t.values[0] for t in trials]
    shown = {"text": [f"trial {t.number}: {value_text(t.params[path])}" for t in trials], "showlegend": False}
    shown |= {"hovertemplate": "%{text}, %{y:.4f}<extra></extra>"}
    figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=marker, **shown))
    if snapshot.baseline_value is not None:
        draw_level(snapshot.baseline_value, "baseline", figure, INK)
    ticks, labels = lr.ticks()
    figure.update_xaxes(tickvals=ticks, ticktext=labels, range=[-0.04, 1.04])
    return figure, zoom(figure, y, direction=snapshot.direction)


def schedule_figure(snapshot: Snapshot, out: Path) -> AnnotatedFigure | None:
    """Draw the learning rate of the best run at its rungs, None where its files are not in the folder `out`."""
    best = snapshot.best()
    if best is None:
        return None
    folder = study_folder(out, snapshot.first_name, snapshot.uid)
    metrics = read_metrics(trial_folder(folder, best.number) / "metrics.jsonl")
    rungs = [m for m in metrics if metric(m, "lr") is not None]
    if len(rungs) < 2:
        return None
    has_tokens = all(metric(m, "tokens") is not None for m in rungs)
    figure = empty_figure("tokens of the run" if has_tokens else "rung", "learning rate", 240)
    x, y = [m["tokens" if has_tokens else "rung"] for m in rungs], [m["lr"] for m in rungs]
    line = {"color": ORANGE, "width": 2}
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", line=line, showlegend=False))
    figure.update_yaxes(rangemode="tozero", exponentformat="power")
    return figure, []
