"""The lanes of a pack: report, save, pause, complete and end the trial of one lane."""

import contextlib
import time

from hpo.runs import checkpoints
from hpo.runs.command import TICK_S
from hpo.runs.metrics import append_metrics
from hpo.runs.run_dir import to_json_value
from hpo.runs.trainable import GuardedRuns
from hpo.worker.executor import TrialExecutor
from hpo.worker.finish import finish_run
from hpo.worker.reporter import LeaseStatus
from hpo.worker.signals import SignalHandler
from hpo.worker.trial import RunningTrial


class Lanes:
    """The trials that train side by side, by lane.

    is_command: whether each lane is a process of its own.
    """

    runs: GuardedRuns

    def __init__(self, executor: TrialExecutor, signals: SignalHandler) -> None:
        """Start with no lanes."""
        self.executor, self.signals = executor, signals
        self.study = executor.stored.study
        self.is_command = self.study.file.command is not None
        self.lanes: dict[int, RunningTrial] = {}
        self._check_at = time.monotonic() + TICK_S

    def _report_value(self, trial: RunningTrial, rung: int, value: float) -> LeaseStatus:
        """Report the value of a rung; return the status of the lease.

        Raises:
            Unwritable: the metrics cannot be written.
        """
        trial.add_value(rung, value)
        wait = rung >= self.study.rungs or self.executor.promoter.is_due(trial)
        status = self.executor.reporter.report_values(trial, wait)
        if status == "lost":
            return status
        append_metrics(trial.folder / "metrics.jsonl", trial.metrics)
        shown = {key: to_json_value(v) for key, v in trial.metrics.items()}
        event = {"event": "rung", "trial": trial.number, "rung": rung, "value": to_json_value(value)}
        self.executor.emit({**event, **shown})
        return status

    def _conclude(self, lane: int, trial: RunningTrial, status: LeaseStatus, decision: str) -> bool:
        """End a trial by what was decided at its last rung; return whether it has left its lane."""
        if "lost" in (status, decision):
            self._abandon(lane, trial)
            return True
        if status == "killed":
            decision = status
        elif trial.is_over(self.study.file.limits.seconds) and int(trial.metrics["rung"]) < self.study.rungs:
            decision = "timeout"
        if decision in ("continue", "pause"):
            return False
        self._stop(lane, trial)
        self.executor.end_by(trial, decision)
        return True

    def _continue(self, lane: int, trial: RunningTrial, decision: str) -> bool:
        """Save, pause or complete a trial that has not ended; return whether it has left its lane."""
        rung = int(trial.metrics["rung"])
        value = trial.frozen.intermediate_values[rung]
        if self._save_checkpoints(lane, trial, rung, value):
            return True
        if decision == "pause":
            return self._pause(lane, trial)
        if rung < self.study.rungs:
            return False
        finish_run(self.executor, self.runs, self.signals, lane, trial, rung)
        self._stop(lane, trial)
        self.executor.complete(trial, value)
        return True

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

    def _abandon(self, lane: int, trial: RunningTrial) -> None:
        """Drop a trial whose lease is lost; another attempt may already run it."""
        try:
            self.runs.abandon(lane)
        except Exception as error:
            self.executor.note(trial, "while it was closed", error)
        self.executor.drop_lost(trial.claim)

    def _check_commands(self) -> None:
        """End the commands that are killed, or that take longer than their limit, between two of their rungs."""
        if time.monotonic() < self._check_at:
            return
        self._check_at = time.monotonic() + TICK_S
        for lane, trial in list(self.lanes.items()):
            status = self.executor.reporter.report_values(trial, wait=False)
            if status == "lost":
                self._abandon(lane, trial)
            elif status == "killed" or trial.is_over(self.study.file.limits.seconds):
                self._stop(lane, trial)
                self.executor.end_by(trial, "killed" if status == "killed" else "timeout")
            else:
                continue
            del self.lanes[lane]

    def _fail(self, lane: int, trial: RunningTrial, error: Exception) -> bool:
        """End or requeue one trial of the pack; return True, because it has left its lane."""
        self._stop(lane, trial)
        self.executor.handle_failure(error, [trial])
        return True

    def _save_checkpoints(self, lane: int, trial: RunningTrial, rung: int, value: float) -> bool:
        """Save the checkpoints of a trial at a rung; return whether the trial has failed and left its lane."""
        loss = self.study.direction.loss
        best = loss(value) <= min(map(loss, trial.frozen.intermediate_values.values()))
        try:
            # ValueError: the lanes are at different steps. The trial then resumes from an earlier checkpoint.
            with contextlib.suppress(ValueError):
                checkpoints.save_checkpoints(self.runs, lane, trial.config, trial.folder, rung, best)
        except Exception as error:  # a class of the user may raise anything
            return self._fail(lane, trial, error)
        return False
