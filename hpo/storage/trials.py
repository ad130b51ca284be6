"""Studies and trials as they lie in Optuna's tables, read without Optuna.

`hpo status` answers in half the time for it. The tables are those of Optuna 5; a test compares what is read here
with what Optuna itself reads, on both storages.

Of every trial is read what a list of trials needs. Parameters, curves and the longer attributes, nine tenths of a
long study, are read when somebody asks for them.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from hpo.errors import Problem
from hpo.storage.attributes import SPEC
from hpo.storage.retry import OpenStorage

Rows = list[Any]


class State(StrEnum):
    """Optuna's states of a trial."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "failed"
    WAITING = "waiting"


@dataclass
class Trial:
    """One trial, to be looked at while its storage is open; attributes are named as Optuna names them."""

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
    """The user attributes of one trial: those of `LISTED` are known, the others are read when asked for."""

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
ALONE = 4  # trials of which one table is read one by one; who asks for more looks through them all


class Details:
    """What is read of a study's trials on demand."""

    def __init__(self, store: OpenStorage, study_id: int) -> None:
        def lazy(table: str, columns: str, pair: Callable[..., tuple[Any, Any]]) -> "_Lazy":
            return _Lazy(lambda trial_id: _of(store, table, columns, study_id, trial_id), pair)

        self.params = lazy("trial_params", "param_name, param_value, distribution_json", _parameter)
        self.attrs = lazy("trial_user_attributes", "key, value_json", _attribute)
        self.curves = lazy("trial_intermediate_values", "step, intermediate_value, intermediate_value_type", _point)


class _Lazy:
    """One table: called with a trial's id, returns its rows as a mapping."""

    def __init__(self, read: Callable[[int | None], Rows], pair: Callable[..., tuple[Any, Any]]) -> None:
        self.read, self.pair = read, pair
        self.found: dict[int, dict[Any, Any]] = {}
        self.whole = False

    def __call__(self, trial_id: int) -> dict[Any, Any]:
        if trial_id not in self.found and not self.whole:
            self.whole = len(self.found) >= ALONE
            kept = dict(self.found)
            for owner, *row in self.read(None if self.whole else trial_id):
                if owner not in kept:
                    key, value = self.pair(*row)
                    self.found.setdefault(owner, {})[key] = value
        return self.found.setdefault(trial_id, {})


def study_ids(store: OpenStorage) -> dict[str, int]:
    """Return the id of each study by name."""
    return {name: study_id for study_id, name in _rows(store, "SELECT study_id, study_name FROM studies")}


def study_attrs(store: OpenStorage, study_id: int) -> dict[str, Any]:
    """Return a study's user attributes."""
    found = _rows(store, "SELECT key, value_json FROM study_user_attributes WHERE study_id = :study", study=study_id)
    return {key: json.loads(text) for key, text in found}


def read_trials(store: OpenStorage, study_id: int) -> list[Trial]:
    """Return the trials of a study in the order of their numbers."""
    details = Details(store, study_id)
    found = {
        trial_id: Trial(number, State[state], _time(started), _time(ended), Attributes(trial_id, details))
        for trial_id, number, state, started, ended in _rows(store, _TRIALS, study=study_id)
    }
    # A trial that was begun since the list was read is left out.
    for trial_id, value, kind in _of(store, "trial_values", "value, value_type", study_id):
        if trial_id in found:
            found[trial_id].values.append(_number(value, kind))
    for trial_id, step in _rows(store, _LAST_STEPS, study=study_id):
        if trial_id in found:
            found[trial_id].last_step = step
    for trial_id, key, text in _rows(store, _LISTED, study=study_id):
        if trial_id in found:
            found[trial_id].user_attrs.listed[key] = json.loads(text)
    for trial_id, key, text in _rows(store, _CONSTRAINTS, study=study_id):
        if trial_id in found:
            found[trial_id].constraints[key.removeprefix("constraints:")] = float(json.loads(text))
    return sorted(found.values(), key=lambda trial: trial.number)


_TRIALS = """
    SELECT trial_id, number, CAST(state AS VARCHAR(16)), datetime_start, datetime_complete
    FROM trials WHERE study_id = :study
"""
_LAST_STEPS = """
    SELECT t.trial_id, MAX(t.step) FROM trial_intermediate_values t JOIN trials ON trials.trial_id = t.trial_id
    WHERE study_id = :study GROUP BY t.trial_id
"""
_LISTED = f"""
    SELECT t.trial_id, t.key, t.value_json FROM trial_user_attributes t JOIN trials ON trials.trial_id = t.trial_id
    WHERE study_id = :study AND t.key IN {LISTED}
"""
_CONSTRAINTS = """
    SELECT t.trial_id, t.key, t.value_json FROM trial_system_attributes t JOIN trials ON trials.trial_id = t.trial_id
    WHERE study_id = :study AND t.key LIKE 'constraints:%'
"""


def _of(store: OpenStorage, table: str, columns: str, study_id: int, trial_id: int | None = None) -> Rows:
    """Return rows of a table that belongs to the trials of a study, of one or of all, the trial's id first."""
    named = ", ".join(f"t.{column.strip()}" for column in columns.split(","))
    query = f"SELECT t.trial_id, {named} FROM {table} t JOIN trials ON trials.trial_id = t.trial_id"
    query += " WHERE study_id = :study" + ("" if trial_id is None else " AND t.trial_id = :trial")
    named_ids = {"study": study_id} | ({} if trial_id is None else {"trial": trial_id})
    return _rows(store, f"{query} ORDER BY 1, 2", **named_ids)


def _rows(store: OpenStorage, query: str, **named: int) -> Rows:
    def read() -> Rows:
        with store.engine.connect() as connection:
            return list(connection.execute(sa.text(query), named))

    found: Rows = store.retry(read)
    return found


def _number(value: float | None, kind: Any) -> float:
    """Undo Optuna's way to store what SQL has no number for."""
    special = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
    return special[str(kind)] if str(kind) in special else float(value or 0.0)


def _point(step: int, value: float | None, kind: Any) -> tuple[int, float]:
    return step, _number(value, kind)


def _attribute(key: str, text: str) -> tuple[str, Any]:
    return key, json.loads(text)


def _parameter(name: str, value: float, text: str) -> tuple[str, Any]:
    """Return a parameter as it was suggested: Optuna stores a float, and what it stands for beside it."""
    kind, choices = _distribution(text)
    match kind:
        case "CategoricalDistribution":
            return name, choices[int(value)]
        case "IntDistribution":
            return name, int(value)
    return name, float(value)


@functools.lru_cache
def _distribution(text: str) -> tuple[str, list[Any]]:
    """Return name and choices of a distribution; those of all trials are mostly the same few."""
    found = json.loads(text)
    return found["name"], found["attributes"].get("choices", [])


def _time(found: Any) -> datetime | None:
    return datetime.fromisoformat(found) if isinstance(found, str) else found


def resolve_study_name(store: OpenStorage, name: str | None) -> str:
    """Return the name of the study meant: the one asked for, or the only search that there is.

    What was made for another study, such as its confirmation, is meant only by its name.

    Raises:
        Problem: there is none of that name, or several and none was named.
    """
    have = sorted(study_ids(store))
    listed = f"there are {', '.join(have)}" if have else "`hpo launch` makes one"
    if name is None:
        searches = have if len(have) == 1 else [n for n in have if not _made_for(store, n)]
        if len(searches) != 1:
            raise Problem(f"--study: the storage holds {len(have)} studies, {listed}; name one")
        return searches[0]
    name = name.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
    if name not in have:
        raise Problem(f"--study: no study {name!r} in the storage; {listed}")
    return name


def _made_for(store: OpenStorage, name: str) -> bool:
    spec = study_attrs(store, study_ids(store)[name]).get(SPEC, {})
    return bool(spec.get("about"))
