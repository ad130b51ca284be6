"""A ladder in the storage: its cells, its runs as data of a fit, and the search that it extends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.storage.attributes import CELL_FIELDS, FIXED_VALUES, LADDER_OF, SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import State, Trial
from hpo.study.spec import Study
from hpo.study.stored import study_from_spec
from hpo.transfer.fields import Axis, axes_of
from hpo.transfer.laws import Runs
from hpo.transfer.scale import scale_of
from model.section import flat


@dataclass(frozen=True)
class LadderRun:
    """A complete run: its values of the searched fields, its cell (values of the cell fields), and its loss."""

    trial: int
    values: Mapping[str, float]
    cell: tuple[Any, ...]
    scale: tuple[float, float]
    loss: float


@dataclass(frozen=True)
class Ladder:
    """The complete runs of a ladder, and what they have in common.

    base: the configuration whose fields the runs replace. axes: the searched numbers. copied: their values in the
    configuration that a user would copy. searched: length and size of the search. cells: the values of the cell
    fields, the smallest cell first. planned: the cells as they were planned, with their numbers of runs.
    """

    name: str
    study: Study
    axes: Sequence[Axis]
    cell_fields: Sequence[str]
    copied: Mapping[str, float]
    searched: Mapping[str, Any]
    cells: Sequence[tuple[Any, ...]]
    runs: Sequence[LadderRun]
    planned: Sequence[Mapping[str, Any]]

    @property
    def base(self) -> BaseModel:
        return self.study.base

    def data(self) -> Runs:
        """Return the runs as arrays."""
        x = [[axis.coordinate(run.values[axis.path]) for axis in self.axes] for run in self.runs]
        index = {cell: i for i, cell in enumerate(self.cells)}
        return Runs(
            np.array(x, float),
            np.array([run.scale for run in self.runs], float),
            np.array([run.loss for run in self.runs], float),
            np.array([index[run.cell] for run in self.runs]),
        )

    def at(self, cell: tuple[Any, ...]) -> BaseModel:
        """Return the base at a cell."""
        return self.study.configured(dict(zip(self.cell_fields, cell, strict=True)))


def is_ladder(snapshot: Snapshot) -> bool:
    """Return whether a study is a ladder."""
    return LADDER_OF in (snapshot.spec.get("about") or {})


def read_ladder(snapshot: Snapshot) -> Ladder:
    """Return the ladder of a study that `hpo transfer` created, with the runs that are complete so far."""
    study, about = study_from_spec(snapshot.spec, snapshot.name), snapshot.spec["about"]
    fields = tuple(about[CELL_FIELDS])
    axes = axes_of(study.base, study.file.space, dict.fromkeys(fields))
    runs = [run for trial in snapshot.in_state(State.COMPLETE) if (run := _run(snapshot, study, trial, axes, fields))]
    scales = {run.cell: run.scale for run in runs}
    cells = sorted(scales, key=lambda cell: sum(scales[cell]))
    return Ladder(snapshot.name, study, axes, fields, about["copied"], about["searched"], cells, runs, about["cells"])


def _run(
    snapshot: Snapshot, study: Study, trial: Trial, axes: Sequence[Axis], fields: Sequence[str]
) -> LadderRun | None:
    """Return a complete trial as a run, None if its loss is not finite or its values are not valid any more."""
    given = trial.user_attrs.get(FIXED_VALUES, trial.params)
    if not math.isfinite(trial.values[0]):
        return None
    try:
        config = study.configured(given)
    except ValidationError:
        return None
    values = flat(config)
    return LadderRun(
        trial.number,
        {axis.path: float(values[axis.path]) for axis in axes},
        tuple(values[path] for path in fields),
        scale_of(config),
        snapshot.loss(trial),
    )


def ladders_of(store: OpenStorage, search: Snapshot) -> list[Snapshot]:
    """Return the ladders of a search, the latest first."""
    found = []
    for name, study_id in sorted(study_ids(store).items(), key=lambda item: -item[1]):
        about = study_attrs(store, study_id, name).get(SPEC, {}).get("about") or {}
        if about.get(LADDER_OF) in search.names:
            found.append(read_snapshot(store, name))
    return found
