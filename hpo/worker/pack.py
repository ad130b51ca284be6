"""Train a pack: several trials side by side, from rung to rung, on one device.

Each trial of a pack has a lane. When a trial ends, its lane is refilled with another trial.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import TrialState

from hpo.errors import Unwritable
from hpo.runs.trainable import build_runs, pack_key, parse_report
from hpo.worker.executor import TrialExecutor
from hpo.worker.failures import classify_failure
from hpo.worker.lanes import Lanes
from hpo.worker.resume import resume_run
from hpo.worker.signals import SignalHandler, TrialTimeout
from hpo.worker.trial import RunningTrial


class PackRunner(Lanes):
    """Trains the executor's first trial, and the trials of the same shape, until no such trial is left."""

    def __init__(self, executor: TrialExecutor, size: int, signals: SignalHandler) -> None:
        """Choose the trials of the pack. size: number of lanes at most."""
        super().__init__(executor, signals)
        first = executor.trials[0]
        self.first_trials = [first] if first.alone else executor.largest_group()[:size]
        self.key = pack_key(self.first_trials[0].config)
        self.due: list[int] = []  # lanes whose trials must be probed before anything is decided about them
        self.started = False

    def run(self, should_stop: Callable[[], bool], refill: Callable[[], None]) -> int | None:
        """Train the pack; return the new size of packs, or None if it does not change.

        should_stop: returns whether to stop at this rung. refill: claims trials for the free lanes.
        """
        try:
            self._start()
            with contextlib.closing(self.runs):
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
        configs = [trial.config for trial in self.first_trials]
        self.runs = build_runs(self.study.file.training, configs, lambda: self.signals.signal is not None, **arguments)
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
        self._probe()
        self._start_timeout()
        for _, reports in self.runs:
            self.signals.cancel_timeout()  # a timeout must not interrupt the reports of a rung
            for lane, metrics in reports.items():
                if self._report(lane, self.lanes[lane], metrics):
                    del self.lanes[lane]
            self._probe()
            self._drop_lost()
            if self.is_command:
                self._check_commands()
            if should_stop():
                self._report_rest()
                return
            refill()
            self._fill_lanes()
            self._probe()
            self._start_timeout()
        for trial in list(self.lanes.values()):
            self.executor.end(trial, TrialState.FAIL, "error", "the training function ended before its last rung")

    def _report_rest(self) -> None:
        """End the commands and report the rungs that they reach until then, so that no reported rung is lost."""
        for lane, metrics in self.runs.rest():
            if lane in self.lanes and self._report(lane, self.lanes[lane], metrics):
                del self.lanes[lane]

    def _start_timeout(self) -> None:
        limit = self.study.file.limits.seconds
        if self.lanes and limit is not None and not self.is_command:
            self.signals.start_timeout(limit - max(trial.seconds() for trial in self.lanes.values()))

    def _resume(self, lane: int, trial: RunningTrial) -> bool:
        """Resume a trial; return whether it has left its lane.

        Its checkpoint may be that of its last rung, or of a mark at which the last attempt ended before it decided.
        """
        rung = resume_run(self.executor, self.runs, lane, trial)
        if rung < self.study.rungs:
            if rung > 0 and rung == trial.rung and self.executor.prober.is_due(trial, rung):
                self.due.append(lane)
                return False
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
            self._abandon(lane, trial)
        elif decision == "killed":
            self._stop(lane, trial)
            self.executor.end_by(trial, decision)
        return decision != "continue"

    def _report(self, lane: int, trial: RunningTrial, metrics: Any) -> bool:
        """Report one rung of a trial; return whether the trial has left its lane."""
        try:
            rung, value, trial.metrics = parse_report(metrics, self.study.file.objective)
        except Exception as error:  # this trial alone has failed, not its pack
            return self._fail(lane, trial, error)
        is_new = rung >= trial.rung  # an earlier attempt has already decided about other rungs
        try:
            status = self._report_value(trial, rung, value)
        except Unwritable as error:  # the files of this trial alone
            return self._fail(lane, trial, error)
        if status in ("held", "unreachable") and self.executor.prober.is_due(trial, rung):
            self.due.append(lane)
            return self._save_checkpoints(lane, trial, rung, value)
        decision = self.executor.decide(trial) if is_new and status in ("held", "unreachable") else "continue"
        return self._conclude(lane, trial, status, decision) or self._continue(lane, trial, decision)

    def _probe(self) -> None:
        """Train the probes of the trials that are due, and decide about these trials. Their checkpoints are saved."""
        due, self.due = {lane: self.lanes[lane] for lane in self.due if lane in self.lanes}, []
        if not due:
            return
        self._start_timeout()
        probes = self.executor.prober.run(self.runs, due)
        self.signals.cancel_timeout()
        for lane, trial in due.items():
            if self._report_probe(lane, trial, probes[lane]):
                del self.lanes[lane]

    def _report_probe(self, lane: int, trial: RunningTrial, probe: Mapping[str, float]) -> bool:
        """Report the probe of a trial and decide about the trial; return whether it has left its lane."""
        try:
            status = self.executor.prober.report(trial, probe, self.executor.promoter.is_due(trial))
        except Unwritable as error:  # the files of this trial alone
            return self._fail(lane, trial, error)
        decision = self.executor.decide(trial) if status in ("held", "unreachable") else "continue"
        if self._conclude(lane, trial, status, decision):
            return True
        return decision == "pause" and self._pause(lane, trial)

    def _end_timed_out(self) -> None:
        """End the trials that timed out in the middle of a rung. The other trials resume from their last rung."""
        limit = self.study.file.limits.seconds
        for trial in list(self.lanes.values()):
            if trial in self.executor.trials and trial.is_over(limit):
                self.executor.end_by(trial, "timeout")

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
                self._abandon(lane, trial)
                del self.lanes[lane]
