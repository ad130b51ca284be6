"""The trials that a worker holds, and the ways in which one leaves it: ended, paused, requeued or lost."""

import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from optuna.trial import TrialState

from hpo.errors import StorageError, error_summary, raised_error
from hpo.queue.heartbeat import LeaseRenewer, free_leases_of
from hpo.queue.pausing import place_text
from hpo.queue.slots import Claim
from hpo.queue.stored_study import StoredStudy, StudyState
from hpo.runs import checkpoints
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.run_dir import append_error_log, claim_folder, to_json_value, trial_folder
from hpo.runs.trainable import pack_key
from hpo.search.pruners import build_pruner
from hpo.search.pruning import CachedPruner
from hpo.storage.attributes import CELL_FIELDS, FORKED
from hpo.storage.fencing import LeaseLost
from hpo.storage.retry import limit_patience
from hpo.worker.events import EventListener
from hpo.worker.failures import CircuitBreaker, Quarantine
from hpo.worker.probing import Prober
from hpo.worker.promotion import Promoter
from hpo.worker.reporter import UNREACHABLE_WAIT_S, Reporter, leaving
from hpo.worker.trial import RunningTrial


class HeldTrials:
    """The trials that one owner has claimed: they are being trained, or wait for a pack of their shape.

    quarantine: the failure of this machine, None while the machine is trusted.
    is_stopping: returns whether the worker was asked to stop.
    yields_more: a note that the training function yields after its last rung, "" if that is not known.
    """

    def __init__(
        self, stored: StoredStudy, owner: str, renewer: LeaseRenewer, out: Path, lease_s: float, emit: EventListener
    ) -> None:
        """Hold no trials at first.

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
            within=stored.study.file.about.get(CELL_FIELDS, ()),
        )
        self.promoter = Promoter(stored, owner, lease_s, self.pruner)
        self.prober = Prober(stored, self.reporter, self.pruner, emit)
        self.datasets = PreparedDatasets()
        self.breaker = CircuitBreaker()
        self.trials: list[RunningTrial] = []
        self.quarantine: Quarantine | None = None
        self.is_stopping: Callable[[], bool] = lambda: False
        self.yields_more = ""

    def wants_trials(self, pack: int) -> bool:
        """Return whether to claim another trial: until a pack of one shape is full, but at most two packs in all."""
        if len(self.trials) < pack or pack == 1:
            return len(self.trials) < pack
        return len(self.trials) < 2 * pack and len(self.largest_group()) < pack

    def largest_group(self) -> list[RunningTrial]:
        """Return the held trials of the shape that most of them have; of equally many, the shape of the oldest."""
        groups = defaultdict(list)
        for trial in self.trials:
            if not trial.alone:
                groups[pack_key(trial.config)].append(trial)
        return max(groups.values(), key=len, default=[])

    def complete(self, trial: RunningTrial, value: float) -> None:
        """End a trial that reached its last rung, and remove the checkpoints of all but the best trials."""
        self.end(trial, TrialState.COMPLETE, "complete", value=value)
        if not checkpoints.has_kept_checkpoints(trial.folder):
            return  # it takes the place of no other trial's checkpoints
        complete = self.stored.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        own = [frozen for frozen in complete if frozen.user_attrs.get("kind") != FORKED]
        ranked = sorted(own, key=lambda frozen: self.stored.study.direction.loss(frozen.values[0]))
        others = ranked[self.stored.study.file.keep_best :]
        checkpoints.remove_all_checkpoints(self._folder(frozen.number) for frozen in others)

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

    def end_by(self, trial: RunningTrial, decision: str) -> None:
        """End a trial by a decision at a rung: killed, timeout, prune or diverged."""
        match decision:
            case "killed":
                self.end(trial, TrialState.FAIL, "killed")
            case "timeout":
                limit = self.stored.study.file.limits.seconds
                problem = f"limits.seconds: allows {limit:g}, the trial took {trial.seconds():.1f}"
                self.end(trial, TrialState.PRUNED, "timeout", problem)
            case _:
                self.end(trial, TrialState.PRUNED, "pruned" if decision == "prune" else decision)

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

    def leave(self, reason: str) -> None:
        """Requeue all trials, and free the slot of a trial whose claim or requeue was interrupted."""
        self.requeue(self.trials, reason)
        with suppress(StorageError), leaving():
            free_leases_of(self.stored.store, self.owner, event_type=reason)

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
        event = {"event": "paused", "trial": trial.number, "rung": place.rung}
        value = to_json_value(record["value"])  # a probe may have diverged
        self.emit({**event, "value": value, "text": f"paused at {place_text(place)}"})

    def end_paused(self, state: StudyState) -> bool:
        """End the trials that are paused when nothing else is left to run; return False if one of them may continue."""
        ended = self.promoter.end_paused(self.stored.is_over(state), state.rungs)
        for frozen in ended or ():
            checkpoints.remove_checkpoints(self._folder(frozen.number), all_of_them=True)
            rung = frozen.last_step or 0
            value = frozen.intermediate_values[rung]
            self.emit({"event": "pruned", "trial": frozen.number, "rung": rung, "value": value})
        return ended is not None

    def note(self, trial: RunningTrial, text: str, error: Exception | None = None) -> None:
        """Store a note about a failure of the training code that does not change the trial's result.

        error: exception of the training code. Its traceback is appended to the error log of the trial.
        """
        if error is not None:
            raised = raised_error(error)
            text = f"{text}, its training code raised {type(raised).__name__}: {raised}"
            append_error_log(trial.folder, trial.claim.attempt, "".join(traceback.format_exception(raised)))
        self.log_event("note", f"trial {trial.number}: {text}")

    def log_event(self, event_type: str, text: str) -> None:
        """Store an event of this worker, unless the storage is unreachable for longer than UNREACHABLE_WAIT_S."""
        self.emit({"event": "note", "text": f"{event_type}: {text}"})
        with suppress(StorageError), limit_patience(UNREACHABLE_WAIT_S):
            self.stored.slots.log(event_type, text, self.owner)

    def _folder(self, number: int) -> Path:
        return trial_folder(self.folder, number)
