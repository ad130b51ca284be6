"""Trials of other programs: rows of a CSV file and studies of Optuna, as parameters and a value."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from hpo.config.validation import nearest
from hpo.config.yaml import parse_value
from hpo.errors import Problem
from hpo.foreign.optuna_database import NoTables, open_database
from hpo.storage.url import masked_url

# What Optuna's data frames and W&B's tables put before the names of parameters
PREFIXES = ("params_", "params.", "config.", "config/", "config_")
VALUES = ("value", "values_0", "objective")  # columns of the result, after the name of the objective itself
FINISHED = ("complete", "completed", "finished", "terminated", "done", "success", "")


class ForeignTrial(NamedTuple):
    """A finished trial of another program. origin: where it is there, such as `row 3`."""

    values: dict[str, Any]
    result: float
    origin: str


@dataclass(frozen=True)
class ForeignTrials:
    """Trials of another program, and how many others it has by the reason why they are left out."""

    source: str
    trials: Sequence[ForeignTrial]
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Sequence[str] = ()


def read_csv(path: Path, fields: Sequence[str], objective: str, renamed: Mapping[str, str]) -> ForeignTrials:
    """Return the trials of a CSV file with one row per trial.

    fields: parameters of the study. renamed: column -> parameter or objective.

    Raises:
        Problem: the file cannot be read, or it has no column of the objective or of a parameter.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: cannot be read as CSV: {error}") from None
    columns = {str(column): _field(str(column), fields, renamed) for column in table.columns}
    result = _result_column(path, columns, fields, objective)
    state = next((column for column in columns if column.lower() in ("state", "status")), None)
    used = {column: name for column, name in columns.items() if name in fields}
    trials, left_out = [], Counter[str]()
    for i, row in enumerate(table.to_dict("records")):
        number = _number(row[result])
        if state is not None and str(row[state]).lower().rpartition(".")[2] not in FINISHED:
            left_out[f"with state {str(row[state]).lower()}"] += 1
        elif number is None:
            left_out["without a finite value"] += 1
        else:
            values = {name: parse_value(row[column]) for column, name in used.items() if row[column] != ""}
            trials.append(ForeignTrial(values, number, f"row {i + 2}"))
    extra = [column for column in columns if column not in (*used, result, state)]
    notes = [f"{path}: not used: {', '.join(extra)}"] if extra else []
    return ForeignTrials(path.name, trials, left_out, notes)


def _result_column(path: Path, columns: Mapping[str, str], fields: Sequence[str], objective: str) -> str:
    """Return the column of the results. columns: column -> its name in the study.

    Raises:
        Problem: there is no such column, or none of a parameter.
    """
    theirs = {name: column for column, name in columns.items()}
    result = next((theirs[name] for name in (objective, *VALUES) if name in theirs), None)
    if result is None:
        raise Problem(
            f"{path}: must have a column {objective} or value with the results, got {', '.join(columns)}"
            f"{nearest(objective, columns)}; --rename COLUMN={objective} names it"
        )
    if missing := [name for name in fields if name not in theirs]:
        raise Problem(
            *(
                f"{path}: must have a column {name}{nearest(name.rpartition('.')[2], columns)}; "
                f"--rename COLUMN={name} names it"
                for name in missing
            )
        )
    return result


def _field(column: str, fields: Sequence[str], renamed: Mapping[str, str]) -> str:
    """Return the name in the study for a column: renamed, or without the prefix of another program."""
    if column in renamed:
        return renamed[column]
    plain = next((column.removeprefix(p) for p in PREFIXES if column.startswith(p) and column not in fields), column)
    return renamed.get(plain, plain)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def open_optuna(url: str, name: str | None) -> optuna.Study:
    """Return a study of Optuna, from the URL of its database or the file of its journal. Nothing is written.

    Raises:
        Problem: there is no such storage or study.
    """
    storage = _open_storage(url)
    try:
        names = optuna.get_all_study_names(storage)
    except Exception as error:
        raise Problem(f"{masked_url(url)}: cannot be read as an Optuna storage: {_reason(error)}") from None
    if name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in names:
        got = "" if name is None else f", got {name!r}{nearest(name, names)}"
        raise Problem(
            f"--from-study: must be one of the studies {', '.join(map(repr, names)) or 'of the storage'}{got}"
        )
    return optuna.load_study(study_name=name, storage=storage)


def _open_storage(url: str) -> optuna.storages.BaseStorage:
    path = Path(url.removeprefix("journal://").removeprefix("sqlite:///"))
    if "://" in str(url) and not url.startswith(("journal://", "sqlite:///")):
        return _opened(url, lambda: open_database(url))
    if not path.is_file():
        raise Problem(f"{url}: no such file")
    with path.open("rb") as file:
        is_sqlite = file.read(15) == b"SQLite format 3"
    if not is_sqlite:
        return _opened(url, lambda: optuna.storages.JournalStorage(JournalFileBackend(str(path))))
    return _opened(url, lambda: open_database(f"sqlite:///file:{path.absolute()}?mode=ro&uri=true"))


def _opened(url: str, make: Callable[[], optuna.storages.BaseStorage]) -> optuna.storages.BaseStorage:
    try:
        return make()
    except NoTables as error:
        raise Problem(f"{masked_url(url)}: {error}") from None
    except Exception as error:
        raise Problem(f"{masked_url(url)}: cannot be opened as an Optuna storage: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def optuna_trials(study: optuna.Study, fields: Sequence[str], renamed: Mapping[str, str], source: str) -> ForeignTrials:
    """Return the complete trials of a study of Optuna.

    Raises:
        Problem: the study has several objectives.
    """
    if len(study.directions) > 1:
        raise Problem(f"{source}: study {study.study_name!r} must have one objective, got {len(study.directions)}")
    trials, left_out = [], Counter[str]()
    for trial in study.get_trials(deepcopy=False):
        if trial.state != TrialState.COMPLETE:
            left_out[f"with state {trial.state.name.lower()}"] += 1
        elif trial.value is None or not math.isfinite(trial.value):
            left_out["without a finite value"] += 1
        else:
            values = {renamed.get(name, name): value for name, value in trial.params.items()}
            trials.append(ForeignTrial(values, trial.value, f"trial {trial.number}"))
    found = {name for trial in trials for name in trial.values}
    if trials and (missing := [name for name in fields if name not in found]):
        others = found - set(fields)
        raise Problem(
            *(f"{source}: no trial has the parameter {name}{nearest(name.rpartition('.')[2], others)}; "
              f"--rename THEIRS={name} names it, one of {', '.join(sorted(others)) or 'none'}" for name in missing)
        )  # fmt: skip
    return ForeignTrials(study.study_name, trials, left_out)


def space_of(study: optuna.Study) -> dict[str, Any]:
    """Return the ranges of the trials of a study of Optuna, as the space of a study file. The last trial decides."""
    space: dict[str, Any] = {}
    for trial in study.get_trials(deepcopy=False):
        space |= {name: _entry(kind) for name, kind in trial.distributions.items()}
    return space


def _entry(kind: BaseDistribution) -> dict[str, Any]:
    if isinstance(kind, CategoricalDistribution):
        return {"choices": list(kind.choices)}
    assert isinstance(kind, IntDistribution | FloatDistribution)
    log = {"log": True} if kind.log else {}
    is_default = kind.step is None or (kind.step == 1 and isinstance(kind, IntDistribution))
    step = {} if is_default else {"step": kind.step}
    return {"low": kind.low, "high": kind.high, **log, **step}
