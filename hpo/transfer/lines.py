"""What a ladder shows, as tables and sentences."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hpo.console import format_number
from hpo.transfer.cells import FAR, Cell
from hpo.transfer.fit import LEVEL, Surface
from hpo.transfer.ladder import Ladder
from hpo.transfer.laws import optimum
from hpo.transfer.prediction import Prediction
from hpo.transfer.scale import scale_of


def plan_table(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return one record per planned cell."""
    return [{**cell.values, "runs": cell.runs, "tokens": cell.runs * cell.tokens} for cell in cells]


def cell_table(ladder: Ladder, surface: Surface) -> list[dict[str, Any]]:
    """Return one record per cell: its runs, its best run, and the optimum that the law gives there."""
    records = []
    for cell in ladder.cells:
        runs = [run for run in ladder.runs if run.cell == cell]
        best = min(runs, key=lambda run: run.loss)
        at = optimum(surface.layout, surface.p, np.array([scale_of(ladder.at(cell))]))[0, 0]
        record = dict(zip(ladder.cell_fields, cell, strict=True)) | {"runs": len(runs)}
        record["best"] = ladder.study.direction.loss(best.loss)
        for i, axis in enumerate(ladder.axes):
            record |= {axis.path: best.values[axis.path], f"{axis.path} by law": axis.value(float(at[i]))}
        records.append(record)
    return records


def law_table(ladder: Ladder, surface: Surface) -> list[dict[str, Any]]:
    """Return one record per field: the exponents of its optimum in tokens and size, with 90 % intervals."""
    d, tail = len(ladder.axes), (1 - LEVEL) / 2
    draws = surface.layout.parts(surface.draws)["exponents"].reshape(-1, d, 3)
    fitted = surface.layout.parts(surface.p)["exponents"].reshape(d, 3)
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    scales = surface.layout.unit
    records = []
    for i, axis in enumerate(ladder.axes):
        record: dict[str, Any] = {"field": axis.path}
        for k, name in enumerate(("tokens", "size", "tokens x size")):
            values = (format_number(float(v * scales[i])) for v in (fitted[i, k], low[i, k], high[i, k]))
            record[name] = "{} ({} to {})".format(*values)
        records.append(record)
    return records


def prediction_table(prediction: Prediction) -> list[dict[str, Any]]:
    """Return one record per field: the copied value, the nearest cell's, and the predicted one with its interval."""
    return [
        {
            "field": field.path,
            "copied": field.copied,
            "nearest cell": prediction.nearest[field.path],
            "predicted": prediction.values[field.path],
            "low": field.low,
            "high": field.high,
        }
        for field in prediction.fields
    ]


def prediction_lines(objective: str, prediction: Prediction) -> list[str]:
    """Return sentences: the predicted loss, the regret of copying, and how far the ladder reaches."""
    target = ", ".join(f"{path}={value:,}" for path, value in prediction.target.items())
    low, high = format_number(prediction.low), format_number(prediction.high)
    regret, least, most = (format_number(value) for value in prediction.regret)
    lines = [
        f"at {target}: predicted {objective} {format_number(prediction.value)} (90 % interval {low} to {high})",
        f"copying is expected to lose {regret} against the prediction (90 % interval {least} to {most})",
        f"the target has {format_number(prediction.reach)} times the tokens of the longest cell"
        + (f" and {format_number(prediction.size_reach)} times the size of the largest" * (prediction.size_reach > 1)),
    ]
    if prediction.is_far:
        lines.append(
            f"warning: the prediction extrapolates more than {FAR} times in tokens, beyond which laws have not been "
            "checked; a ladder with longer runs reaches further"
        )
    lines += [
        f"warning: the predicted {field.path} lies outside the searched range"
        for field in prediction.fields
        if field.outside
    ]
    return lines
