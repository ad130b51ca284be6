"""Claim, prepare, finish and requeue the trials of one worker, and react to their failures."""

import gc
import math
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from optuna.trial import TrialState

from hpo.errors import StorageError, Unwritable, error_summary, raised_error
from hpo.queue.heartbeat import LeaseRenewer
from hpo.queue.looks import take_look
from hpo.queue.pausing import place_text
from hpo.queue.slots import Claim
from hpo.queue.stored_study import StoredStudy, StudyState
from hpo.runs import checkpoints
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.metrics import repair_metrics
from hpo.runs.run_dir import append_error_log, claim_folder, trial_folder
from hpo.search.pruners import build_pruner
from hpo.search.pruning import CachedPruner
from hpo.storage.attributes import FORKED
from hpo.storage.fencing import LeaseLost
from hpo.storage.retry import limit_patience
from hpo.worker.configure import configure_trial
from hpo.worker.events import EventListener
from hpo.worker.failures import CircuitBreaker, Quarantine, classify_failure, disk_is_full, give_up_reason, is_given_up
from hpo.worker.promotion import Promoter
from hpo.worker.reporter import UNREACHABLE_WAIT_S, Reporter
from hpo.worker.trial import RunningTrial, open_trial

# State of a trial -> reason under which its slot is closed, if an earlier attempt finished the trial.
END_REASONS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "error"}

# Seconds after a failure before the worker claims another trial. It doubles with each failure of one trial.
PAUSE_S = 1.0


class TrialExecutor:
    """Holds the trials that one owner has claimed: they are being trained, or wait for a pack of their shape.

    quarantine: the failure of this machine, None while the machine is trusted.
    yields_more: a note that the training function yields after its last rung, "" if that is not known.
    """

    def __init__(
        self, stored: StoredStudy, owner: str, renewer: LeaseRenewer, out: Path, lease_s: float, emit: EventListener
    ) -> None:
        """Create an executor without trials.

        out: folder of the runs. lease_s: seconds until a lease expires. emit: receives the worker's events.
        """
        self.stored, self.owner, self.renewer = stored, owner, renewer
        self.folder = claim_folder(out, stored.first_name, stored.uid)
        self.lease_s, self.emit = lease_s, emit
        self.reporter = Reporter(stored, owner, renewer, lease_s)
        self.pruner = CachedPruner(
            stored.optuna,
            build_pruner(stored.study.file.pruner, stored.study.rungs, stored.study.direction),
            stored.study.rungs,
        )
        self.promoter = Promoter(stored, owner, lease_s, self.pruner)
        self.datasets = PreparedDatasets()
        self.breaker = CircuitBreaker()
        self.trials: list[RunningTrial] = []
        self.quarantine: Quarantine | None = None
        self.yields_more = ""

    def claim_trial(self, pack: int) -> bool:
        """Claim a trial and prepare its configuration; return False if there is no free slot.

        pack: number of trials that the worker trains side by side.
        """
        take_look(self.stored)  # the results so far may make further runs of a comparison unnecessary
        state = self.reporter.study_state()
        claim = self.promoter.claim(self.stored.is_over(state), state.rungs)
        if claim is None:
            return False
        self.renewer.hold(claim)
        try:
            frozen = open_trial(self.stored, claim, self.owner, pack)
            trial = RunningTrial(claim, frozen, self.stored.study.base, self._folder(frozen.number))
            self.trials.append(trial)
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
        problem = configure_trial(self.stored, trial, self.owner, self.datasets, pack)
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

    def complete(self, trial: RunningTrial, value: float) -> None:
        """End a trial that reached its last rung, and remove the checkpoints of all but the best trials."""
        self.end(trial, TrialState.COMPLETE, "complete", value=value)
        complete = self.stored.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        own = [frozen for frozen in complete if frozen.user_attrs.get("kind") != FORKED]
        ranked = sorted(own, key=lambda frozen: self.stored.study.direction.loss(frozen.values[0]))
        others = ranked[self.stored.study.file.keep_best :]
        checkpoints.remove_all_checkpoints(self._folder(frozen.number) for frozen in others)

    def pause(self, trial: RunningTrial) -> None:
        """Pause a trial at a mark. Its checkpoint is saved."""
        self.renewer.drop(trial.claim)
        if not self.promoter.pause(trial):
            self.drop_lost(trial.claim)
            return
        self.trials.remove(trial)
        self.breaker.reset()
        assert trial.mark is not None
        place, record = trial.mark
        event = {"event": "paused", "trial": trial.number, "rung": place.rung, "value": record["value"]}
        self.emit({**event, "text": f"paused at {place_text(place)}"})

    def end_paused(self, state: StudyState) -> bool:
        """End the trials that are paused when nothing else is left to run; return False if one of them may continue."""
        ended = self.promoter.end_paused(self.stored.is_over(state), state.rungs)
        for frozen in ended or ():
            checkpoints.remove_checkpoints(self._folder(frozen.number), all_of_them=True)
            rung = frozen.last_step or 0
            value = frozen.intermediate_values[rung]
            self.emit({"event": "pruned", "trial": frozen.number, "rung": rung, "value": value})
        return ended is not None

    def end(
        self, trial: RunningTrial, state: TrialState, reason: str, error: str = "", value: float | None = None
    ) -> None:
        """Report the end of a trial and close its slot. The arguments are those of `Reporter.report_end`."""
        try:
            values = self.reporter.report_end(trial, state, reason, error, value)
        except LeaseLost:
            self.drop_lost(trial.claim)
            return
        self.trials.remove(trial)
        self.pruner.refresh()
        if state != TrialState.FAIL:
            self.breaker.reset()
        checkpoints.remove_checkpoints(trial.folder, all_of_them=state != TrialState.COMPLETE)
        event = {"event": reason, "trial": trial.number, "rung": trial.rung, "value": values[0] if values else None}
        self.emit(event | ({"error": error_summary(error)} if error else {}))

    def drop_lost(self, claim: Claim) -> None:
        """Drop a trial whose lease another worker holds. Nothing more is written to it."""
        self.renewer.drop(claim)
        for trial in [trial for trial in self.trials if trial.claim == claim]:
            self.trials.remove(trial)
            self.emit({"event": "taken", "trial": trial.number})

    def requeue(self, trials: Sequence[RunningTrial], reason: str, error: str = "", failed: bool = False) -> None:
        """Set trials to WAITING and free their slots, so that any worker can resume them."""
        for trial in list(trials):
            self.trials.remove(trial)
            if self.reporter.requeue(trial, reason, error, failed):
                self.emit({"event": "requeued", "trial": trial.number, "rung": trial.rung, "text": reason})

    def handle_failure(self, error: Exception, trials: Sequence[RunningTrial]) -> int | None:
        """End or requeue the trials of a failed run; return the new size of packs, or None if it does not change.

        Raises:
            Exception: the failure itself, if neither the trials nor this machine caused it.
        """
        raised = raised_error(error)
        text = "".join(traceback.format_exception(raised))
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

    def note(self, trial: RunningTrial, text: str, error: Exception | None = None) -> None:
        """Store a note on a trial: the training code did something that has no effect on the trial's result."""
        if error is not None:
            raised = raised_error(error)
            text = f"{text}, its training code raised {type(raised).__name__}: {raised}"
            append_error_log(trial.folder, trial.claim.attempt, "".join(traceback.format_exception(raised)))
        self.log_event("note", f"trial {trial.number}: {text}")

    def _handle_oom(self, trials: Sequence[RunningTrial], text: str) -> int | None:
        """Prune a trial that ran out of memory. Of several trials in a pack, train half as many side by side."""
        gc.collect()
        if len(trials) == 1:
            self.end(trials[0], TrialState.PRUNED, "oom", text)
            return None
        self.log_event("oom", f"{len(trials)} trials do not fit into memory side by side: {error_summary(text)}")
        return len(trials) // 2

    def log_event(self, event_type: str, text: str) -> None:
        """Store an event of this worker, unless the storage is unreachable for longer than UNREACHABLE_WAIT_S."""
        self.emit({"event": "note", "text": f"{event_type}: {text}"})
        with suppress(StorageError), limit_patience(UNREACHABLE_WAIT_S):
            self.stored.slots.log(event_type, text, self.owner)

    def _folder(self, number: int) -> Path:
        return trial_folder(self.folder, number)
