"""Report a worker's trials to the study.

Every write is fenced by the trial's lease, and is retried while the storage is unreachable.
"""

import math
import time
from contextlib import AbstractContextManager
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from hpo.errors import SHORTENED, StorageError, error_summary
from hpo.optuna_internals.objects import get_trial_id
from hpo.queue.heartbeat import LeaseRenewer
from hpo.queue.stored_study import StoredStudy, StudyState
from hpo.runs.run_dir import to_json_value
from hpo.storage.attributes import (
    ATTEMPTS,
    END_REASON,
    ERROR,
    IS_FEASIBLE,
    LIMIT_CONSTRAINTS,
    METRICS,
    NOTE,
    PRUNING_DECISION,
)
from hpo.storage.fencing import LeaseLost, fenced
from hpo.storage.retry import limit_patience, outages
from hpo.worker.trial import RunningTrial

# Minimum seconds between two reads of the study's state, because rungs can be shorter than a read.
STATE_REFRESH_S = 0.1
# Seconds that training waits at a rung for an unreachable storage. Then it continues and reports the values later.
UNREACHABLE_WAIT_S = 3.0
# The same for a worker that must stop, and for one that stops because the storage is unreachable.
LEAVING_WAIT_S, UNREACHABLE_LEAVING_WAIT_S = 5.0, 1.0
# Lines of a traceback that are stored.
MAX_ERROR_LINES = 40

LeaseStatus = Literal["held", "lost", "killed", "unreachable"]


class Reporter:
    """Reports values, ends and requeues of the trials that one owner holds."""

    def __init__(self, stored: StoredStudy, owner: str, renewer: LeaseRenewer, lease_s: float) -> None:
        self.stored, self.owner, self.renewer, self.lease_s = stored, owner, renewer, lease_s
        self._state, self._refresh_at = StudyState("active", False, None), -math.inf

    def study_state(self) -> StudyState:
        """Return the study's state, at most STATE_REFRESH_S old; the last known one if the storage is unreachable."""
        if time.monotonic() < self._refresh_at:
            return self._state
        try:
            with limit_patience(UNREACHABLE_WAIT_S):
                self._state = self.stored.read_state()
                self._refresh_at = time.monotonic() + STATE_REFRESH_S
        except StorageError as error:
            if not error.passing:
                raise
        return self._state

    def report_values(self, trial: RunningTrial, wait: bool) -> LeaseStatus:
        """Write the unreported values of a trial and renew its lease; return the status of the lease.

        wait: whether to wait for an unreachable storage without limit, instead of UNREACHABLE_WAIT_S.

        Raises:
            StorageError: the storage is unusable.
        """
        try:
            with limit_patience(math.inf if wait else UNREACHABLE_WAIT_S):
                action = self._write_values(trial)
        except LeaseLost:  # another attempt has resumed the trial
            return "lost"
        except UpdateFinishedTrialError:  # another program has finished the trial
            self.close_slot(trial, "ended")
            return "lost"
        except StorageError as error:
            if wait or not error.passing:
                raise
            return "unreachable"
        return "killed" if action == "kill" else "held"

    def _write_values(self, trial: RunningTrial) -> str:
        """Write the unreported values, each together with a renewal of the lease; return the requested action.

        Raises:
            LeaseLost: another attempt holds the lease.
        """
        slots, storage = self.stored.slots, self.stored.store.optuna
        if not trial.unreported and not trial.unreported_attrs:
            action = slots.renew_at_rung(trial.claim, self.owner, self.lease_s, trial.spent_rungs)
            if action is None:
                raise LeaseLost
            return action
        with fenced(slots.renewal(trial.claim, self.owner, self.lease_s, trial.spent_rungs)) as fence:
            for rung in sorted(trial.unreported):
                storage.set_trial_intermediate_value(get_trial_id(trial.frozen), rung, trial.unreported[rung])
                del trial.unreported[rung]
            for key in list(trial.unreported_attrs):
                storage.set_trial_user_attr(get_trial_id(trial.frozen), key, trial.unreported_attrs[key])
                del trial.unreported_attrs[key]
        return str(fence.row[0] or "") if fence.row is not None else ""

    def report_end(
        self, trial: RunningTrial, state: TrialState, reason: str, error: str = "", value: float | None = None
    ) -> list[float]:
        """Write the end of a trial and close its slot; return the trial's values.

        reason: the type of the event, one of `events.ENDS`. error: a message or a traceback.
        value: the objective of a trial with state COMPLETE.

        Raises:
            LeaseLost: another attempt has resumed the trial. Nothing was written.
        """
        finite = [v for v in trial.frozen.intermediate_values.values() if math.isfinite(v)]
        values = [value] if value is not None else finite[-1:] if state == TrialState.PRUNED else []
        error = _shortened(error)
        storage, trial_id = self.stored.store.optuna, get_trial_id(trial.frozen)
        attrs = self._end_attrs(trial, reason, error)
        try:
            with fenced(self.stored.slots.held(trial.claim, self.owner)):
                for rung, unreported in sorted(trial.unreported.items()):
                    storage.set_trial_intermediate_value(trial_id, rung, unreported)
                for key, attr in attrs.items():
                    storage.set_trial_user_attr(trial_id, key, attr)
                if reason in LIMIT_CONSTRAINTS:
                    optuna.Trial(self.stored.optuna, trial_id).set_constraint(LIMIT_CONSTRAINTS[reason], 1.0)
                storage.set_trial_state_values(trial_id, state, values or None)
        except UpdateFinishedTrialError:
            pass  # an earlier attempt reported the same end: runs are deterministic
        self.close_slot(trial, reason, error)
        return values

    def _end_attrs(self, trial: RunningTrial, reason: str, error: str) -> dict[str, Any]:
        """Return the user attributes of a trial that ends."""
        attrs: dict[str, Any] = {METRICS: {k: to_json_value(v) for k, v in (trial.costs | trial.metrics).items()}}
        attrs[END_REASON] = reason
        attrs |= trial.unreported_attrs | ({ERROR: error} if error else {})
        attrs |= {NOTE: trial.note} if trial.note else {}
        attrs |= {PRUNING_DECISION: trial.pruning_decision} if reason == "pruned" else {}
        attrs |= {IS_FEASIBLE: False} if reason in LIMIT_CONSTRAINTS else {}
        return attrs | ({ATTEMPTS: self.stored.slots.attempts(trial.claim.slot)} if trial.claim.attempt > 1 else {})

    def close_slot(self, trial: RunningTrial, reason: str, error: str = "") -> None:
        """Mark the slot of a finished trial as done."""
        self._refresh_at = -math.inf  # a target of the study may be reached since, and then no trial starts
        self.renewer.drop(trial.claim)
        self.stored.slots.done(trial.claim, self.owner, trial.spent_rungs, reason, error_summary(error))

    def requeue(self, trial: RunningTrial, reason: str, error: str = "", failed: bool = False) -> bool:
        """Set a trial to WAITING and free its slot; return False if the storage is unreachable.

        failed: whether this attempt counts as a failure of the trial.
        """
        self.renewer.drop(trial.claim)
        try:
            with leaving():
                self.stored.slots.release(trial.claim, self.owner, reason, error, failed)
        except StorageError:
            return False  # the lease expires, and then any LeaseRenewer frees the slot
        return True


def leaving() -> AbstractContextManager[None]:
    """Limit how long each call inside the block waits for the storage, because the worker must stop."""
    return limit_patience(UNREACHABLE_LEAVING_WAIT_S if outages.is_ongoing() else LEAVING_WAIT_S)


def _shortened(error: str) -> str:
    """Return a message or traceback with at most MAX_ERROR_LINES of its last lines, after the line that names it."""
    lines = error.strip().splitlines()
    if len(lines) <= MAX_ERROR_LINES:
        return "\n".join(lines)
    return "\n".join([error_summary(error), SHORTENED, *lines[-MAX_ERROR_LINES:]])
