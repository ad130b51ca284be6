"""Studies and trials as they lie in Optuna's tables, read without Optuna.

`hpo status` answers in half the time for it. The tables are those of Optuna 5; a test compares what is read here
with what Optuna itself reads, on both storages.
"""

import json
import math
from collections.abc import Container
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

import sqlalchemy as sa

from hpo.problems import Problem

Rows = list[Any]


class Opened(Protocol):
    """A storage that is open, to look at or to work with."""

    @property
    def url(self) -> str: ...
    @property
    def patience(self) -> float: ...
    @property
    def engine(self) -> sa.Engine: ...
    @property
    def retry(self) -> Any: ...


class State(StrEnum):
    """Optuna's states of a trial."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "failed"
    WAITING = "waiting"


@dataclass
class Trial:
    """One trial; attributes are named as Optuna names them."""

    number: int
    state: State
    started: datetime | None
    ended: datetime | None
    values: list[float] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    intermediate_values: dict[int, float] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    constraints: dict[str, float] = field(default_factory=dict)

    @property
    def last_step(self) -> int | None:
        return max(self.intermediate_values, default=None)

    @property
    def duration(self) -> timedelta | None:
        return self.ended - self.started if self.started and self.ended else None


def study_ids(at: Opened) -> dict[str, int]:
    """Return the id of each study by name."""
    return {name: study_id for study_id, name in _rows(at, "SELECT study_id, study_name FROM studies")}


def study_attrs(at: Opened, study_id: int) -> dict[str, Any]:
    """Return a study's user attributes."""
    found = _rows(at, "SELECT key, value_json FROM study_user_attributes WHERE study_id = :study", study_id)
    return {key: json.loads(text) for key, text in found}


def trials(at: Opened, study_id: int) -> list[Trial]:
    """Return the trials of a study in the order of their numbers."""
    found = {
        trial_id: Trial(number, State[state], _time(started), _time(ended))
        for trial_id, number, state, started, ended in _rows(at, _TRIALS, study_id)
    }
    for trial_id, value, kind in _of(at, found, "trial_values", "value, value_type", study_id):
        found[trial_id].values.append(_number(value, kind))
    curves = "step, intermediate_value, intermediate_value_type"
    for trial_id, step, value, kind in _of(at, found, "trial_intermediate_values", curves, study_id):
        found[trial_id].intermediate_values[step] = _number(value, kind)
    parameters = "param_name, param_value, distribution_json"
    for trial_id, name, value, text in _of(at, found, "trial_params", parameters, study_id):
        found[trial_id].params[name] = _parameter(value, text)
    for trial_id, key, text in _of(at, found, "trial_user_attributes", "key, value_json", study_id):
        found[trial_id].user_attrs[key] = json.loads(text)
    for trial_id, key, text in _of(at, found, "trial_system_attributes", "key, value_json", study_id):
        if key.startswith("constraints:"):
            found[trial_id].constraints[key.removeprefix("constraints:")] = float(json.loads(text))
    return sorted(found.values(), key=lambda trial: trial.number)


_TRIALS = """
    SELECT trial_id, number, CAST(state AS VARCHAR(16)), datetime_start, datetime_complete
    FROM trials WHERE study_id = :study
"""


def _of(at: Opened, known: Container[int], table: str, columns: str, study_id: int) -> Rows:
    """Return rows of a table that belongs to the trials of a study, the trial's id first, in order of writing.

    A trial that was begun since the list of trials was read is left out.
    """
    named = ", ".join(f"t.{column.strip()}" for column in columns.split(","))
    query = f"SELECT t.trial_id, {named} FROM {table} t JOIN trials ON trials.trial_id = t.trial_id"
    return [row for row in _rows(at, f"{query} WHERE study_id = :study ORDER BY 1, 2", study_id) if row[0] in known]


def _rows(at: Opened, query: str, study_id: int | None = None) -> Rows:
    def read() -> Rows:
        with at.engine.connect() as connection:
            return list(connection.execute(sa.text(query), {} if study_id is None else {"study": study_id}))

    found: Rows = at.retry(read)
    return found


def _number(value: float | None, kind: Any) -> float:
    """Undo Optuna's way to store what SQL has no number for."""
    special = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
    return special[str(kind)] if str(kind) in special else float(value or 0.0)


def _parameter(value: float, text: str) -> Any:
    """Return a parameter as it was suggested: Optuna stores a float, and what it stands for beside it."""
    distribution = json.loads(text)
    match distribution["name"]:
        case "CategoricalDistribution":
            return distribution["attributes"]["choices"][int(value)]
        case "IntDistribution":
            return int(value)
    return float(value)


def _time(found: Any) -> datetime | None:
    return datetime.fromisoformat(found) if isinstance(found, str) else found


def chosen(at: Opened, name: str | None) -> str:
    """Return the name of the study meant: the one asked for, or the only one there is.

    Raises:
        Problem: there is none of that name, or several and none was named.
    """
    have = sorted(study_ids(at))
    listed = f"there are {', '.join(have)}" if have else "`hpo launch` makes one"
    if name is None:
        if len(have) != 1:
            raise Problem(f"--study: the storage holds {len(have)} studies, {listed}; name one")
        return have[0]
    name = name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
    if name not in have:
        raise Problem(f"--study: no study {name!r} in the storage; {listed}")
    return name
