"""The learning curves of a study, as recorded curves that can be replayed."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, TypeAdapter

from hpo.analysis.snapshot import GIVEN_KINDS, Snapshot, trial_status
from hpo.errors import NothingFeasible
from hpo.replay.curves import Array, Curves, base_of_space
from hpo.search.direction import Direction
from hpo.search.ranges import Space
from hpo.storage.attributes import FIXED_VALUES
from hpo.storage.trials import State, Trial
from model.section import flatten

REPLAYED = ("complete", "pruned", "diverged")


def curves_of_study(snapshot: Snapshot, base: BaseModel | None = None) -> Curves:
    """Return the curves of the trials that are complete, pruned or diverged.

    base: the base of the study, None if no sampler will suggest configurations.

    Raises:
        NothingFeasible: no trial has ended.
    """
    space: Space = TypeAdapter(Space).validate_python(snapshot.spec["space"])
    trials = [t for t in snapshot.own if t.state in (State.COMPLETE, State.PRUNED) and t.intermediate_values]
    trials = [t for t in trials if trial_status(snapshot, t) in REPLAYED]
    if not trials:
        raise NothingFeasible(f"study {snapshot.name}: no trial has ended yet; `hpo status` shows the progress")
    stored = flatten(snapshot.spec["base"])
    params = [_params(space, stored, trial) for trial in trials]
    numbers: dict[Any, int] = {}
    config = np.array([numbers.setdefault(tuple(row.items()), len(numbers)) for row in params])
    return Curves(
        name=f"study {snapshot.name}",
        space=space,
        base=base or base_of_space(space),
        params=[params[int(np.flatnonzero(config == c)[0])] for c in range(len(numbers))],
        config=config,
        values=np.array([_losses(trial, snapshot.rungs, snapshot.direction) for trial in trials]),
        rung_tokens=snapshot.rung_tokens or 1.0 / snapshot.rungs,
        direction=snapshot.direction,
        fixed=np.array([snapshot.kind(trial) in GIVEN_KINDS for trial in trials]),
        omitted=Counter(trial_status(snapshot, t) for t in snapshot.own if t not in trials),
    )


def _params(space: Space, base: Mapping[str, Any], trial: Trial) -> Mapping[str, Any]:
    """Return the values of the fields of the space.

    A baseline takes from the base what it does not set, and Optuna does not hold its values outside of the ranges.
    """
    given = trial.user_attrs.get(FIXED_VALUES)
    fields = trial.params if given is None else {**base, **given, **trial.params}
    return {path: fields[path] for path in space if path in fields}


def _losses(trial: Trial, rungs: int, direction: Direction) -> Array:
    """Return the losses at rungs 1 to R: inf from where the trial diverged, NaN where nobody knows."""
    curve = np.full(rungs, np.nan)
    for rung, value in sorted(trial.intermediate_values.items()):
        if 1 <= rung <= rungs:
            curve[rung - 1] = direction.loss(value)
            if not np.isfinite(value):
                curve[rung - 1 :] = np.inf
                break
    return curve
