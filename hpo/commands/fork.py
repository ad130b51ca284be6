"""`hpo fork`: create a study that starts with the trials of another study that it would train in the same way."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from hpo.console import command_line
from hpo.errors import Problem
from hpo.optuna_internals.objects import get_study_id
from hpo.queue.budget import delete_slots
from hpo.queue.compatibility import check_data_hash
from hpo.queue.registry import load_stored_study, register_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import describe_data
from hpo.search.asha import as_pruned, is_paused
from hpo.search.space import params_in_range
from hpo.storage.attributes import (
    ARITHMETIC,
    END_REASON,
    FIXED_VALUES,
    FORKED,
    IS_FEASIBLE,
    LIMIT_CONSTRAINTS,
    MACHINE,
    METRICS,
    PROBES,
)
from hpo.storage.locks import creation_lock
from hpo.storage.store import Store
from hpo.storage.studies import study_ids
from hpo.study.comparable import different_measures
from hpo.study.fingerprint import PLACES
from hpo.study.load import load_study
from hpo.study.names import name_problem
from hpo.study.spec import Study
from hpo.study.stored import study_from_spec
from model.section import flat

FROM = "forked_from"  # user attribute of a copied trial: study/number
COPIED = (END_REASON, METRICS, IS_FEASIBLE, MACHINE, PROBES)  # user attributes that a copied trial keeps


def fork_study(
    store: Store, source: str, origin: str, name: str | None, overrides: Sequence[str], trials: int | None
) -> str:
    """Create a study from a file, copy the matching trials of another study, and return lines that say so.

    source: name or path of the study file. origin: name of the study whose trials are copied. name: name of the new
    study, None for the name of the file. trials: budget of the new study, None for the budget of the file.

    Raises:
        Problem: a study of that name exists, or no trial of the other study matches.
    """
    budget = {"trials": trials}
    study = load_study(source, overrides, budget)
    old = load_stored_study(store, origin)
    new = replace(study, name=_new_name(store, study, name))
    data_hash, anchors = describe_data(new.base)
    _check_comparable(old, new, data_hash)
    matching, rejected = matching_trials(old, new)
    if not matching:
        raise Problem(
            f"fork: no finished trial of study {old.study.name} matches {new.source}: "
            f"{_counted(rejected) or 'no trial has finished'}; `hpo launch` of the file starts without copied trials"
        )
    stored = register_study(store, new, data_hash, anchors, budget)
    if resolved := old.optuna.user_attrs.get(ARITHMETIC):  # so that new trials are trained as the copied ones
        stored.optuna.set_user_attr(ARITHMETIC, resolved)
    _copy(stored, matching)
    not_copied = f"; {sum(rejected.values())} not copied: {_counted(rejected)}" if rejected else ""
    n = len(matching) + sum(rejected.values())
    return (
        f"{new.name}: starts with {len(matching)} of the {n} finished trials of {old.study.name}{not_copied}\n"
        f"next: {_next(study.name, new, source, overrides, trials)}"
    )


def _new_name(store: Store, study: Study, name: str | None) -> str:
    """Return the name of the new study.

    Raises:
        Problem: the name has invalid characters, or the storage holds a study of this name.
    """
    new = study.name if name is None else name
    if problem := name_problem(new):
        where = "--as" if name is not None else f"{study.source}: the name of the file"
        raise Problem(f"{where}: {problem}, got {new!r:.60}; give the new study another name with --as")
    if new in study_ids(store):
        raise Problem(f"fork: the storage already holds a study {new!r}; give the new study another name with --as")
    return new


def _check_comparable(old: StoredStudy, new: Study, data_hash: str | None) -> None:
    """Check that trials of both studies are measured in the same way.

    Raises:
        Problem: some keys differ; the message names all of them.
    """
    problems = [
        f"{new.source}: {key}: must be the same as in study {old.study.name}, {old_value!r}, because otherwise their "
        f"trials cannot be compared; got {new_value!r}{_cause(key, old, new)}"
        for key, (old_value, new_value) in different_measures(old.study, new).items()
    ]
    if problems:
        raise Problem(*problems)
    check_data_hash(old.optuna, data_hash)


def _cause(key: str, old: StoredStudy, new: Study) -> str:
    """Return the fields whose values change the number of tokens of a rung, in parentheses; "" for other keys."""
    if key != "tokens of a rung":
        return ""
    before, after = flat(old.study.base), flat(new.base)
    sizes = ("run.tokens", "run.rungs", "run.batch_size", "run.grad_accum", "model.context")
    changed = [f"{path} {before[path]} -> {after[path]}" for path in sizes if before.get(path) != after.get(path)]
    searched = [f"space.{path}" for path in sizes if old.study.file.space.get(path) != new.file.space.get(path)]
    return f" (from {', '.join([*changed, *searched])})" if changed or searched else ""


def matching_trials(old: StoredStudy, new: Study) -> tuple[list[FrozenTrial], Counter[str]]:
    """Return the finished trials of a study as trials of a new study, and the counts of the others by reason."""
    new = study_from_spec(new.spec())  # as workers see it: with every field of its base
    trials = [_ended(trial) for trial in old.optuna.get_trials(deepcopy=False)]
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    copies = [_copy_or_reason(old.study, new, trial) for trial in finished]
    return [c for c in copies if not isinstance(c, str)], Counter(c for c in copies if isinstance(c, str))


def _ended(trial: FrozenTrial) -> FrozenTrial:
    """Return a paused trial as pruned, because its checkpoint belongs to the other study, and any other as it is."""
    if not is_paused(trial):
        return trial
    pruned = as_pruned(trial)
    pruned.user_attrs = {**trial.user_attrs, END_REASON: "pruned"}
    return pruned


def _copy_or_reason(old: Study, new: Study, trial: FrozenTrial) -> FrozenTrial | str:
    """Return a trial as a trial of the new study, or the reason why it does not match."""
    if trial.user_attrs.get(END_REASON) in LIMIT_CONSTRAINTS and old.file.limits != new.file.limits:
        return "ended at a different limit"
    values = trial.user_attrs.get(FIXED_VALUES, trial.params)
    try:
        before = flat(old.configured(values))
        config = new.configured({path: before[path] for path in new.file.space if path in before})
    except ValidationError:
        return "not a valid configuration"
    after = flat(config)
    fields = {**after, **before}.keys() - set(PLACES)  # the hash of the data is compared
    differs = next((path for path in sorted(fields) if after.get(path) != before.get(path)), None)
    if differs is not None:
        return f"different {differs}"
    params = params_in_range(config, new.file.space)
    outside = next((path for path in new.file.space if path in after and path not in params), None)
    if outside is not None:
        return f"{outside} outside its range"
    attrs = {key: trial.user_attrs[key] for key in COPIED if key in trial.user_attrs}
    copy = create_trial(
        state=trial.state,
        values=trial.values,
        params={path: value for path, (value, _) in params.items()},
        distributions={path: kind for path, (_, kind) in params.items()},
        intermediate_values=trial.intermediate_values,
        user_attrs={"kind": FORKED, FROM: f"{old.name}/{trial.number}", **attrs},
        constraints=trial.constraints or None,
    )
    copy.datetime_start, copy.datetime_complete = trial.datetime_start, trial.datetime_complete
    return copy


def _copy(stored: StoredStudy, trials: Sequence[FrozenTrial]) -> None:
    """Write trials to a new study. If that fails, delete the study."""
    study_id = get_study_id(stored.optuna)
    with creation_lock(stored.store.url, stored.store.patience):
        if stored.optuna.get_trials(deepcopy=False):
            raise Problem(f"fork: another process created study {stored.study.name!r} at the same time")
        try:
            for trial in trials:
                stored.store.optuna.create_new_trial(study_id, trial)
        except BaseException:
            _delete(stored)
            raise


def _delete(stored: StoredStudy) -> None:
    delete_slots(stored.slots)
    optuna.delete_study(study_name=stored.study.name, storage=stored.store.optuna)


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())


def _next(stem: str, new: Study, source: str, overrides: Sequence[str], trials: int | None) -> str:
    """Return the command that runs the new study, by its file or by a name that only the storage has."""
    if new.name != stem:
        return command_line("hpo", "launch", "--study", new.name)
    words = ["hpo", "launch", "--study", source, *(word for text in overrides for word in ("--set", text))]
    return command_line(*words, *([] if trials is None else ["--trials", trials]))
