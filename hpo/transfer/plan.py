"""Plan a ladder: a study whose trials are listed in advance, in cells below a target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from scipy import stats

from hpo.analysis.export import configuration
from hpo.analysis.snapshot import Snapshot
from hpo.errors import Problem
from hpo.search.grid_samplers import Listed
from hpo.search.pruners import Median, NoPruning, Patient, Percentile, Pruner, Threshold
from hpo.search.ranges import Range, Space, nearest_value
from hpo.storage.attributes import CELL_FIELDS, LADDER_OF
from hpo.storage.trials import Trial
from hpo.study.checks import study_file_problems
from hpo.study.limits import Budget
from hpo.study.spec import Study, seed_path
from hpo.study.stored import study_from_spec
from hpo.transfer.cells import Cell, plan_cells
from hpo.transfer.fields import BATCH, Axis, axes_of
from hpo.transfer.scale import HEADS, SIZES, TOKENS
from model.section import flat, updated

SPREAD = 0.22  # standard deviation of a design around the copied configuration, as a share of each range
FIRST_SEED = 1_000_000  # of the runs of ladders, far from those of searches and confirmations
WITHIN_CELLS = (Median, Percentile, Patient, Threshold, NoPruning)  # pruners that need no promotion across cells


@dataclass(frozen=True)
class LadderRequest:
    """The options of a ladder. target: fields of the target. cells: number of cells. budget: tokens of all runs."""

    name: str
    target: Mapping[str, Any]
    cells: int
    budget: int | None
    seed: int = 0


def ladder_name(search: str) -> str:
    """Return the name of the ladder of a search, unless --as gives another one."""
    return f"{search}-transfer"


def plan_ladder(snapshot: Snapshot, copied: Trial, request: LadderRequest) -> Study:
    """Return the study of a ladder around a configuration of a search.

    copied: the trial whose configuration a user would copy. Its fields that are not numbers hold in the whole ladder.

    Raises:
        Problem: the search, the target or the budget does not allow a ladder.
    """
    search = study_from_spec(snapshot.spec, snapshot.name)
    base, axes = ladder_base(search, configuration(search, copied))
    cells = plan_cells(base, request.target, request.cells, request.budget)
    return ladder_study(search, base, axes, cells, request)


def ladder_base(search: Study, copied: BaseModel) -> tuple[BaseModel, list[Axis]]:
    """Return the configuration that a ladder varies, and the axes along which it varies.

    Raises:
        Problem: the search has arms, or its space lacks a learning rate.
    """
    if search.file.arms is not None:
        raise Problem(f"--study: must be a search, got {search.name}, which compares arms")
    scales = {TOKENS, *SIZES, HEADS, seed_path(search.base) or ""}
    if varied := [path for path in search.file.space if path in scales]:
        raise Problem(
            f"--study: must not search {varied[0]}, which the cells of a ladder set; fix it in the study file"
        )
    axes = axes_of(copied, search.file.space, dict.fromkeys(scales))
    if not any(axis.role == "lr" for axis in axes):
        searched = ", ".join(search.file.space)
        raise Problem(
            "--study: must search a learning rate, such as optimizer.lr, whose optimum depends on the length of a run; "
            f"the space of {search.name} has {searched}"
        )
    return updated(copied, {"run.align": 1} if "run.align" in flat(copied) else {}), axes


def ladder_study(
    search: Study, base: BaseModel, axes: Sequence[Axis], cells: Sequence[Cell], request: LadderRequest
) -> Study:
    """Return the study of a ladder with given cells.

    Raises:
        Problem: a run of the ladder is not a valid configuration.
    """
    space: Space = {axis.path: _without_prior(search.file.space[axis.path]) for axis in axes}
    runs = [
        values for i, cell in enumerate(cells) for values in design(base, axes, space, cell, 100 * request.seed + i)
    ]
    if seed := seed_path(base):
        runs = [{**values, seed: FIRST_SEED + 10_000 * request.seed + i} for i, values in enumerate(runs)]
    fields = flat(base)
    about = {
        LADDER_OF: search.name,
        CELL_FIELDS: list(cells[0].values),
        "target": dict(request.target),
        "budget_tokens": request.budget,
        "seed": request.seed,
        "searched": {path: flat(search.base)[path] for path in cells[0].values},
        "copied": {axis.path: fields[axis.path] for axis in axes},
        "cells": [{"values": dict(cell.values), "runs": cell.runs} for cell in cells],
    }
    limits = search.file.limits.model_copy(update={"seconds": None})  # runs may be longer than those of the search
    changes: dict[str, Any] = {"space": space, "sampler": Listed(values=tuple(runs)), "baseline": (), "about": about}
    changes |= {"baseline_seeds": 1, "budget": Budget(trials=len(runs)), "targets": {}, "milestones": {}}
    changes |= {"limits": limits, "keep_best": 0, "pruner": _pruner(search.file.pruner)}
    file = search.file.model_copy(update=changes)
    base = updated(base, cells[-1].values)
    if problems := study_file_problems(file, base):
        raise Problem(*(f"`hpo transfer` of {search.name}: {line}" for line in problems))
    return Study(request.name, f"`hpo transfer` of {search.name}", file, base)


def _pruner(pruner: Pruner) -> Pruner:
    """Return the pruner of a ladder: that of the search if it compares trials of one cell, else median."""
    return pruner if isinstance(pruner, WITHIN_CELLS) else Median()


def _without_prior(entry: Any) -> Any:
    """Return an entry of the space without its prior, because the points of a ladder are listed."""
    return entry.model_copy(update={"prior": None})


def design(base: BaseModel, axes: Sequence[Axis], space: Space, cell: Cell, seed: int) -> list[dict[str, Any]]:
    """Return the runs of a cell: the copied configuration, then a scrambled Sobol design around it.

    The design is normal in each axis, with SPREAD of the range as standard deviation, and stays in the range. A batch
    that leaves a rung of a short run without an update is made smaller.
    """
    fields = flat(base)
    center = np.array([_unit(axis, fields[axis.path]) for axis in axes])
    uniform = stats.qmc.Sobol(len(axes), rng=np.random.default_rng([seed, 7])).random_base2(_power(cell.runs))
    low, high = (stats.norm.cdf((end - center) / SPREAD) for end in (0.0, 1.0))
    positions = center + SPREAD * stats.norm.ppf(low + (high - low) * uniform[: cell.runs - 1])
    runs = [{axis.path: fields[axis.path] for axis in axes}]
    for row in positions:
        runs.append({axis.path: _snapped(axis, space[axis.path], float(t)) for axis, t in zip(axes, row, strict=True)})
    return [_with_updates(base, {**values, **cell.values}) for values in runs]


def _power(n: int) -> int:
    return max(1, int(n - 1).bit_length())


def _unit(axis: Axis, value: float) -> float:
    """Return the position of a value in its range, from 0 to 1."""
    low, high = axis.coordinate(axis.low), axis.coordinate(axis.high)
    return min(max((axis.coordinate(value) - low) / (high - low), 0.0), 1.0)


def _snapped(axis: Axis, entry: Any, position: float) -> float | int:
    """Return the allowed value nearest to a position in the range."""
    low, high = axis.coordinate(axis.low), axis.coordinate(axis.high)
    coordinate = low + (high - low) * min(max(position, 0.0), 1.0)
    if axis.choices:
        nearest = min(axis.choices, key=lambda choice: abs(axis.coordinate(choice) - coordinate))
        return int(nearest) if axis.whole else nearest
    value = axis.value(coordinate)
    if isinstance(entry, Range) and (entry.step is not None or axis.whole):
        return nearest_value(entry, min(max(value, axis.low), axis.high), int if axis.whole else float)
    return min(max(value, axis.low), axis.high)


def _with_updates(base: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with a batch that is small enough for one update in each rung."""
    path = next((path for path in BATCH if path in values), None)
    while path is not None and values[path] > 1:
        try:
            updated(base, values)
            break
        except ValidationError:
            values = {**values, path: values[path] // 2}
    return values
