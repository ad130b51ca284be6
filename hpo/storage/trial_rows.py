"""Write rows of Optuna's trials in a transaction of hpo, together with the slot of the trial."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from hpo.optuna_internals.tables import (
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    attribute_json,
    finite_value,
    trial_state,
)

_a = TRIAL_USER_ATTRS.c


def read_attr(connection: sa.Connection, trial_id: int, key: str) -> Any:
    """Return a user attribute of a trial, None if the trial does not have it."""
    text = connection.scalar(sa.select(_a.value_json).where(_a.trial_id == trial_id, _a.key == key))
    return None if text is None else json.loads(text)


def trials_with_attr(connection: sa.Connection, trial_ids: Sequence[int], key: str) -> Sequence[int]:
    """Return those of the trials that have a user attribute."""
    return connection.scalars(sa.select(_a.trial_id).where(_a.trial_id.in_(trial_ids), _a.key == key)).all()


def write_attr(connection: sa.Connection, trial_id: int, key: str, value: Any) -> None:
    """Set a user attribute of a trial."""
    delete_attr(connection, trial_id, key)
    row = {"trial_id": trial_id, "key": key, "value_json": attribute_json(value)}
    connection.execute(sa.insert(TRIAL_USER_ATTRS).values(row))


def delete_attr(connection: sa.Connection, trial_id: int, key: str) -> None:
    """Remove a user attribute of a trial, which Optuna has no method for."""
    connection.execute(sa.delete(TRIAL_USER_ATTRS).where(_a.trial_id == trial_id, _a.key == key))


def set_trial_states(connection: sa.Connection, trial_ids: Sequence[int | None], before: str, after: str) -> None:
    """Change the state of Optuna's trials from `before` to `after`; a trial in a third state stays as it is."""
    ids = [trial_id for trial_id in trial_ids if trial_id is not None]
    if ids:
        matching = sa.and_(TRIALS.c.trial_id.in_(ids), TRIALS.c.state == trial_state(before))
        connection.execute(sa.update(TRIALS).where(matching).values(state=trial_state(after)))


def finish_as_pruned(connection: sa.Connection, trial_id: int, before: str, value: float, at: datetime) -> bool:
    """Change the state of a trial from `before` to PRUNED with a value; return False if it is in another state.

    at: when it ended, in local time, as Optuna stores times.
    """
    matching = sa.and_(TRIALS.c.trial_id == trial_id, TRIALS.c.state == trial_state(before))
    values = {"state": trial_state("PRUNED"), "datetime_complete": at}
    if not connection.execute(sa.update(TRIALS).where(matching).values(values)).rowcount:
        return False
    row = {"trial_id": trial_id, "objective": 0, "value": value, "value_type": finite_value()}
    connection.execute(sa.insert(TRIAL_VALUES).values(row))
    return True
