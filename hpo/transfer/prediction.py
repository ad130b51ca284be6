"""Predict the configuration and the loss at a target from a ladder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from hpo.config.validation import error_messages
from hpo.errors import NothingFeasible, Problem
from hpo.search.ranges import Range, nearest_value
from hpo.transfer.cells import FAR, MIN_RUNS
from hpo.transfer.fields import Axis
from hpo.transfer.fit import Estimate, Surface, estimate, fit_surface
from hpo.transfer.ladder import Ladder
from hpo.transfer.laws import excess, layout_of
from hpo.transfer.scale import compute_of, scale_of, target_config, tokens_of
from model.section import flat, updated

MIN_CELLS = 2


@dataclass(frozen=True)
class FieldPrediction:
    """The predicted value of one field: its interval, and the value that copying gives.

    outside: whether the value lies outside the range that the ladder searched.
    """

    path: str
    copied: float
    value: float
    low: float
    high: float
    outside: bool


@dataclass(frozen=True)
class Prediction:
    """What a ladder predicts for a target.

    values: every field that changes from the base of the ladder, the target's included. copied, nearest: the same for
    the copied configuration and for the best run of the nearest cell. value: of the objective, with a 90 % interval.
    regret: how much more the copied configuration is expected to lose, with a 90 % interval.
    reach: the target's tokens over those of the longest cell. size_reach: the same for sizes.
    """

    target: Mapping[str, Any]
    fields: tuple[FieldPrediction, ...]
    values: Mapping[str, Any]
    copied: Mapping[str, Any]
    nearest: Mapping[str, Any]
    nearest_cell: tuple[Any, ...]
    value: float
    low: float
    high: float
    regret: tuple[float, float, float]
    reach: float
    size_reach: float
    n_runs: int

    @property
    def is_far(self) -> bool:
        """Whether the target is more than 16 times as long as the longest cell."""
        return self.reach > FAR


def fit_ladder(ladder: Ladder) -> Surface:
    """Return the surface fitted to a ladder.

    Raises:
        NothingFeasible: too few of its runs are complete.
    """
    counts = [sum(run.cell == cell for run in ladder.runs) for cell in ladder.cells]
    if len(counts) < MIN_CELLS or sum(counts) < MIN_RUNS * MIN_CELLS:
        raise NothingFeasible(
            f"study {ladder.name}: needs complete runs in at least {MIN_CELLS} cells, {MIN_RUNS} in each on average, "
            f"to fit a law; {sum(counts)} runs in {len(counts)} cells are complete"
        )
    data, fields = ladder.data(), flat(ladder.base)
    uniform = fields.get("model.parametrization", "standard") != "standard"
    by_batch = fields.get("optimizer.scale_lr", "none") not in ("none", 0)
    return fit_surface(layout_of(ladder.axes, data, uniform_lr=uniform, lr_by_batch=by_batch), data)


def predict(ladder: Ladder, surface: Surface, target: Mapping[str, Any]) -> Prediction:
    """Return the prediction for a target.

    Raises:
        Problem: the target is smaller than the ladder, or differs in a field in which its cells do not, or the
            predicted values do not go together.
    """
    goal = target_config(updated(ladder.base, ladder.searched), target)
    _check_target(ladder, goal, target)
    s = np.array(scale_of(goal))
    at = _estimate(ladder, surface, s, goal)
    fields = tuple(_field(ladder, axis, i, at) for i, axis in enumerate(ladder.axes))
    scale_values = {path: flat(goal)[path] for path in {*target, *ladder.cell_fields}}
    values = {field.path: _typed(axis, field.value) for axis, field in zip(ladder.axes, fields, strict=True)}
    _check_values(goal, values)
    value, *ends = (ladder.study.direction.loss(loss) for loss in (at.loss, at.loss_low, at.loss_high))
    cell = ladder.cells[-1]
    best = min((run for run in ladder.runs if run.cell == cell), key=lambda run: run.loss)
    nearest = {axis.path: _typed(axis, best.values[axis.path]) for axis in ladder.axes}
    lengths = [tokens_of(ladder.at(cell)) for cell in ladder.cells]
    sizes = [scale_of(ladder.at(cell))[1] for cell in ladder.cells]
    return Prediction(
        target=dict(target),
        fields=fields,
        values=scale_values | values,
        copied=scale_values | dict(ladder.copied),
        nearest=scale_values | nearest,
        nearest_cell=cell,
        value=value,
        low=min(ends),
        high=max(ends),
        regret=_regret(ladder, surface, at, s),
        reach=tokens_of(goal) / max(lengths),
        size_reach=math.exp(scale_of(goal)[1] - max(sizes)),
        n_runs=len(ladder.runs),
    )


def _estimate(ladder: Ladder, surface: Surface, s: np.ndarray, goal: BaseModel) -> Estimate:
    """Return the estimate at a scale, with fields in their searched range that the configuration would refuse outside.

    Fields on a linear scale and lists whose optimum no publication extrapolates always stay in their range.
    """
    ends = np.array([[axis.coordinate(axis.low), axis.coordinate(axis.high)] for axis in ladder.axes])
    inside = np.array([axis.scale == "linear" or bool(axis.choices and axis.role == "other") for axis in ladder.axes])
    at = estimate(surface, s, bounds=np.where(inside[:, None], ends, [-np.inf, np.inf]))
    refused = [not _allows(goal, axis, float(x)) for axis, x in zip(ladder.axes, at.x, strict=True)]
    if any(refused):
        inside |= np.array(refused)
        at = estimate(surface, s, bounds=np.where(inside[:, None], ends, [-np.inf, np.inf]))
    return at


def _allows(goal: BaseModel, axis: Axis, coordinate: float) -> bool:
    try:
        updated(goal, {axis.path: _typed(axis, axis.value(coordinate))})
    except ValidationError:
        return False
    return True


def _check_values(goal: BaseModel, values: Mapping[str, Any]) -> None:
    try:
        updated(goal, values)
    except ValidationError as error:
        lines = error_messages(error, type(goal))
        raise Problem(*(f"--to: the predicted values do not go together: {line}" for line in lines)) from None


def _check_target(ladder: Ladder, goal: BaseModel, target: Mapping[str, Any]) -> None:
    cells = [ladder.at(cell) for cell in ladder.cells]
    longest = max(map(tokens_of, cells))
    if tokens_of(goal) < longest:
        raise Problem(
            f"--to run.tokens: must be at least {longest:,.0f}, the longest runs of {ladder.name}, "
            f"got {tokens_of(goal):,.0f}"
        )
    if compute_of(goal) < max(map(compute_of, cells)):
        raise Problem(f"--to: must not be smaller than the cells of {ladder.name}")
    fields, base = flat(goal), flat(ladder.base)
    fixed = [path for path in target if path not in ladder.cell_fields and fields[path] != base[path]]
    if fixed:
        raise Problem(
            f"--to {fixed[0]}: must be {base[fixed[0]]!r}, as in all cells of {ladder.name}, got {fields[fixed[0]]!r}; "
            "`--as NAME` starts another ladder"
        )


def _typed(axis: Axis, value: float) -> float | int:
    return round(value) if axis.whole else float(value)


def _field(ladder: Ladder, axis: Axis, i: int, at: Estimate) -> FieldPrediction:
    value, low, high = (axis.value(float(ends[i])) for ends in (at.x, at.low, at.high))
    entry = ladder.study.file.space[axis.path]
    if axis.choices and (axis.scale == "linear" or axis.role == "other"):
        value = min(axis.choices, key=lambda choice: abs(axis.coordinate(choice) - axis.coordinate(value)))
    elif isinstance(entry, Range) and entry.step is not None:
        value = nearest_value(entry, value, int if axis.whole else float)
    outside = not axis.low <= value <= axis.high
    return FieldPrediction(axis.path, float(ladder.copied[axis.path]), value, low, high, outside)


def _regret(ladder: Ladder, surface: Surface, at: Estimate, s: np.ndarray) -> tuple[float, float, float]:
    """Return mean and 90 % interval of what copying loses against the prediction."""
    copied = np.array([[axis.coordinate(ladder.copied[axis.path]) for axis in ladder.axes]])
    scale, layout = s[None, :], surface.layout
    there = excess(layout, surface.draws, copied, scale)[:, 0]
    differences = there - excess(layout, surface.draws, at.x[None, :], scale)[:, 0]
    low, high = np.quantile(differences, [0.05, 0.95])
    return float(np.mean(differences)), float(low), float(high)
