"""A new study that begins with those trials of another one that it would train alike."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from hpo.errors import Problem
from hpo.optuna_internals import get_study_id
from hpo.queue.budget import delete_slots
from hpo.queue.registry import StoredStudy, check_data_hash, load_stored_study, register_study
from hpo.runs.datasets import describe_data
from hpo.search.space import held
from hpo.storage.attributes import END_REASON, FIXED_VALUES, FORKED, IS_FEASIBLE, LIMIT_CONSTRAINTS, MACHINE, METRICS
from hpo.storage.locks import creation_lock
from hpo.storage.store import Store
from hpo.storage.trials import study_ids
from hpo.study.load import load_study
from hpo.study.spec import NAME, Study, from_spec
from model.section import flat

FROM = "forked_from"  # user attribute of one: study/number
CARRIED = (END_REASON, METRICS, IS_FEASIBLE, MACHINE)  # what else it keeps


def fork(store: Store, source: str, origin: str, name: str | None, overrides: Sequence[str], trials: int | None) -> str:
    """Make a study from a file, with the trials of another one that fit it; return what was done.

    origin: name of that study. name: of the new one, else that of the file. trials: its budget, else the file's.

    Raises:
        Problem: there is a study of that name, or no trial of the other one fits.
    """
    budget = {"trials": trials}
    study = load_study(source, overrides, budget)
    old = load_stored_study(store, origin)
    new = replace(study, name=_new_name(store, study, name))
    data_hash, anchors = describe_data(new.base)
    _check_comparable(old, new, data_hash)
    fit, others = sorted_out(old, new)
    if not fit:
        raise Problem(
            f"fork: no finished trial of study {old.study.name} is one of {new.source}: "
            f"{_counted(others) or 'it has none yet'}; `hpo launch` of the file begins without"
        )
    stored = register_study(store, new, data_hash, anchors, budget)
    _carry(stored, fit)
    left_out = f"; {sum(others.values())} left out: {_counted(others)}" if others else ""
    n = len(fit) + sum(others.values())
    return (
        f"{new.name}: begins with {len(fit)} of the {n} finished trials of {old.study.name}{left_out}\n"
        f"next: {_next(study.name, new, source, overrides, trials)}"
    )


def _new_name(store: Store, study: Study, name: str | None) -> str:
    """Return the name of the new study.

    Raises:
        Problem: it is no name, or taken.
    """
    if name is not None and (not NAME.fullmatch(name) or name.endswith((".yaml", ".yml"))):
        raise Problem(
            f"--as: must be a name of letters, digits, '-', '_' and '.', such as {study.name}-2, got {name!r}"
        )
    new = name or study.name
    if new in study_ids(store):
        raise Problem(
            f"fork: the storage holds a study {new!r} already; give the new one a name with --as, or its file"
        )
    return new


def _check_comparable(old: StoredStudy, new: Study, data_hash: str | None) -> None:
    """Refuse a study whose results are measured otherwise.

    Raises:
        Problem: naming every key that differs.
    """
    have, here = old.study, new
    pairs = {
        "train": (have.file.train, here.file.train),
        "config": (have.file.config, here.file.config),
        "objective": (have.file.objective, here.file.objective),
        "rungs": (have.rungs, here.rungs),
        "tokens of a rung": (have.rung_tokens, here.rung_tokens),
    }
    problems = [
        f"{new.source}: {key}: must be that of study {have.name}, {before!r}, or their trials cannot be compared, "
        f"got {after!r}"
        for key, (before, after) in pairs.items()
        if before != after
    ]
    if problems:
        raise Problem(*problems)
    check_data_hash(old.optuna, data_hash)


def sorted_out(old: StoredStudy, new: Study) -> tuple[list[FrozenTrial], Counter[str]]:
    """Return the finished trials of a study as rows of a new one, and the others, counted by reason."""
    new = from_spec(new.spec())  # as workers see it: every field of its base is given
    found = old.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    rows = [_row(old.study, new, trial) for trial in found]
    return [row for row in rows if not isinstance(row, str)], Counter(row for row in rows if isinstance(row, str))


def _row(old: Study, new: Study, trial: FrozenTrial) -> FrozenTrial | str:
    """Return a trial as a row of a new study, or why it is none."""
    if trial.user_attrs.get(END_REASON) in LIMIT_CONSTRAINTS and old.file.limits != new.file.limits:
        return "ended at another limit"
    given = trial.user_attrs.get(FIXED_VALUES, trial.params)
    try:
        before = flat(old.configured(given))
        config = new.configured({path: before[path] for path in new.file.space if path in before})
    except ValidationError:
        return "not a valid configuration"
    after = flat(config)
    differs = next((path for path in {**after, **before} if after.get(path) != before.get(path)), None)
    if differs is not None:
        return f"another {differs}"
    params = held(config, new.file.space)
    outside = next((path for path in new.file.space if path in after and path not in params), None)
    if outside is not None:
        return f"{outside} outside its range"
    kept = {key: trial.user_attrs[key] for key in CARRIED if key in trial.user_attrs}
    row = create_trial(
        state=trial.state,
        values=trial.values,
        params={path: value for path, (value, _) in params.items()},
        distributions={path: kind for path, (_, kind) in params.items()},
        intermediate_values=trial.intermediate_values,
        user_attrs={"kind": FORKED, FROM: f"{old.name}/{trial.number}", **kept},
        constraints=trial.constraints or None,
    )
    row.datetime_start, row.datetime_complete = trial.datetime_start, trial.datetime_complete
    return row


def _carry(stored: StoredStudy, rows: Sequence[FrozenTrial]) -> None:
    """Write rows into a study that was just made; where that fails, the study is gone again."""
    study_id = get_study_id(stored.optuna)
    with creation_lock(stored.store.url, stored.store.patience):
        if stored.optuna.get_trials(deepcopy=False):
            raise Problem(f"fork: another process made study {stored.study.name!r} at the same moment")
        try:
            for row in rows:
                stored.store.optuna.create_new_trial(study_id, row)
        except BaseException:
            _remove(stored)
            raise


def _remove(stored: StoredStudy) -> None:
    delete_slots(stored.slots)
    optuna.delete_study(study_name=stored.study.name, storage=stored.store.optuna)


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())


def _next(stem: str, new: Study, source: str, overrides: Sequence[str], trials: int | None) -> str:
    """Return what to type to run the new study: by its file, or by a name that only the storage has."""
    if new.name != stem:
        return shlex.join(["hpo", "launch", "--study", new.name])
    words = ["hpo", "launch", "--study", source, *(word for text in overrides for word in ("--set", text))]
    return shlex.join(words + ([] if trials is None else ["--trials", str(trials)]))
