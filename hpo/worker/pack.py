"""Train a pack: several trials side by side, from rung to rung, on one device.

Each trial of a pack has a lane. When a trial ends, its lane is refilled with another trial.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from optuna.trial import TrialState

from hpo.errors import Unwritable
from hpo.runs import checkpoints
from hpo.runs.metrics import append_metrics
from hpo.runs.run_dir import to_json_value
from hpo.runs.trainable import build_runs, pack_key, parse_report
from hpo.worker.executor import TrialExecutor
from hpo.worker.failures import classify_failure
from hpo.worker.finish import finish_run
from hpo.worker.resume import resume_run
from hpo.worker.signals import SignalHandler, TrialTimeout
from hpo.worker.trial import RunningTrial


class PackRunner:
    """Trains the executor's first trial, and the trials of the same shape, until no such trial is left."""

    def __init__(self, executor: TrialExecutor, size: int, signals: SignalHandler) -> None:
        """Choose the trials of the pack. size: number of lanes at most."""
        self.executor, self.signals = executor, signals
        self.study = executor.stored.study
        first = executor.trials[0]
        self.key = pack_key(first.config)
        same_shape = [trial for trial in executor.trials if not trial.alone and pack_key(trial.config) == self.key]
        self.first_trials = [first] if first.alone else same_shape[:size]
        self.lanes: dict[int, RunningTrial] = {}
        self.started = False

    def run(self, should_stop: Callable[[], bool], refill: Callable[[], None]) -> int | None:
        """Train the pack; return the new size of packs, or None if it does not change.

        should_stop: returns whether to stop at this rung. refill: claims trials for the free lanes.
        """
        try:
            self._start()
            self._train(should_stop, refill)
        except TrialTimeout:
            self._end_timed_out()
        except Exception as error:  # neither a configuration nor a user's function may end the worker
            trials = [trial for trial in self.lanes.values() if trial in self.executor.trials]
            if not trials:
                raise
            if len(trials) > 1 and not self.started and classify_failure(error) == "error":
                for trial in trials:  # to find out which trial has failed, each is started in a pack of its own
                    trial.alone = True
                return None
            return self.executor.handle_failure(error, trials)
        finally:
            self.signals.cancel_timeout()
        return None

    def _start(self) -> None:
        """Build the runs and resume each from its checkpoint."""
        self.lanes = dict(enumerate(self.first_trials))
        arguments = self.executor.datasets.training_arguments(self.first_trials[0].config)
        self.runs = build_runs(self.study.file.train, [trial.config for trial in self.first_trials], **arguments)
        for lane, trial in list(self.lanes.items()):
            try:
                has_ended = self._resume(lane, trial)
            except Unwritable as error:  # the files of this trial alone
                has_ended = self._fail(lane, trial, error)
            if has_ended:
                del self.lanes[lane]
        self.started = True

    def _train(self, should_stop: Callable[[], bool], refill: Callable[[], None]) -> None:
        """Train from rung to rung, and report each rung of each lane."""
        self._start_timeout()
        for _, reports in self.runs:
            self.signals.cancel_timeout()  # a timeout must not interrupt the reports of a rung
            for lane, metrics in reports.items():
                if self._report(lane, self.lanes[lane], metrics):
                    del self.lanes[lane]
            self._drop_lost()
            if should_stop():
                return
            refill()
            self._fill_lanes()
            self._start_timeout()
        for trial in list(self.lanes.values()):
            self.executor.end(trial, TrialState.FAIL, "error", "the training function ended before its last rung")

    def _start_timeout(self) -> None:
        limit = self.study.file.limits.seconds
        if self.lanes and limit is not None:
            self.signals.start_timeout(limit - max(trial.seconds() for trial in self.lanes.values()))

    def _resume(self, lane: int, trial: RunningTrial) -> bool:
        """Resume a trial; return whether it has left its lane.

        Its checkpoint may be that of its last rung, or of a mark at which the last attempt ended before it decided.
        """
        rung = resume_run(self.executor, self.runs, lane, trial)
        if rung < self.study.rungs:
            return rung > 0 and rung == trial.rung and self._decide_resumed(lane, trial)
        self._stop(lane, trial)
        self.executor.complete(trial, trial.frozen.intermediate_values[rung])
        return True

    def _decide_resumed(self, lane: int, trial: RunningTrial) -> bool:
        """Decide about a trial at a mark if its last attempt has not; return whether the trial has left its lane."""
        if not self.executor.promoter.is_due(trial):
            return False
        status = self.executor.reporter.report_values(trial, wait=True)
        decision = self.executor.decide(trial) if status == "held" else status
        if decision == "pause":
            return self._pause(lane, trial)
        if decision == "lost":
            self._stop(lane, trial)
            self.executor.drop_lost(trial.claim)
        elif decision == "killed":
            self._stop(lane, trial)
            self._end(trial, decision)
        return decision != "continue"

    def _report(self, lane: int, trial: RunningTrial, metrics: Any) -> bool:
        """Report one rung of a trial; return whether the trial has left its lane."""
        try:
            rung, value, trial.metrics = parse_report(metrics, self.study.file.objective)
        except Exception as error:  # this trial alone has failed, not its pack
            return self._fail(lane, trial, error)
        try:
            decision = self._report_value(trial, rung, value)
        except Unwritable as error:  # the files of this trial alone
            return self._fail(lane, trial, error)
        if decision == "lost":
            self._stop(lane, trial)
            self.executor.drop_lost(trial.claim)
            return True
        if decision not in ("continue", "pause"):
            self._stop(lane, trial)
            self._end(trial, decision)
            return True
        try:
            self._save_checkpoints(lane, trial, rung, value)
        except Exception as error:  # a class of the user may raise anything
            return self._fail(lane, trial, error)
        if decision == "pause":
            return self._pause(lane, trial)
        if rung < self.study.rungs:
            return False
        finish_run(self.executor, self.runs, self.signals, lane, trial, rung)
        self._stop(lane, trial)
        self.executor.complete(trial, value)
        return True

    def _report_value(self, trial: RunningTrial, rung: int, value: float) -> str:
        """Report the value of a rung; return what to do with the trial: continue, lost, or why to end it.

        Raises:
            Unwritable: the metrics cannot be written.
        """
        last_rung = trial.rung
        trial.add_value(rung, value)
        wait = rung >= self.study.rungs or self.executor.promoter.is_due(trial)
        status = self.executor.reporter.report_values(trial, wait)
        if status == "lost":
            return status
        append_metrics(trial.folder / "metrics.jsonl", trial.metrics)
        shown = {key: to_json_value(v) for key, v in trial.metrics.items()}
        event = {"event": "rung", "trial": trial.number, "rung": rung, "value": to_json_value(value)}
        self.executor.emit({**event, **shown})
        # An earlier attempt has already decided about a rung that it reported.
        decision = self.executor.decide(trial) if rung >= last_rung else "continue"
        if status == "killed":
            return status
        if trial.is_over(self.study.file.limits.seconds) and rung < self.study.rungs:
            return "timeout"
        return decision

    def _pause(self, lane: int, trial: RunningTrial) -> bool:
        """Pause a trial; return True, because it has left its lane."""
        self._stop(lane, trial)
        self.executor.pause(trial)
        return True

    def _stop(self, lane: int, trial: RunningTrial) -> None:
        """End the run of a lane. An exception in a `finally` block of the training function has no effect."""
        try:
            self.runs.stop(lane)
        except Exception as error:
            self.executor.note(trial, "while it was closed", error)

    def _fail(self, lane: int, trial: RunningTrial, error: Exception) -> bool:
        """End or requeue one trial of the pack; return True, because it has left its lane."""
        self._stop(lane, trial)
        self.executor.handle_failure(error, [trial])
        return True

    def _save_checkpoints(self, lane: int, trial: RunningTrial, rung: int, value: float) -> None:
        loss = self.study.direction.loss
        best = loss(value) <= min(map(loss, trial.frozen.intermediate_values.values()))
        # ValueError: the lanes are at different steps. The trial then resumes from an earlier checkpoint.
        with contextlib.suppress(ValueError):
            checkpoints.save_checkpoints(self.runs, lane, trial.config, trial.folder, rung, best)

    def _end(self, trial: RunningTrial, decision: str) -> None:
        match decision:
            case "killed":
                self.executor.end(trial, TrialState.FAIL, "killed")
            case "timeout":
                self.executor.end(trial, TrialState.PRUNED, "timeout", self._timeout_problem(trial))
            case _:
                self.executor.end(trial, TrialState.PRUNED, "pruned" if decision == "prune" else decision)

    def _end_timed_out(self) -> None:
        """End the trials that timed out in the middle of a rung. The other trials resume from their last rung."""
        limit = self.study.file.limits.seconds
        for trial in list(self.lanes.values()):
            if trial in self.executor.trials and trial.is_over(limit):
                self.executor.end(trial, TrialState.PRUNED, "timeout", self._timeout_problem(trial))

    def _timeout_problem(self, trial: RunningTrial) -> str:
        limit = self.study.file.limits.seconds
        return f"limits.seconds: allows {limit:g}, the trial took {trial.seconds():.1f}"

    def _fill_lanes(self) -> None:
        """Start claimed trials of the pack's shape in the free lanes. Other trials wait for another pack."""
        running = list(self.lanes.values())
        candidates = [trial for trial in self.executor.trials if trial not in running and not trial.alone]
        waiting = [trial for trial in candidates if pack_key(trial.config) == self.key]
        free = [lane for lane in range(len(self.first_trials)) if lane not in self.lanes]
        for lane, trial in zip(free, waiting, strict=False):
            try:
                self.runs.start(lane, trial.config)
                if not self._resume(lane, trial):
                    self.lanes[lane] = trial
            except Exception as error:  # this trial alone has failed, not its pack
                with contextlib.suppress(KeyError):  # it may have failed before it was added
                    self.runs.stop(lane)
                self.executor.handle_failure(error, [trial])

    def _drop_lost(self) -> None:
        """Drop the trials whose leases the LeaseRenewer found lost."""
        for lane, trial in list(self.lanes.items()):
            if (trial.claim.slot, trial.claim.attempt) in self.executor.renewer.lost:
                self._stop(lane, trial)
                self.executor.drop_lost(trial.claim)
                del self.lanes[lane]
