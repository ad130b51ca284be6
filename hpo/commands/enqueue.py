"""`hpo retry` and `hpo enqueue`: add trials to a study in addition to its budget."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel

from hpo.analysis.probes import full_rungs
from hpo.analysis.snapshot import Snapshot, find_trial, read_snapshot, trial_status
from hpo.config.overrides import apply_overrides, parse_overrides
from hpo.console import command_line, format_value
from hpo.errors import Problem
from hpo.queue.budget import ADDED, add_slots
from hpo.queue.registry import load_stored_study
from hpo.queue.slots import Slots
from hpo.search.ranges import is_inside
from hpo.search.space import applies, field_type
from hpo.storage.attributes import FIXED_VALUES, STUDY_STATE
from hpo.storage.locks import creation_lock
from hpo.storage.retry import transact
from hpo.storage.schema import SLOT
from hpo.storage.store import Store
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import State, Trial
from hpo.study.comparable import incomparable_reason
from hpo.study.spec import DEFAULT_CONFIG, Study
from model.section import flat

RETRIABLE = ("oom", "timeout", "diverged", "invalid")  # ends of pruned trials that a retry may avoid

_c = SLOT.c


class AddedSlot(NamedTuple):
    """A slot, the place of one trial in the study's queue, that a user added in addition to the budget."""

    kind: str
    state: str
    fixed: str | None
    origin: int | None
    trial_id: int | None


def retry_trials(store: Store, name: str | None, number: int | None, failed: bool) -> list[str]:
    """Add a slot with the parameters of a failed trial, or of every failed trial, and return lines that say so.

    Raises:
        Problem: there is no such trial, the trial has a valid result, or a retry of the trial has not ended.
    """
    if (number is None) != failed:
        raise Problem("retry: must have either the number of a trial or --failed")
    with creation_lock(store.url, store.patience):  # otherwise two calls at the same time would both add a retry
        snapshot = read_snapshot(store, name)
        slots = Slots(store, study_ids(store)[snapshot.name], snapshot.uid)
        retries = {slot.origin: slot for slot in added_slots(slots) if slot.kind == "retry"}  # the last of each trial
        if number is None:
            # A failed retry is a failed trial of its own.
            failures = [t for t in snapshot.in_state(State.FAIL) if t.number not in retries]
            trials = [t for t in failures if not _missing_parameters(snapshot, t)]
        else:
            trials = [_retriable(snapshot, find_trial(snapshot, number), retries)]
        add_slots(slots, [("retry", _parameters(t), t.number) for t in trials])
    if not trials:
        return [f"{snapshot.name}: no failed trial is left to retry"]
    lines = [f"trial {t.number}: runs again as a new trial, in addition to the budget" for t in trials]
    return lines + obstacles(store, snapshot, slots)


def _retriable(snapshot: Snapshot, trial: Trial, retries: dict[int | None, AddedSlot]) -> Trial:
    """Return a trial that may be retried.

    Raises:
        Problem: the trial may not be retried.
    """
    state, n = trial_status(snapshot, trial), trial.number
    if trial.state in (State.RUNNING, State.WAITING):
        raise Problem(f"trial {n}: must have ended to be retried; it is {state}")
    if trial.state == State.COMPLETE or (trial.state == State.PRUNED and state not in RETRIABLE):
        raise Problem(f"trial {n}: must have failed to be retried; it is {state}, and its result is valid")
    if n in retries and retries[n].state != "done":
        raise Problem(f"trial {n}: must have no unfinished retry; its last retry has not ended")
    if missing := _missing_parameters(snapshot, trial):
        raise Problem(
            f"trial {n}: must have all parameters to be retried; it ended before {', '.join(missing)} had a value"
        )
    return trial


def _parameters(trial: Trial) -> dict[str, Any]:
    return dict(trial.user_attrs.get(FIXED_VALUES, trial.params))


def _missing_parameters(snapshot: Snapshot, trial: Trial) -> list[str]:
    """Return the parameters of the space that a trial has no value of.

    A parameter of a component, such as an optimizer, counts only if the component is not searched: it may not apply.
    """
    space = snapshot.spec["space"]
    always = [path for path in space if path.endswith(".name") or f"{path.rpartition('.')[0]}.name" not in space]
    return [] if FIXED_VALUES in trial.user_attrs else [path for path in always if path not in trial.params]


def enqueue_trial(store: Store, name: str | None, overrides: Sequence[str]) -> list[str]:
    """Add a slot with parameters that the user chooses, and return lines that say so. The pruner may stop the trial.

    Raises:
        Problem: the parameters make no valid configuration, the study may not train the configuration, or it waits in
            the queue already.
    """
    stored = load_stored_study(store, name)
    if stored.study.file.arms is not None:
        raise Problem(
            f"enqueue: must be used with a search; study {stored.study.name} has arms, and runs only those; "
            "write a study file with another arm"
        )
    values, config = chosen_config(stored.study, overrides)
    with creation_lock(store.url, store.patience):  # as in `retry_trials`
        waiting = [slot for slot in added_slots(stored.slots) if slot.kind == "enqueued" and slot.state != "done"]
        if any(stored.study.configured(json.loads(slot.fixed or "{}")) == config for slot in waiting):
            raise Problem(
                "--set: must differ from every enqueued configuration; this one is enqueued and has not ended"
            )
        add_slots(stored.slots, [("enqueued", values, None)])
        ahead = sum(slot.state == "free" and slot.trial_id is None for slot in added_slots(stored.slots)) - 1
    parameters = ", ".join(f"{path}={format_value(value)}" for path, value in values.items())
    position = f"after {ahead} other added trials" if ahead else "next"
    lines = [f"{stored.study.name}: enqueued {parameters}, in addition to the budget; it runs {position}"]
    lines += [
        f"note: {path}={format_value(value)} is outside the range of the space; "
        "the trial runs, but the sampler does not use the value"
        for path, value in outside_space(stored.study, config).items()
    ]
    return lines + obstacles(store, read_snapshot(store, stored.study.name), stored.slots)


def chosen_config(study: Study, overrides: Sequence[str]) -> tuple[dict[str, Any], BaseModel]:
    """Return the values of --set, and the base of the study with these values.

    Raises:
        Problem: the configuration is not valid, or its trial could not be compared with the others.
    """
    values = parse_overrides(overrides)
    if not values:
        raise Problem("--set: must be given at least once, for example --set optimizer.lr=3e-4")
    sections = [
        key
        for key, v in values.items()
        if isinstance(v, dict) and isinstance(getattr(study.base, key, None), BaseModel)
    ]
    if sections:
        raise Problem(*(f"--set {key}: must be a dotted field, such as {key}.name, got a mapping" for key in sections))
    config = apply_overrides(study.base, overrides)
    before, after = flat(study.base), flat(config)
    differences = [(path, _incomparable(study, path)) for path in after if before.get(path) != after[path]]
    problems = [
        f"--set {path}: must be omitted, because trials with different {difference} cannot be compared; "
        "put it in the file of another study"
        for path, difference in differences
        if difference
    ]
    if problems:
        raise Problem(*problems)
    return values, config


def _incomparable(study: Study, path: str) -> str:
    """Return what makes trials with different values of a field incomparable, "" for a field that may differ."""
    section = path.partition(".")[0]
    if study.file.config != DEFAULT_CONFIG or {path, f"{section}.name"} & study.file.space.keys():
        return ""
    return incomparable_reason(path, study.file.objective)


def outside_space(study: Study, config: BaseModel) -> dict[str, Any]:
    """Return the values of a configuration that are outside the ranges of the space, by path."""
    values = {path: flat(config)[path] for path in study.file.space if applies(config, path)}
    ranges = {path: study.file.space[path].distribution(field_type(config, path)) for path in values}
    return {path: value for path, value in values.items() if not is_inside(ranges[path], value)}


def added_slots(slots: Slots) -> list[AddedSlot]:
    """Return the slots that users added in addition to the budget, in the order of the queue."""
    columns = (_c.kind, _c.state, _c.fixed, _c.origin, _c.trial_id)
    query = sa.select(*columns).where(slots.of_study, _c.slot >= ADDED).order_by(_c.slot)
    return [AddedSlot(*row) for row in transact(slots.store, lambda connection: connection.execute(query).all())]


def obstacles(store: Store, snapshot: Snapshot, slots: Slots) -> list[str]:
    """Return one line for each reason why an added slot does not run now, with the remedy."""
    state = study_attrs(store, slots.study_id).get(STUDY_STATE, "active")
    lines = (
        []
        if state == "active"
        else [f"the study is {state}; to continue: {command_line('hpo', 'resume', '--study', snapshot.name)}"]
    )
    hours, tokens = snapshot.budget.get("hours"), snapshot.budget.get("tokens")
    if hours and snapshot.elapsed >= 3600 * float(hours):
        lines.append(f"the budget of {hours:g} hours is used up; `hpo launch` with larger --hours starts the trial")
    needed = slots.rungs() + full_rungs(snapshot) if tokens and snapshot.rung_tokens else 0
    if tokens and snapshot.rung_tokens and needed > math.ceil(tokens / snapshot.rung_tokens):
        lines.append(
            f"the budget of {tokens:,} tokens has no room for another trial; "
            "`hpo launch` with a larger budget starts the trial"
        )
    if snapshot.target is not None:
        lines.append(
            f"the target {snapshot.target} is reached; "
            "`hpo launch` with another budget.target in the study file starts the trial"
        )
    if not any(lease.seconds > 0 for lease in slots.owners()):
        worker = command_line("hpo", "worker", "--study", snapshot.name)
        lines.append(f"no worker is training; if none is waiting: hpo launch, or {worker}")
    return lines
