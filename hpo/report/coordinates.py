"""The section of a report on the coordinate check: sizes of activations over width and depth."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from hpo.report.html import bullets, figure_element, heading, html_table, paragraph
from hpo.report.style import GRID, INK, SHADES, empty_figure
from hpo.transfer.coordinates import Sweep, coordinate_lines, coordinate_table

MAX_PANELS = 8  # of one figure, which must fit on a page


def coordinates_section(check: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the result of `hpo transfer --check`. check: as it is stored, None if there is none."""
    if check is None:
        return
    yield heading("Coordinate check")
    yield bullets(coordinate_lines(check["parametrization"], check["sweeps"]))
    for sweep in check["sweeps"]:
        caption = f"Mean absolute value of activations over the {sweep['over']}, on logarithmic scales: "
        caption += f"geometric mean of {check['seeds']} seeds. From dark to light: at the start and after each of "
        caption += f"{sweep['updates']} updates at the peak learning rate. Lines are flat if the hyperparameters carry "
        caption += f"over to another {sweep['over']}. Logits at the start do not count: under mup and completep, they "
        caption += "shrink with the width."
        yield figure_element(coordinate_figure(sweep), f"coordinates-{sweep['over']}", caption)
    yield html_table(coordinate_table(check["sweeps"]))
    note = "attn, mlp: output of attention or MLP before it is added to the residual stream. blocks.N: the residual "
    note += "stream after a block. Over the depth, blocks at the same fraction of the depth are compared, under their "
    note += "numbers in the shallowest network. slope: of a line through log size over log width or depth."
    yield paragraph(note, "small")


def coordinate_figure(sweep: Sweep) -> go.Figure:
    """Draw the sizes of each layer, with one line per update. Of many blocks, only the first and last are drawn."""
    layers = list(sweep["layers"])
    if len(layers) > MAX_PANELS:
        layers = layers[:4] + layers[-4:]
    n = math.ceil(len(layers) / 2)
    height = 60 + 150 * n
    figure = make_subplots(rows=n, cols=2, subplot_titles=layers, horizontal_spacing=0.12, vertical_spacing=50 / height)
    figure.update_layout(empty_figure("", "", height).layout, showlegend=False)
    for i, layer in enumerate(layers):
        for update, sizes in enumerate(sweep["layers"][layer]):
            colour = sample_colorscale(SHADES, update / max(1, sweep["updates"]))[0]
            line = go.Scatter(
                x=sweep["values"],
                y=sizes,
                mode="lines+markers",
                name=f"after {update}",
                line={"color": colour, "width": 1.5},
                marker={"size": 4},
            )
            figure.add_trace(line, row=i // 2 + 1, col=i % 2 + 1)
    style = {"gridcolor": GRID, "zeroline": False, "showline": True, "linecolor": INK, "ticks": "outside"}
    figure.update_xaxes(type="log", tickvals=sweep["values"], **style)
    figure.update_yaxes(type="log", dtick=1, **style)
    figure.update_annotations(font_size=11)
    return figure
