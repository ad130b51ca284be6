"""Which trial reached a target first, read from the storage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpo.storage.retry import OpenStorage

# Rows of rungs are numbered as they are written, so that the lowest number is the first in time. The baseline with
# another seed reaches nothing: it is the same configuration with more luck.
_FIRST = """
    SELECT MIN(v.trial_intermediate_value_id)
    FROM trial_intermediate_values v JOIN trials t ON t.trial_id = v.trial_id
    WHERE t.study_id = :study AND v.intermediate_value <= :value AND NOT EXISTS (
        SELECT 1 FROM trial_user_attributes a
        WHERE a.trial_id = t.trial_id AND a.key = 'kind' AND a.value_json = '"seed"'
    )
"""


_WHERE = """
    SELECT t.number, v.step, v.intermediate_value
    FROM trial_intermediate_values v JOIN trials t ON t.trial_id = v.trial_id
    WHERE v.trial_intermediate_value_id = :id
"""


_UNTIL = """
    SELECT COALESCE(SUM(steps), 0) FROM (
        SELECT MAX(v.step) AS steps FROM trial_intermediate_values v JOIN trials t ON t.trial_id = v.trial_id
        WHERE t.study_id = :study AND v.trial_intermediate_value_id <= :id AND NOT EXISTS (
            SELECT 1 FROM trial_user_attributes a
            WHERE a.trial_id = t.trial_id AND a.key = 'kind' AND a.value_json = '"forked"'
        )
        GROUP BY v.trial_id
    ) AS trained
"""


@dataclass(frozen=True)
class TargetReached:
    """The rung at which a study first came to a target, and the rungs that all its trials had trained by then."""

    trial: int
    rung: int
    value: float
    rungs: int


def target_reached(store: OpenStorage, study_id: int, value: float) -> bool:
    """Return whether a trial of the study has come to a value of the objective, at any rung."""
    return _one(store, _FIRST, study=study_id, value=value)[0] is not None


def targets_reached(store: OpenStorage, study_id: int, targets: Mapping[str, float]) -> dict[str, TargetReached]:
    """Return by name how each target was reached first; those that were not are left out."""
    found = {}
    for name, value in targets.items():
        (first,) = _one(store, _FIRST, study=study_id, value=value)
        if first is not None:
            (rungs,) = _one(store, _UNTIL, study=study_id, id=first)
            trial, rung, objective = _one(store, _WHERE, id=first)
            found[name] = TargetReached(trial, rung, objective, int(rungs))
    return found


def _one(store: OpenStorage, query: str, **named: float) -> Any:
    def read() -> Any:
        with store.engine.connect() as connection:
            return connection.execute(sa.text(query), named).one()

    return store.retry(read)
