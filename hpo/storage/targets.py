"""Find the trial that reached a target first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpo.optuna_internals.tables import TRIAL_CURVES, TRIAL_USER_ATTRS, TRIALS, attribute_json
from hpo.storage.attributes import FORKED
from hpo.storage.retry import OpenStorage

_curves = TRIAL_CURVES.join(TRIALS, TRIALS.c.trial_id == TRIAL_CURVES.c.trial_id)
_row_id = TRIAL_CURVES.c.trial_intermediate_value_id  # ascends in the order of writing: the lowest is the first


@dataclass(frozen=True)
class TargetReached:
    """The trial and rung at which a study first reached a target.

    rungs: rungs that all trials of the study had trained by then.
    """

    trial: int
    rung: int
    value: float
    rungs: int


def target_reached(store: OpenStorage, study_id: int, value: float, maximize: bool = False) -> bool:
    """Return whether a trial of the study has reached a value of the objective, at any rung.

    maximize: whether a larger objective is better.
    """
    return _first_row(store, study_id, value, maximize) is not None


def targets_reached(
    store: OpenStorage, study_id: int, targets: Mapping[str, float], maximize: bool = False
) -> dict[str, TargetReached]:
    """Return by name how each target was first reached, without the targets that no trial has reached.

    maximize: whether a larger objective is better.
    """
    reached = {}
    for name, value in targets.items():
        first = _first_row(store, study_id, value, maximize)
        if first is not None:
            columns = (TRIALS.c.number, TRIAL_CURVES.c.step, TRIAL_CURVES.c.intermediate_value)
            trial, rung, objective = _row(store, sa.select(*columns).select_from(_curves).where(_row_id == first))
            reached[name] = TargetReached(trial, rung, objective, _rungs_until(store, study_id, first))
    return reached


def _first_row(store: OpenStorage, study_id: int, value: float, maximize: bool) -> int | None:
    """Return the id of the first reported value that reaches a target.

    Runs of the baseline with another seed do not count: they are the same configuration with a different seed.
    """
    reported = TRIAL_CURVES.c.intermediate_value  # NULL for a value that is not finite
    is_good = reported >= value if maximize else reported <= value
    reaches = sa.and_(TRIALS.c.study_id == study_id, is_good, _is_not("seed"))
    (first,) = _row(store, sa.select(sa.func.min(_row_id)).select_from(_curves).where(reaches))
    return None if first is None else int(first)


def _rungs_until(store: OpenStorage, study_id: int, row_id: int) -> int:
    """Return how many rungs the trials of a study had trained when a value was reported; forked trials trained none."""
    before = sa.and_(TRIALS.c.study_id == study_id, _row_id <= row_id, _is_not(FORKED))
    steps = sa.select(sa.func.max(TRIAL_CURVES.c.step).label("steps")).select_from(_curves).where(before)
    trained = steps.group_by(TRIAL_CURVES.c.trial_id).subquery()
    (rungs,) = _row(store, sa.select(sa.func.coalesce(sa.func.sum(trained.c.steps), 0)))
    return int(rungs)


def _is_not(kind: str) -> sa.ColumnElement[bool]:
    """Return the condition that a trial is not of this kind."""
    attribute = TRIAL_USER_ATTRS.c
    return ~sa.exists().where(
        attribute.trial_id == TRIALS.c.trial_id, attribute.key == "kind", attribute.value_json == attribute_json(kind)
    )


def _row(store: OpenStorage, statement: sa.Select[Any]) -> Any:
    def read() -> Any:
        with store.engine.connect() as connection:
            return connection.execute(statement).one()

    return store.retry(read)
