"""Read studies and trials from Optuna's tables without importing Optuna.

`hpo status` takes half the time this way. A test compares the result with what Optuna itself reads, on SQLite and
Postgres. `read_trials` reads only what a list of trials shows. Parameters, curves and long attributes are nine tenths
of a long study; they are read when they are first used.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from hpo.optuna_internals.tables import (
    CONSTRAINT_PREFIX,
    TRIAL_CURVES,
    TRIAL_PARAMS,
    TRIAL_SYSTEM_ATTRS,
    TRIAL_USER_ATTRS,
    TRIAL_VALUES,
    TRIALS,
    state_name,
    stored_number,
    stored_parameter,
)
from hpo.storage.retry import OpenStorage

Rows = list[Any]


class State(StrEnum):
    """State of a trial: Optuna's name in the tables -> the word that hpo prints."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "failed"
    WAITING = "waiting"


@dataclass
class Trial:
    """A trial, readable while its storage is open. Attributes have the names of optuna.trial.FrozenTrial."""

    number: int
    state: State
    started: datetime | None
    ended: datetime | None
    user_attrs: "Attributes"
    values: list[float] = field(default_factory=list)
    constraints: dict[str, float] = field(default_factory=dict)
    last_step: int | None = None

    @property
    def params(self) -> dict[str, Any]:
        return self.user_attrs.details.params(self.user_attrs.trial_id)

    @property
    def intermediate_values(self) -> dict[int, float]:
        return self.user_attrs.details.curves(self.user_attrs.trial_id)

    @property
    def duration(self) -> timedelta | None:
        return self.ended - self.started if self.started and self.ended else None


class Attributes(Mapping[str, Any]):
    """The user attributes of a trial. `LISTED` are read with the list of trials, the others on first use."""

    def __init__(self, trial_id: int, details: "Details") -> None:
        self.trial_id, self.details = trial_id, details
        self.listed: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self.listed[key] if key in LISTED else self.details.attrs(self.trial_id)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.details.attrs(self.trial_id))

    def __len__(self) -> int:
        return len(self.details.attrs(self.trial_id))


LISTED = ("slot", "kind", "retried", "hpo:ended")
N_SINGLE_READS = 4  # trials read one by one from a table; the next read loads all trials of the study


class Details:
    """Parameters, attributes and curves of a study's trials, read on first use."""

    def __init__(self, store: OpenStorage, study_id: int) -> None:
        def lazy(table: sa.TableClause, columns: str, pair: Callable[..., tuple[Any, Any]]) -> "_LazyTable":
            return _LazyTable(lambda trial_ids: _rows_of_trials(store, table, columns, study_id, trial_ids), pair)

        self.params = lazy(
            TRIAL_PARAMS,
            "param_name, param_value, distribution_json",
            lambda name, value, distribution: (name, stored_parameter(value, distribution)),
        )
        self.attrs = lazy(TRIAL_USER_ATTRS, "key, value_json", lambda key, text: (key, json.loads(text)))
        self.curves = lazy(
            TRIAL_CURVES,
            "step, intermediate_value, intermediate_value_type",
            lambda step, value, value_type: (step, stored_number(value, value_type)),
        )


class _LazyTable:
    """A table of trials. A call with a trial's id returns the rows of this trial as a mapping."""

    def __init__(self, read: Callable[[Sequence[int] | None], Rows], pair: Callable[..., tuple[Any, Any]]) -> None:
        """Create the table; nothing is read yet.

        read: returns the rows of some trials, or of all trials for None. pair: turns a row into key and value.
        """
        self.read, self.pair = read, pair
        self.mappings: dict[int, dict[Any, Any]] = {}
        self.complete = False

    def __call__(self, trial_id: int) -> dict[Any, Any]:
        if trial_id not in self.mappings and not self.complete:
            self.complete = len(self.mappings) >= N_SINGLE_READS
            self.load(None if self.complete else [trial_id])
        return self.mappings.setdefault(trial_id, {})

    def load(self, trial_ids: Sequence[int] | None) -> None:
        """Read the rows of some trials, or of all trials for None, with one query."""
        known = set(self.mappings)
        for owner, *row in self.read(trial_ids):
            if owner not in known:
                key, value = self.pair(*row)
                self.mappings.setdefault(owner, {})[key] = value
        for trial_id in trial_ids or ():
            self.mappings.setdefault(trial_id, {})


def read_trials(store: OpenStorage, study_id: int) -> list[Trial]:
    """Return the trials of a study in the order of their numbers."""
    details = Details(store, study_id)
    columns = (TRIALS.c.trial_id, TRIALS.c.number, state_name(), TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
    trials = {
        trial_id: Trial(number, State[state], started, ended, Attributes(trial_id, details))
        for trial_id, number, state, started, ended in query_rows(store, sa.select(*columns).where(_of_study(study_id)))
    }
    # The queries below can return rows of a trial that was created after the first query; these rows are left out.
    for trial_id, value, value_type in _rows_of_trials(store, TRIAL_VALUES, "value, value_type", study_id):
        if trial_id in trials:
            trials[trial_id].values.append(stored_number(value, value_type))
    for trial_id, step in _last_steps(store, study_id):
        if trial_id in trials:
            trials[trial_id].last_step = step
    listed = TRIAL_USER_ATTRS.c.key.in_(LISTED)
    for trial_id, key, text in _rows_of_trials(store, TRIAL_USER_ATTRS, "key, value_json", study_id, where=listed):
        if trial_id in trials:
            trials[trial_id].user_attrs.listed[key] = json.loads(text)
    is_constraint = TRIAL_SYSTEM_ATTRS.c.key.startswith(CONSTRAINT_PREFIX)
    constraints = _rows_of_trials(store, TRIAL_SYSTEM_ATTRS, "key, value_json", study_id, where=is_constraint)
    for trial_id, key, text in constraints:
        if trial_id in trials:
            trials[trial_id].constraints[key.removeprefix(CONSTRAINT_PREFIX)] = float(json.loads(text))
    return sorted(trials.values(), key=lambda trial: trial.number)


def load_details(trials: Sequence[Trial]) -> None:
    """Read parameters, curves and attributes of some trials of one study with one query for each table.

    Otherwise the fifth trial of which one of them is used makes the study read those of all its trials.
    """
    if trials:
        details, trial_ids = trials[0].user_attrs.details, [t.user_attrs.trial_id for t in trials]
        for table in (details.params, details.attrs, details.curves):
            table.load([i for i in trial_ids if i not in table.mappings])


def _of_study(study_id: int) -> sa.ColumnElement[bool]:
    return TRIALS.c.study_id == study_id


def _last_steps(store: OpenStorage, study_id: int) -> Rows:
    """Return (trial id, last step) of each trial that has reported a value."""
    joined = TRIAL_CURVES.join(TRIALS, TRIALS.c.trial_id == TRIAL_CURVES.c.trial_id)
    columns = (TRIAL_CURVES.c.trial_id, sa.func.max(TRIAL_CURVES.c.step))
    statement = sa.select(*columns).select_from(joined).where(_of_study(study_id)).group_by(TRIAL_CURVES.c.trial_id)
    return query_rows(store, statement)


def _rows_of_trials(
    store: OpenStorage,
    table: sa.TableClause,
    columns: str,
    study_id: int,
    trial_ids: Sequence[int] | None = None,
    where: sa.ColumnElement[bool] | None = None,
) -> Rows:
    """Return rows of a table that belong to some trials or to all trials of a study, with the trial's id first."""
    selected = [table.c.trial_id, *(table.c[column.strip()] for column in columns.split(","))]
    joined = table.join(TRIALS, TRIALS.c.trial_id == table.c.trial_id)
    statement = sa.select(*selected).select_from(joined).where(_of_study(study_id)).order_by(*selected[:2])
    if trial_ids is not None:
        statement = statement.where(table.c.trial_id.in_(trial_ids))
    if where is not None:
        statement = statement.where(where)
    return query_rows(store, statement)


def query_rows(store: OpenStorage, statement: sa.Select[Any]) -> Rows:
    def read() -> Rows:
        with store.engine.connect() as connection:
            return list(connection.execute(statement))

    rows: Rows = store.retry(read)
    return rows
