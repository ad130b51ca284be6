"""What a person wants of a running study, written into the storage; workers read it at their next rung."""

import uuid

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from hpo.analysis.snapshot import Snapshot, find, read_snapshot, word
from hpo.errors import Problem
from hpo.queue.heartbeat import LEASE_S
from hpo.queue.slots import Claim, Slots
from hpo.storage.attributes import ATTEMPTS, END_REASON, METRICS, SPEC, STUDY_STATE
from hpo.storage.fencing import LeaseLost, fenced
from hpo.storage.store import Store
from hpo.storage.trials import State, Trial, resolve_study_name, study_attrs, study_ids

EVENTS = {"active": "resumed", "paused": "paused", "stopped": "stopped"}  # state of a study -> word of the event


def turn(store: Store, name: str | None, state: str, because: str = "") -> str:
    """Make a study active, paused or stopped; return what that means for its workers.

    Raises:
        Problem: there is no such study.
    """
    name = resolve_study_name(store, name)
    study_id = study_ids(store)[name]
    attrs = study_attrs(store, study_id)
    if SPEC not in attrs:
        raise Problem(f"--study: {name!r} was not made by `hpo launch`")
    before = attrs.get(STUDY_STATE, "active")
    if before == state:
        return f"{name}: is {state} already"
    slots = Slots(store, study_id)
    slots.log(EVENTS[state], because)  # before what workers make of it
    store.optuna.set_study_user_attr(study_id, STUDY_STATE, state)
    return f"{name}: {_meaning(name, before, state, slots)}"


def _meaning(name: str, before: str, state: str, slots: Slots) -> str:
    if not slots.n_unfinished():
        return f"{state}; all of its trials have ended"
    n = sum(lease.seconds > 0 for lease in slots.owners())
    held = f"the {n} trials that run are given back within one rung" if n else "no trial runs"
    match state:
        case "paused":
            return f"paused; {held}, and its workers wait; `hpo resume --study {name}` goes on"
        case "stopped":
            return f"stopped; {held}, and its workers leave; `hpo launch` of it goes on"
    if before == "paused":
        return f"active; waiting workers go on within seconds; where none waits: hpo worker --study {name}"
    return f"active; its workers have left, and others may join: hpo worker --study {name}"


def kill(store: Store, name: str | None, number: int) -> str:
    """End a trial as failed: one that runs at its next rung, one that nobody holds at once.

    Raises:
        Problem: there is no such trial, or it has ended.
    """
    snapshot = read_snapshot(store, name)
    trial = find(snapshot, number)
    slot = trial.user_attrs.get("slot")
    slots = Slots(store, study_ids(store)[snapshot.name])
    if trial.state not in (State.RUNNING, State.WAITING) or slot is None:
        raise _ended(snapshot, trial)
    if not slots.request_action(slot, "kill"):
        now = read_snapshot(store, snapshot.name)  # it has ended since
        raise _ended(now, find(now, number))
    owner = f"kill:{uuid.uuid4().hex[:8]}"
    claim = slots.take(slot, owner, LEASE_S)
    if claim is None:
        return f"trial {number}: is ended as killed within one rung"
    _end(store, slots, claim, owner)
    return f"trial {number}: ended as killed; it was interrupted, at rung {trial.last_step or 0} of {snapshot.rungs}"


def _ended(snapshot: Snapshot, trial: Trial) -> Problem:
    return Problem(
        f"trial {trial.number}: must be running or interrupted to be killed; in study {snapshot.name} it is {word(snapshot, trial)}"
    )


def _end(store: Store, slots: Slots, claim: Claim, owner: str) -> None:
    """Tell a trial that nobody trains as killed, then close its slot."""
    assert claim.trial_id is not None
    attrs = {METRICS: {}, END_REASON: "killed", ATTEMPTS: slots.attempts(claim.slot)}
    last = store.optuna.get_trial(claim.trial_id).last_step or 0
    try:
        with fenced(slots.held(claim, owner)):
            for key, value in attrs.items():
                store.optuna.set_trial_user_attr(claim.trial_id, key, value)
            store.optuna.set_trial_state_values(claim.trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        pass  # its worker told its end, but had not closed its slot
    except LeaseLost:
        return  # this process slept for longer than a lease; whoever goes on with the trial finds the wish
    slots.done(claim, owner, last, "killed")
