"""Recognise a study by its uid: after it was renamed, while it runs, and when its slots are lost."""

import json
import shlex

import sqlalchemy as sa

from hpo.errors import Problem, WorkFailed
from hpo.optuna_internals.tables import FINISHED, RUNNING, TRIAL_USER_ATTRS, TRIALS, WAITING, state_name
from hpo.queue.inspect import SKIPPED, SlotTable
from hpo.storage.attributes import FIXED_VALUES, PAUSED
from hpo.storage.retry import OpenStorage
from hpo.storage.schema import EVENT, SLOT, insert_event
from hpo.storage.studies import names_of_uid, study_ids
from hpo.storage.trial_rows import set_trial_states, trials_with_attr
from hpo.storage.trials import State, Trial, read_trials

_c = SLOT.c


def find_slots(store: OpenStorage, study_id: int, uid: str) -> SlotTable:
    """Return the slots of a study for reading, also those of a renamed study that no launch has continued yet."""
    slots = SlotTable(store, study_id, uid)
    former = _former_id(slots)
    return slots if former is None else SlotTable(store, former)


def follow_renamed(slots: SlotTable, name: str) -> str:
    """Give a renamed study its slots and events back; return a note, or "" if the study was not renamed.

    Optuna's dashboard renames a study by copying its trials into a new study, so the ids of study and trials change.
    The user attributes stay: the uid of the study, and the slot of each trial. Leases end, because no write of their
    workers finds its slot any more.

    Raises:
        Problem: the study is a copy of another study that still exists.
    """
    former = _former_id(slots)
    if former is None:
        return ""
    if original := names_of_uid(slots.store, slots.uid).get(former):
        raise Problem(
            f"study {name}: is a copy of study {original}, and only {original} can be continued; "
            f"`hpo fork` creates a study with the trials of {original}, or delete {original} to continue the copy"
        )
    slots.transact(lambda connection: _move_slots(connection, slots, former, name))
    return f"study {name}: was renamed; it continues with all of its trials, in the run folder that it has"


def _former_id(slots: SlotTable) -> int | None:
    """Return the id under which the slots of a study are, None if they are under its own id or nowhere."""
    if not slots.uid or slots.run(sa.select(_c.slot).where(slots.of_study).limit(1)):
        return None
    elsewhere = sa.select(_c.study_id).where(_c.study_uid == slots.uid, _c.study_id != slots.study_id).limit(1)
    rows = slots.run(elsewhere)
    return int(rows[0][0]) if rows else None


def _move_slots(connection: sa.Connection, slots: SlotTable, former: int, name: str) -> None:
    slots.lock(connection)
    stale = sa.and_(_c.study_id == slots.study_id, _c.study_uid != slots.uid)  # of a deleted study with the same id
    connection.execute(sa.delete(SLOT).where(stale))
    of_former = sa.and_(_c.study_id == former, _c.study_uid == slots.uid)
    leases = connection.execute(sa.select(_c.slot, _c.attempt, _c.owner).where(of_former, _c.state == "leased")).all()
    connection.execute(sa.update(SLOT).where(of_former).values(study_id=slots.study_id))
    connection.execute(sa.update(EVENT).where(EVENT.c.study_id == former).values(study_id=slots.study_id))
    _link_trials(connection, slots)
    for slot, attempt, owner in leases:
        lease = {"study_id": slots.study_id, "slot": slot, "attempt": attempt, "owner": owner}
        connection.execute(insert_event(slots.clock, "lost", "the study was renamed", **lease))
    connection.execute(insert_event(slots.clock, "renamed", f"to {name}", study_id=slots.study_id))


def _link_trials(connection: sa.Connection, slots: SlotTable) -> None:
    """Store in each slot the id of its trial. A slot is done or paused only if its trial was when it was copied."""
    trials = {slot: (trial_id, state) for slot, trial_id, state in _trials_by_slot(connection, slots.study_id)}
    waiting = [trial_id for trial_id, state in trials.values() if state == WAITING]
    paused = set(trials_with_attr(connection, waiting, PAUSED))
    started = sa.or_(_c.trial_id.is_not(None), _c.state.not_in(("free", SKIPPED)))
    rows = connection.execute(sa.select(_c.slot, _c.state).where(slots.of_study, started)).all()
    states = dict.fromkeys(trials, "free") | dict(map(tuple, rows))
    values = []
    for slot, state in states.items():
        trial_id, trial_state = trials.get(slot, (None, ""))
        is_done = state == "done" and trial_state in FINISHED
        to = "done" if is_done else "paused" if trial_id in paused else "free"
        values.append({"row": slot, "id": trial_id, "to": to})
    if values:
        one = sa.and_(_c.study_id == slots.study_id, _c.slot == sa.bindparam("row"))
        update = sa.update(SLOT).where(one).values(trial_id=sa.bindparam("id"), state=sa.bindparam("to"))
        connection.execute(update, values)
    running = [trial_id for trial_id, state in trials.values() if state == RUNNING]
    set_trial_states(connection, running, RUNNING, WAITING)


def _trials_by_slot(connection: sa.Connection, study_id: int) -> list[tuple[int, int, str]]:
    """Return (slot, trial id, state) of each trial that a worker of the study created."""
    attrs = TRIAL_USER_ATTRS.c
    joined = TRIALS.join(TRIAL_USER_ATTRS, attrs.trial_id == TRIALS.c.trial_id)
    query = sa.select(attrs.value_json, TRIALS.c.trial_id, state_name()).select_from(joined)
    rows = connection.execute(query.where(TRIALS.c.study_id == study_id, attrs.key == "slot"))
    return [(int(json.loads(text)), trial_id, state) for text, trial_id, state in rows]


def lost_slots(slots: SlotTable) -> list[int]:
    """Return the slots of trials that the study has, but whose rows are missing in the table of slots."""
    trials = slots.transact(lambda connection: _trials_by_slot(connection, slots.study_id))
    if not trials:
        return []
    existing = {slot for (slot,) in slots.run(sa.select(_c.slot).where(slots.of_study, _c.trial_id.is_not(None)))}
    return sorted({slot for slot, _, _ in trials} - existing)


def check_slots(slots: SlotTable, name: str) -> None:
    """Check that every trial of a study has its slot; otherwise its budget would be run a second time.

    Raises:
        Problem: slots are missing.
    """
    if n := len(lost_slots(slots)):
        raise Problem(
            f"study {name}: {n} of its trials have lost their slots, the rows of the table hpo_slot, so that these "
            "trials would run again; `hpo doctor --fix` restores the slots from the trials"
        )


def restore_slots(slots: SlotTable) -> None:
    """Create the missing slots of a study's trials from the attributes of these trials."""
    missing = set(lost_slots(slots))
    rows = []
    for trial in read_trials(slots.store, slots.study_id):
        attrs = trial.user_attrs
        if attrs.get("slot") not in missing:
            continue
        fixed = attrs.get(FIXED_VALUES)
        rows.append(
            {
                "study_id": slots.study_id,
                "study_uid": slots.uid,
                "slot": attrs["slot"],
                "kind": attrs["kind"],
                "state": _state_of(trial),
                "attempt": attrs.get("attempt", 1),
                "trial_id": attrs.trial_id,
                "fixed": None if fixed is None else json.dumps(fixed),
                "origin": attrs.get("retry_of"),
                "rungs": trial.last_step or 0,
            }
        )

    def write(connection: sa.Connection) -> None:
        slots.lock(connection)
        for row in rows:
            connection.execute(sa.delete(SLOT).where(_c.study_id == slots.study_id, _c.slot == row["slot"]))
        connection.execute(sa.insert(SLOT), rows)
        unfinished = [row["trial_id"] for row in rows if row["state"] == "free"]
        set_trial_states(connection, unfinished, RUNNING, WAITING)

    if rows:
        slots.transact(write)


def _state_of(trial: Trial) -> str:
    """Return the state of the slot of a trial that no worker holds."""
    if trial.state.name in FINISHED:
        return "done"
    return "paused" if trial.state == State.WAITING and PAUSED in trial.user_attrs else "free"


def gone_problem(slots: SlotTable, name: str) -> WorkFailed | None:
    """Return the error of a study that was deleted or renamed while it ran, None if it still exists."""
    names = names_of_uid(slots.store, slots.uid)
    if slots.study_id in names:
        return None
    if names:
        new = next(iter(names.values()))
        return WorkFailed(
            f"study {name}: was renamed to {new!r} while it ran; no reported value is lost, and "
            f"`hpo launch --study {shlex.quote(new)}` continues the study"
        )
    again = name in study_ids(slots.store)
    return WorkFailed(
        f"study {name}: was deleted while it ran"
        + (", and another study was created under this name; workers of the deleted study end" if again else "")
    )
