"""What a worker writes of its trials into the study: fenced by the lease, patient with the storage."""

import math
import time
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from hpo.errors import StorageError
from hpo.optuna_internals import get_trial_id
from hpo.queue.heartbeat import LeaseRenewer
from hpo.queue.registry import StoredStudy, StudyState
from hpo.runs.run_dir import to_json_value
from hpo.storage.attributes import (
    ATTEMPTS,
    END_REASON,
    ERROR,
    IS_FEASIBLE,
    LIMIT_CONSTRAINTS,
    METRICS,
    PRUNING_DECISION,
)
from hpo.storage.fencing import LeaseLost, fenced
from hpo.storage.retry import limit_patience
from hpo.worker.trial import RunningTrial

STATE_REFRESH_S = 0.1  # between looks at what may change while a study runs: rungs may be shorter than that
UNREACHABLE_WAIT_S = 3.0  # for which a training waits for the storage at a rung; then it goes on, and tells later
LEAVING_WAIT_S = 5.0  # the same for a worker that is asked to leave
MAX_ERROR_LINES = 40  # of a traceback: the end says what happened

TrialStatus = Literal["held", "lost", "killed", "away"]


class Reporter:
    """Writes values, ends and requeues of the trials that one owner holds."""

    def __init__(self, stored: StoredStudy, owner: str, keeper: LeaseRenewer, lease_s: float) -> None:
        self.stored, self.owner, self.keeper, self.lease_s = stored, owner, keeper, lease_s
        self._now, self._look_at = StudyState("active", False, None), -math.inf

    def now(self) -> StudyState:
        """Return how the study stood at most `LOOK_S` ago; while the storage is away, how it stood before."""
        if time.monotonic() < self._look_at:
            return self._now
        try:
            with limit_patience(UNREACHABLE_WAIT_S):
                self._now = self.stored.read_state()
                self._look_at = time.monotonic() + STATE_REFRESH_S
        except StorageError as error:
            if not error.passing:
                raise
        return self._now

    def values(self, job: RunningTrial, wait: bool) -> TrialStatus:
        """Write what the study has not got of a trial's curve; return how the trial stands.

        wait: for a storage that is away, as long as the worker's patience lasts; otherwise not longer than `AWAY_S`.
        """
        try:
            with limit_patience(math.inf if wait else UNREACHABLE_WAIT_S):
                wish = self._write(job)
        except LeaseLost:  # another attempt goes on with it
            return "lost"
        except UpdateFinishedTrialError:  # another program has ended it
            self.close(job, "ended")
            return "lost"
        except StorageError as error:
            if wait or not error.passing:
                raise
            return "away"
        return "killed" if wish == "kill" else "held"

    def _write(self, job: RunningTrial) -> str:
        """Write the values that the study has not got, each with a renewal of the lease; return the wish found.

        Raises:
            Lost: the lease is another attempt's.
        """
        slots, storage = self.stored.slots, self.stored.store.optuna
        if not job.unsent:
            wish = slots.renew_at_rung(job.claim, self.owner, self.lease_s, job.rung)
            if wish is None:
                raise LeaseLost
            return wish
        with fenced(slots.renewal(job.claim, self.owner, self.lease_s, job.rung)) as fence:
            for rung in sorted(job.unsent):
                storage.set_trial_intermediate_value(get_trial_id(job.trial), rung, job.unsent[rung])
                del job.unsent[rung]
        return str(fence.found[0] or "") if fence.found is not None else ""

    def end(
        self, job: RunningTrial, state: TrialState, word: str, error: str = "", value: float | None = None
    ) -> list[float]:
        """Tell the study how a trial ended, then close its slot; return the value that it ended with.

        Raises:
            Lost: another attempt goes on with the trial; nothing was written.
        """
        finite = [v for v in job.trial.intermediate_values.values() if math.isfinite(v)]
        values = [value] if value is not None else finite[-1:] if state == TrialState.PRUNED else []
        error = "\n".join(error.strip().splitlines()[-MAX_ERROR_LINES:])
        attrs: dict[str, Any] = {METRICS: {k: to_json_value(v) for k, v in job.metrics.items()}, END_REASON: word}
        attrs |= {ERROR: error} if error else {}
        attrs |= {PRUNING_DECISION: job.pruned} if word == "pruned" else {}
        attrs |= {IS_FEASIBLE: False} if word in LIMIT_CONSTRAINTS else {}
        attrs |= {ATTEMPTS: self.stored.slots.attempts(job.claim.slot)} if job.claim.attempt > 1 else {}
        storage, trial_id = self.stored.store.optuna, get_trial_id(job.trial)
        try:
            with fenced(self.stored.slots.held(job.claim, self.owner)):
                for rung, found in sorted(job.unsent.items()):  # what it reached while the storage was away
                    storage.set_trial_intermediate_value(trial_id, rung, found)
                for key, found in attrs.items():
                    storage.set_trial_user_attr(trial_id, key, found)
                if word in LIMIT_CONSTRAINTS:
                    optuna.Trial(self.stored.optuna, trial_id).set_constraint(LIMIT_CONSTRAINTS[word], 1.0)
                storage.set_trial_state_values(trial_id, state, values or None)
        except UpdateFinishedTrialError:
            pass  # an earlier attempt told the same: runs are deterministic
        self.close(job, word, error)
        return values

    def close(self, job: RunningTrial, word: str, text: str = "") -> None:
        """Close the slot of a trial that has been told."""
        self.keeper.drop(job.claim)
        self.stored.slots.done(job.claim, self.owner, job.rung, word, last_line(text))

    def requeue(self, job: RunningTrial, word: str, text: str = "", failed: bool = False) -> bool:
        """Give a trial back, WAITING, its slot free, for whoever claims it next; False if the storage is away."""
        self.keeper.drop(job.claim)
        try:
            with limit_patience(LEAVING_WAIT_S):
                self.stored.slots.release(job.claim, self.owner, word, text, failed)
        except StorageError:
            return False  # its lease runs out, and whoever keeps leases then frees it
        return True


def last_line(text: str) -> str:
    """Return the line of a traceback that says what happened."""
    return text.strip().splitlines()[-1] if text.strip() else ""
