"""The point around which a ladder is designed: the minimum of a surface fitted to the trials of the search."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ValidationError

from hpo.analysis.export import configuration
from hpo.analysis.snapshot import Snapshot
from hpo.storage.trials import State
from hpo.study.spec import Study, seed_path
from hpo.transfer.fields import BATCH, Axis
from hpo.transfer.fit import estimate
from hpo.transfer.laws import Runs
from hpo.transfer.prediction import fit_runs
from hpo.transfer.scale import scale_of
from model.section import flat

MIN_TRIALS, MAX_TRIALS = 8, 100  # the time of a fit grows with the number of trials; bad ones add little


def fitted_center(snapshot: Snapshot, search: Study, copied: BaseModel, axes: Sequence[Axis]) -> dict[str, float]:
    """Return the values of the axes at which a surface fitted to the complete trials of a search is lowest.

    The best trial of a search is the lowest of many noisy losses, so its values are far from the optimum more often
    than those of a fit to many of them. Only trials that equal the copied configuration in all other fields count, and
    of these the best MAX_TRIALS. With fewer than MIN_TRIALS of them, the result is the copied configuration.

    copied: the configuration that a user would copy.
    """
    fields = flat(copied)
    values = {axis.path: float(fields[axis.path]) for axis in axes}
    runs = _trials(snapshot, search, copied, axes)
    if len(runs.y) < MIN_TRIALS:
        return values
    x = estimate(fit_runs(copied, axes, runs), runs.s[0]).x
    return {axis.path: _inside(axis, float(c)) for axis, c in zip(axes, x, strict=True)}


def _trials(snapshot: Snapshot, search: Study, copied: BaseModel, axes: Sequence[Axis]) -> Runs:
    """Return the best complete trials that differ from the copied configuration in axes and seeds only.

    Where both factors of the batch are searched, the batch of a trial is expressed with the copied accumulation.
    """
    free = {*(axis.path for axis in axes), seed_path(copied)}
    both = set(BATCH) <= search.file.space.keys()
    free |= set(BATCH) if both else set()
    found = []
    for trial in snapshot.in_state(State.COMPLETE):
        try:
            fields = flat(configuration(search, trial))
        except ValidationError:
            continue
        if both:
            fields |= {BATCH[0]: fields[BATCH[0]] * fields[BATCH[1]] / flat(copied)[BATCH[1]]}
        same = _fixed(fields, free) == _fixed(flat(copied), free)
        if same and math.isfinite(trial.values[0]) and all(axis.holds(fields[axis.path]) for axis in axes):
            found.append((snapshot.loss(trial), [axis.coordinate(fields[axis.path]) for axis in axes]))
    found = sorted(found)[:MAX_TRIALS]
    n, losses = len(found), np.array([loss for loss, _ in found], float)
    s = np.tile(np.array(scale_of(copied)), (n, 1))
    return Runs(np.array([x for _, x in found], float).reshape(n, len(axes)), s, losses, np.zeros(n, int))


def _fixed(fields: Mapping[str, object], free: set[str | None]) -> dict[str, object]:
    return {path: value for path, value in fields.items() if path not in free}


def _inside(axis: Axis, coordinate: float) -> float:
    """Return the value at a coordinate, at most at the end of the searched range."""
    return min(max(float(axis.value(coordinate)), axis.low), axis.high)
