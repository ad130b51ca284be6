"""Trials that a person adds beside the budget: a failed one tried again, a configuration of one's own."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel

from hpo.analysis.snapshot import Snapshot, find, read_snapshot, word
from hpo.config.overrides import assignments, overridden
from hpo.console import as_text
from hpo.errors import Problem
from hpo.queue.budget import ADDED, add_slots
from hpo.queue.registry import load_stored_study
from hpo.queue.slots import Slots
from hpo.search.ranges import inside
from hpo.search.space import applies, field_type
from hpo.storage.attributes import FIXED_VALUES, STUDY_STATE
from hpo.storage.locks import creation_lock
from hpo.storage.retry import transact
from hpo.storage.schema import SLOT
from hpo.storage.store import Store
from hpo.storage.trials import State, Trial, study_attrs, study_ids
from hpo.study.checks import FIXED
from hpo.study.spec import DEFAULT_CONFIG, Study
from model.data.corpus_base import TRAINING_FIELDS
from model.section import flat

AGAIN = ("oom", "timeout", "diverged", "invalid")  # ends of pruned trials that another try may mend

_c = SLOT.c


class ByHand(NamedTuple):
    """A slot that a person added beside the budget."""

    kind: str
    state: str
    fixed: str | None
    origin: int | None
    trial_id: int | None


def again(store: Store, name: str | None, number: int | None, failed: bool) -> list[str]:
    """Add a slot with the parameters of a trial that failed, or of each that did; return what was done.

    Raises:
        Problem: there is no such trial, its result stands, or it is being tried again already.
    """
    if (number is None) != failed:
        raise Problem("retry: must have either the number of a trial or --failed")
    with creation_lock(store.url, store.patience):  # or two at once would both find no earlier try
        snapshot = read_snapshot(store, name)
        slots = Slots(store, study_ids(store)[snapshot.name])
        tried = {row.origin: row for row in by_hand(slots) if row.kind == "retry"}  # the last try of each
        if number is None:
            # A try that failed too is in the list by itself.
            wanted = [t for t in snapshot.in_state(State.FAIL) if t.number not in tried and not _unknown(snapshot, t)]
        else:
            wanted = [_retriable(snapshot, find(snapshot, number), tried)]
        add_slots(slots, [("retry", _parameters(t), t.number) for t in wanted])
    if not wanted:
        return [f"{snapshot.name}: has no failed trial to try again"]
    told = [f"trial {t.number}: is tried again as a new trial, beside the budget, before the search" for t in wanted]
    return told + waits(store, snapshot, slots)


def _retriable(snapshot: Snapshot, trial: Trial, tried: dict[int | None, ByHand]) -> Trial:
    """Return a trial that may be tried again.

    Raises:
        Problem: it may not.
    """
    ended, n = word(snapshot, trial), trial.number
    if trial.state in (State.RUNNING, State.WAITING):
        raise Problem(f"trial {n}: must have ended to be tried again; it is {ended}")
    if trial.state == State.COMPLETE or (trial.state == State.PRUNED and ended not in AGAIN):
        raise Problem(f"trial {n}: must have failed to be tried again; it is {ended}, and its result stands")
    if n in tried and tried[n].state != "done":
        raise Problem(f"trial {n}: is being tried again already; that try has not ended")
    if missing := _unknown(snapshot, trial):
        raise Problem(f"trial {n}: must have parameters to be tried again; it ended before it had {', '.join(missing)}")
    return trial


def _parameters(trial: Trial) -> dict[str, Any]:
    return dict(trial.user_attrs.get(FIXED_VALUES, trial.params))


def _unknown(snapshot: Snapshot, trial: Trial) -> list[str]:
    """Return the parameters of every trial that this one ended without; those of a component may not apply."""
    space = snapshot.spec["space"]
    every = [path for path in space if path.endswith(".name") or f"{path.rpartition('.')[0]}.name" not in space]
    return [] if FIXED_VALUES in trial.user_attrs else [path for path in every if path not in trial.params]


def enqueue(store: Store, name: str | None, overrides: Sequence[str]) -> list[str]:
    """Add a slot with a configuration of the user's own, which may be pruned; return what was done.

    Raises:
        Problem: it is no configuration, one that the study may not train, or enqueued already.
    """
    stored = load_stored_study(store, name)
    if stored.study.file.arms is not None:
        raise Problem(
            f"enqueue: study {stored.study.name} has arms, which are all that is run; write a file with another arm"
        )
    values, config = asked(stored.study, overrides)
    with creation_lock(store.url, store.patience):  # as in `again`
        earlier = [row for row in by_hand(stored.slots) if row.kind == "enqueued" and row.state != "done"]
        if any(stored.study.configured(json.loads(row.fixed or "{}")) == config for row in earlier):
            raise Problem("--set: the same configuration is enqueued already, and has not ended")
        add_slots(stored.slots, [("enqueued", values, None)])
        ahead = sum(row.state == "free" and row.trial_id is None for row in by_hand(stored.slots)) - 1
    said = ", ".join(f"{path}={as_text(value)}" for path, value in values.items())
    place = f"behind {ahead} others that were added by hand" if ahead else "first of those added by hand"
    told = [f"{stored.study.name}: enqueued {said}, beside the budget, {place}, before the search"]
    told += [
        f"{line}; it runs, but the sampler does not learn from that value" for line in outside(stored.study, config)
    ]
    return told + waits(store, read_snapshot(store, stored.study.name), stored.slots)


def asked(study: Study, overrides: Sequence[str]) -> tuple[dict[str, Any], BaseModel]:
    """Return the values of --set and the configuration that they make of the base.

    Raises:
        Problem: they make none, or one whose trial could not be compared with the others.
    """
    values = assignments(overrides)
    if not values:
        raise Problem("--set: must be given at least once, such as --set optimizer.lr=3e-4")
    sections = [
        key
        for key, v in values.items()
        if isinstance(v, dict) and isinstance(getattr(study.base, key, None), BaseModel)
    ]
    if sections:
        raise Problem(*(f"--set {key}: must be a dotted field, such as {key}.name, got a mapping" for key in sections))
    config = overridden(study.base, overrides)
    before, after = flat(study.base), flat(config)
    reasons = [(path, _incomparable(study, path)) for path in after if before.get(path) != after[path]]
    problems = [
        f"--set {path}: must be left out, since trials of different {why} cannot be compared; "
        "put it in the file of another study"
        for path, why in reasons
        if why
    ]
    if problems:
        raise Problem(*problems)
    return values, config


def _incomparable(study: Study, path: str) -> str:
    """Return what makes trials that differ in a field incomparable, "" where nothing does."""
    section, _, leaf = path.partition(".")
    if study.file.config != DEFAULT_CONFIG or {path, f"{section}.name"} & study.file.space.keys():
        return ""
    if section == "tokenizer" or (section == "data" and leaf not in TRAINING_FIELDS):
        return {"tokenizer": "tokenizers", "data": "data"}[section]
    return FIXED.get(path, "")


def outside(study: Study, config: BaseModel) -> list[str]:
    """Return which values of a configuration lie outside the ranges of the space."""
    found = []
    for path, entry in study.file.space.items():
        if applies(config, path):
            value = flat(config)[path]
            if not inside(entry.distribution(field_type(config, path)), value):
                found.append(f"{path}={as_text(value)} lies outside the range of the space")
    return found


def by_hand(slots: Slots) -> list[ByHand]:
    """Return the slots that were added beside the budget, in their order."""
    columns = (_c.kind, _c.state, _c.fixed, _c.origin, _c.trial_id)
    added = sa.select(*columns).where(_c.study_id == slots.study_id, _c.slot >= ADDED).order_by(_c.slot)
    return [ByHand(*row) for row in transact(slots.store, lambda connection: connection.execute(added).all())]


def waits(store: Store, snapshot: Snapshot, slots: Slots) -> list[str]:
    """Return what keeps a slot that was just added from being run, each with its remedy."""
    state = study_attrs(store, slots.study_id).get(STUDY_STATE, "active")
    found = [] if state == "active" else [f"the study is {state}: hpo resume --study {snapshot.name}"]
    hours, tokens = snapshot.budget.get("hours"), snapshot.budget.get("tokens")
    if hours and snapshot.elapsed >= 3600 * float(hours):
        found.append(f"its {hours:g} hours are over: `hpo launch` with larger --hours begins it")
    if tokens and snapshot.rung_tokens and slots.rungs() + snapshot.rungs > math.ceil(tokens / snapshot.rung_tokens):
        found.append(f"its {tokens:,} tokens pay for no further trial: `hpo launch` with a larger budget begins it")
    if snapshot.target is not None:
        found.append(
            f"its target {snapshot.target} is reached: `hpo launch` with another budget.target in its file begins it"
        )
    if not any(lease.seconds > 0 for lease in slots.owners()):
        found.append(
            f"no worker trains at the moment; where none waits: hpo launch, or hpo worker --study {snapshot.name}"
        )
    return found
