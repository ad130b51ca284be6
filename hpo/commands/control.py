"""`hpo pause`, `resume`, `stop` and `kill`: requests in the storage that workers read at their next rung."""

import uuid

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from hpo.analysis.snapshot import Snapshot, find_trial, read_snapshot, trial_status
from hpo.console import command_line
from hpo.errors import Problem
from hpo.queue.heartbeat import lease_seconds
from hpo.queue.inspect import unregistered_problem
from hpo.queue.slots import Claim, Slots
from hpo.storage.attributes import ATTEMPTS, END_REASON, METRICS, SPEC, STUDY_STATE, UID
from hpo.storage.fencing import LeaseLost, fenced
from hpo.storage.store import Store
from hpo.storage.studies import resolve_study_name, study_attrs, study_ids
from hpo.storage.trials import State, Trial

STATE_EVENTS = {"active": "resumed", "paused": "paused", "stopped": "stopped"}  # state of a study -> type of the event


def set_study_state(store: Store, name: str | None, state: str, reason: str = "") -> str:
    """Make a study active, paused or stopped, and return a line that says what its workers will do.

    name: None for the only study of the storage. reason: text that is stored with the event.

    Raises:
        Problem: there is no such study, or the reason is not valid text.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in reason):  # bytes of the command line that are not UTF-8
        raise Problem(f"--because: must be text in UTF-8, got {reason!r}")
    name = resolve_study_name(store, name)
    study_id = study_ids(store)[name]
    attrs = study_attrs(store, study_id)
    if SPEC not in attrs:
        raise unregistered_problem(store, name, study_id, attrs)
    before = attrs.get(STUDY_STATE, "active")
    if before == state:
        return f"{name}: is already {state}"
    slots = Slots(store, study_id, attrs.get(UID, ""))
    slots.log(STATE_EVENTS[state], reason)  # first, so that the history shows it before the events of the workers
    n = sum(lease.seconds > 0 for lease in slots.owners())  # counted before the workers can react
    store.optuna.set_study_user_attr(study_id, STUDY_STATE, state)
    return f"{name}: {_consequence(name, before, state, slots, n)}"


def _consequence(name: str, before: str, state: str, slots: Slots, n: int) -> str:
    """Return what a change of the state of a study has as a consequence. n: number of running trials before it."""
    if not slots.n_unfinished() and not slots.paused():
        return f"{state}; all of its trials have ended"
    requeued = f"its workers requeue {n} running trial{'s' if n > 1 else ''} within one rung"
    match state:
        case "paused":
            effect = f"{requeued} and wait" if n else "no trial is running"
            return f"paused; {effect}; `{_command('resume', name)}` continues the study"
        case "stopped":
            effect = f"{requeued} and exit" if n else "no trial is running"
            return f"stopped; {effect}; `{_command('launch', name)}` continues the study"
    if before == "paused":
        return f"active; waiting workers continue within seconds; to add a worker: {_command('worker', name)}"
    return f"active; its workers have exited; to start a worker: {_command('worker', name)}"


def _command(command: str, study: str) -> str:
    return command_line("hpo", command, "--study", study)


def kill_trial(store: Store, name: str | None, number: int) -> str:
    """Stop a trial and mark it as failed, and return a line that says when that happens.

    A running trial stops at its next rung. A trial that no worker holds fails immediately.

    Raises:
        Problem: there is no such trial, or it has ended.
    """
    snapshot = read_snapshot(store, name)
    trial = find_trial(snapshot, number)
    slot = trial.user_attrs.get("slot")
    slots = Slots(store, study_ids(store)[snapshot.name], snapshot.uid)
    if trial.state not in (State.RUNNING, State.WAITING) or slot is None:
        raise _ended_problem(snapshot, trial)
    if not slots.request_action(slot, "kill"):
        latest = read_snapshot(store, snapshot.name)  # the trial has ended since the first read
        raise _ended_problem(latest, find_trial(latest, number))
    owner = f"kill:{uuid.uuid4().hex[:8]}"
    claim = slots.take(slot, owner, lease_seconds())
    if claim is None:
        return f"trial {number}: its worker stops it within one rung"
    _mark_killed(store, slots, claim, owner)
    was = "paused" if trial_status(snapshot, trial) == "paused" else "interrupted"
    return f"trial {number}: failed as killed; it was {was} at rung {trial.last_step or 0} of {snapshot.rungs}"


def _ended_problem(snapshot: Snapshot, trial: Trial) -> Problem:
    return Problem(
        f"trial {trial.number}: must be running, interrupted or paused to be killed; "
        f"in study {snapshot.name} it is {trial_status(snapshot, trial)}"
    )


def _mark_killed(store: Store, slots: Slots, claim: Claim, owner: str) -> None:
    """Mark a trial that no worker trains as failed and killed, then close its slot."""
    assert claim.trial_id is not None
    attrs = {METRICS: {}, END_REASON: "killed", ATTEMPTS: slots.attempts(claim.slot)}
    last = store.optuna.get_trial(claim.trial_id).last_step or 0
    try:
        with fenced(slots.held(claim, owner)):
            for key, value in attrs.items():
                store.optuna.set_trial_user_attr(claim.trial_id, key, value)
            store.optuna.set_trial_state_values(claim.trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        pass  # the worker has reported the end of the trial, but not closed its slot
    except LeaseLost:
        return  # this process slept for longer than a lease; the next worker of the trial reads the request
    slots.done(claim, owner, last, "killed")
