"""Claim and prepare the trials of one worker, decide about them at rungs, and react to their failures."""

import gc
import math
import time
from collections.abc import Sequence

from optuna.trial import TrialState

from hpo.errors import CommandFailed, StorageError, Unwritable, error_summary, raised_error
from hpo.queue.looks import take_look
from hpo.runs.metrics import repair_metrics
from hpo.runs.run_dir import append_error_log
from hpo.storage.fencing import LeaseLost
from hpo.storage.retry import limit_patience
from hpo.worker.configure import configure_trial
from hpo.worker.failures import (
    Quarantine,
    classify_failure,
    disk_is_full,
    failure_text,
    give_up_reason,
    is_given_up,
)
from hpo.worker.held import HeldTrials
from hpo.worker.reporter import UNREACHABLE_WAIT_S
from hpo.worker.trial import RunningTrial, open_trial

# State of a trial -> reason under which its slot is closed, if an earlier attempt finished the trial.
END_REASONS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "error"}

# Seconds after a failure before the worker claims another trial. It doubles with each failure of one trial.
PAUSE_S = 1.0
# A script may end, and be read, before the worker receives the signal that was sent to both.
SIGNAL_WAIT_S = 0.5


class TrialExecutor(HeldTrials):
    """Claims and prepares the trials of one owner, decides about them at rungs, and reacts to their failures."""

    def claim_trial(self, pack: int) -> bool:
        """Claim a trial and prepare its configuration; return False if there is no free slot.

        pack: number of trials that the worker trains side by side.
        """
        take_look(self.stored)  # the results so far may make further runs of a comparison unnecessary
        state = self.reporter.study_state()
        self.prober.update()
        claim = self.promoter.claim(self.stored.is_over(state), state.rungs)
        if claim is None:
            return False
        self.renewer.hold(claim)
        try:
            frozen = open_trial(self.stored, claim, self.owner, pack)
            trial = RunningTrial(claim, frozen, self.stored.study.base, self._folder(frozen.number))
            self.trials.append(trial)
            self.prober.take_stored(trial)
            self._prepare(trial, pack)
        except LeaseLost:
            self.drop_lost(claim)
        except Exception as error:
            trials = [trial for trial in self.trials if trial.claim == claim]
            if not trials:
                self.renewer.drop(claim)
                self.stored.slots.release(claim, self.owner, "interrupted", str(error), failed=True)
                raise
            self.handle_failure(error, trials)
        return True

    def _prepare(self, trial: RunningTrial, pack: int) -> None:
        """Set the configuration of a trial, or end the trial if its result is already known."""
        claim = trial.claim
        if trial.frozen.state.is_finished():  # an earlier attempt finished the trial, but did not close its slot
            self.trials.remove(trial)
            self.reporter.close_slot(trial, END_REASONS[trial.frozen.state])
            return
        self.emit({"event": "start", "trial": trial.number, "kind": claim.kind, "attempt": claim.attempt})
        if claim.requested_action == "kill":
            self.end(trial, TrialState.FAIL, "killed")
            return
        if is_given_up(claim):
            self.end(trial, TrialState.FAIL, *give_up_reason(claim, self.stored.slots.attempts(claim.slot)))
            return
        problem = configure_trial(
            self.stored, trial, self.owner, self.datasets, pack, probed=bool(self.pruner.probes.rungs)
        )
        if problem is not None:
            self.end(trial, TrialState.PRUNED, *problem)
            return
        last = trial.frozen.intermediate_values.get(self.stored.study.rungs)
        if last is not None and math.isfinite(last):  # the last attempt reported its last rung, but not its end
            log, reported = trial.folder / "metrics.jsonl", trial.frozen.intermediate_values
            trial.metrics = repair_metrics(log, self.stored.study.file.objective, reported)[self.stored.study.rungs]
            self.complete(trial, last)

    def decide(self, trial: RunningTrial) -> str:
        """Return the pruner's decision: "continue", "prune", "pause" or "diverged"; "lost" if the lease is lost.

        While the storage is unreachable, the decision is "continue". At a mark of `asha`, the worker waits for it.
        """
        is_due = self.promoter.is_due(trial)
        try:
            with limit_patience(math.inf if is_due else UNREACHABLE_WAIT_S):
                decision: str = self.pruner.decide(trial.frozen, trial.never_prune)
                if decision in ("continue", "pause"):
                    rungs = self.reporter.study_state().rungs if is_due else None
                    return self.promoter.settle(trial, decision, rungs) if is_due else "continue"
        except LeaseLost:
            return "lost"
        except StorageError as error:
            if not error.passing:
                raise
            return "continue"
        if decision == "prune":
            trial.pruning_decision = self.pruner.describe(self.stored.study.file.pruner, trial.frozen)
        return decision

    def _stops_soon(self) -> bool:
        """Return whether this worker has received a signal, or receives one within the next moment."""
        deadline = time.monotonic() + SIGNAL_WAIT_S
        while not self.is_stopping():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def handle_failure(self, error: Exception, trials: Sequence[RunningTrial]) -> int | None:
        """End or requeue the trials of a failed run; return the new size of packs, or None if it does not change.

        Raises:
            Exception: the failure itself, if neither the trials nor this machine caused it.
        """
        raised = raised_error(error)
        text = failure_text(raised)
        if isinstance(raised, CommandFailed) and self._stops_soon():
            # A scheduler such as Slurm sends its signals to the worker and to the processes of the command.
            self.requeue(trials, "preempted", error_summary(text))
            return None
        for trial in trials:
            append_error_log(trial.folder, trial.claim.attempt, text)
        match classify_failure(error):
            case "external":
                raise error
            case "disk":
                assert isinstance(error, Unwritable)
                self._handle_unwritable(error, trials)
            case "device":  # a trial may cause it by an invalid operation
                self.requeue(trials, "device", error_summary(text), failed=True)
                if self.breaker.record_device_failure():
                    self.quarantine = Quarantine("device", error_summary(text))
                else:
                    time.sleep(PAUSE_S)  # a transient failure may pass
            case "signal":
                self.requeue(trials, "signal", error_summary(text), failed=True)
                time.sleep(PAUSE_S)
            case "oom":
                return self._handle_oom(trials, text)
            case _:
                for trial in trials:
                    self.end(trial, TrialState.FAIL, "error", text)
        return None

    def _handle_unwritable(self, error: Unwritable, trials: Sequence[RunningTrial]) -> None:
        """Requeue trials whose files cannot be written; if the whole disk is full, quarantine it."""
        full = disk_is_full(error, self.folder)
        failures = max(trial.claim.failures for trial in trials)
        self.requeue(trials, "disk", str(error), failed=not full)
        if full:
            self.quarantine = Quarantine("disk", str(error), error)
        else:
            time.sleep(PAUSE_S * 2**failures)  # the reason may pass, and other workers may need the room

    def _handle_oom(self, trials: Sequence[RunningTrial], text: str) -> int | None:
        """Prune a trial that ran out of memory. Of several trials in a pack, train half as many side by side."""
        gc.collect()
        if len(trials) == 1:
            self.end(trials[0], TrialState.PRUNED, "oom", text)
            return None
        self.log_event("oom", f"{len(trials)} trials do not fit into memory side by side: {error_summary(text)}")
        return len(trials) // 2
