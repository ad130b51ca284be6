"""The section of a report on several objectives: the trials that no other trial beats in all of them."""

from collections.abc import Iterator

import plotly.graph_objects as go

from hpo.analysis.front import front, front_records, noise_of, objective_value, objectives_of
from hpo.analysis.snapshot import Snapshot
from hpo.report.axes import short
from hpo.report.html import figure_element, heading, html_table, paragraph
from hpo.report.style import FAINT, ORANGE, empty_figure, objective_label
from hpo.storage.trials import Trial

MAX_ROWS = 20


def front_section(snapshot: Snapshot) -> Iterator[str]:
    """Yield a figure of the first objective against each other one, and a table of the front."""
    names = objectives_of(snapshot)
    if len(names) < 2 or not (records := front_records(snapshot)):
        return
    yield heading("Several objectives")
    noise = noise_of(snapshot)
    caption = "Complete trials. Orange: the front, the trials that no other trial beats in one objective without being "
    caption += "worse in another. "
    caption += (
        "Bars: one standard deviation of the runs of the baseline; trials whose bars overlap may be equal."
        if noise
        else "The noise is unknown, because the baseline ran with one seed; `baseline_seeds: 4` measures it."
    )
    for i, name in enumerate(names[1:]):
        yield figure_element(front_figure(snapshot, name), f"front-{i}", caption if i == 0 else f"The same for {name}.")
    yield html_table(records[:MAX_ROWS])
    note = f"The search and its pruning used {names[0]} only; less is better in {' and '.join(names[1:])}. "
    yield paragraph(f"{note}`hpo best --by NAME` and `hpo export --by NAME` select a trial.", "small")


def front_figure(snapshot: Snapshot, name: str) -> go.Figure:
    """Draw the first objective against another one, with the noise of both at the trials of the front."""
    figure = empty_figure(short(name, 40), objective_label(snapshot), 320)
    best = front(snapshot)
    others = [t for t in snapshot.feasible if t not in best]
    noise = noise_of(snapshot)
    for trials, label, colour in ((others, "complete", FAINT), (best, "front", ORANGE)):
        shown = [t for t in trials if objective_value(snapshot, t, name) is not None]
        bars = {} if label != "front" else _bars(noise.get(name), noise.get(snapshot.objective))
        figure.add_scatter(
            x=[objective_value(snapshot, t, name) for t in shown],
            y=[t.values[0] for t in shown],
            mode="markers",
            name=label,
            marker={"color": colour, "size": 8 if label == "front" else 6},
            text=[_hover(t) for t in shown],
            hovertemplate="%{text}<br>%{x:.4g}, %{y:.5g}<extra></extra>",
            **bars,
        )
    return figure


def _bars(x: float | None, y: float | None) -> dict[str, dict[str, object]]:
    sizes = {"error_x": x, "error_y": y}
    return {key: {"type": "constant", "value": size, "thickness": 1} for key, size in sizes.items() if size}


def _hover(trial: Trial) -> str:
    return f"trial {trial.number}"
