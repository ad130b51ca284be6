"""One pack of trials, trained side by side from rung to rung, its lanes refilled as they come free."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from optuna.trial import TrialState

from hpo.runs import checkpoints
from hpo.runs.run_dir import append_metrics, read_metrics, to_json_value, truncate_metrics
from hpo.runs.trainable import build_runs, pack_key, read_report
from hpo.worker.executor import TrialExecutor
from hpo.worker.failures import classify_failure
from hpo.worker.signals import SignalHandler, TrialTimeout
from hpo.worker.trial import RunningTrial


class PackRunner:
    """Trains the first job that is held and all that fit beside it, until none of that shape is left."""

    def __init__(self, jobs: TrialExecutor, size: int, alarm: SignalHandler) -> None:
        self.jobs, self.alarm = jobs, alarm
        self.study = jobs.stored.study
        self.key = pack_key(jobs.held[0].config)
        fitting = [job for job in jobs.held if not job.alone and pack_key(job.config) == self.key]
        self.fitting = [jobs.held[0]] if jobs.held[0].alone else fitting[:size]
        self.lanes: dict[int, RunningTrial] = {}
        self.begun = False

    def run(self, leaving: Callable[[], bool], refill: Callable[[], None]) -> int | None:
        """Train; return the lanes that a pack may have from now on, None for as many as before.

        leaving: whether to stop at this rung. refill: claims trials for lanes that came free.
        """
        try:
            self._start()
            self._train(leaving, refill)
        except TrialTimeout:
            self._end_overdue()
        except Exception as error:  # whatever a configuration or a user's function does must not end the worker
            at_fault = [job for job in self.lanes.values() if job in self.jobs.held]
            if not at_fault:
                raise
            if len(at_fault) > 1 and not self.begun and classify_failure(error) == "error":
                for job in at_fault:  # one of them: which one shows when each is begun by itself
                    job.alone = True
                return None
            return self.jobs.failed(error, at_fault)
        finally:
            self.alarm.off()
        return None

    def _start(self) -> None:
        """Build the runs and set each to where it goes on."""
        self.lanes = dict(enumerate(self.fitting))
        given = self.jobs.corpora.training_arguments(self.fitting[0].config)
        self.runs = build_runs(self.study.file.train, [job.config for job in self.fitting], **given)
        for lane, job in self.lanes.items():
            self._begin(lane, job)
        self.begun = True

    def _train(self, leaving: Callable[[], bool], refill: Callable[[], None]) -> None:
        """Drive the pack from rung to rung."""
        self._set_alarm()
        for _, reports in self.runs:
            self.alarm.off()  # what is told at a rung is told whole
            for lane, metrics in reports.items():
                if self._beat(lane, self.lanes[lane], metrics):
                    del self.lanes[lane]
            self._drop_lost()
            if leaving():
                return
            refill()
            self._fill()
            self._set_alarm()
        for job in list(self.lanes.values()):
            self.jobs.end(job, TrialState.FAIL, "error", "the training function ended before its last rung")

    def _set_alarm(self) -> None:
        limit = self.study.file.limits.seconds
        if self.lanes and limit is not None:
            self.alarm.overdue_in(limit - max(job.spent() for job in self.lanes.values()))

    def _begin(self, lane: int, job: RunningTrial) -> None:
        """Go on from the newest checkpoint that can be read, or from the start where there is none, and say so."""
        log = job.folder / "metrics.jsonl"
        rows = {row["rung"]: row for row in read_metrics(log) if "rung" in row}
        told = job.trial.intermediate_values
        rung, why = self._resumed(lane, job, {*rows, *told}) if job.claim.attempt > 1 or job.rung else (0, "")
        if not rung and job.rung:
            self.jobs.log("restarted", f"trial {job.number} starts again: {why}")
        for r in range(1, rung + 1):  # trained while the storage was away, by an attempt that then ended
            if r not in told:
                found = rows[r].get(self.study.file.objective)
                job.add(r, float("nan") if found is None else float(found))
        job.seconds = float(rows.get(rung, {}).get("seconds") or 0.0)
        job.began = time.monotonic()
        truncate_metrics(log, rung)

    def _resumed(self, lane: int, job: RunningTrial, known: set[int]) -> tuple[int, str]:
        """Set a lane to the newest checkpoint whose curve is known; return its rung, 0 with the reason for none."""
        why = "it had left no checkpoint"
        for folder in checkpoints.resumable_checkpoints(job.folder):
            try:
                rung = self.runs.resume(lane, folder)
            except (ValueError, OSError) as error:
                why = str(error)
                continue
            if known >= set(range(1, rung + 1)):
                return rung, ""
            why = "values of its first rungs are missing"
            self.runs.stop(lane)
            self.runs.start(lane, job.config)
        return 0, why

    def _beat(self, lane: int, job: RunningTrial, metrics: Any) -> bool:
        """Report one rung of one trial; return whether the trial ended."""
        try:
            rung, value, job.metrics = read_report(metrics, self.study.file.objective)
        except Exception as error:  # one function's failure is not its neighbours'
            self.runs.stop(lane)
            self.jobs.failed(error, [job])
            return True
        known = job.rung
        job.add(rung, value)
        standing = self.jobs.teller.values(job, wait=rung >= self.study.rungs)
        if standing == "lost":
            self.runs.stop(lane)
            self.jobs.let_go(job.claim)
            return True
        append_metrics(job.folder / "metrics.jsonl", job.metrics)
        shown = {key: to_json_value(v) for key, v in job.metrics.items()}
        self.jobs.tell({"event": "rung", "trial": job.number, "rung": rung, "value": to_json_value(value), **shown})
        # A rung that an earlier attempt has reported was decided on then.
        verdict = self.jobs.verdict(job) if rung >= known else "continue"
        if standing == "killed":
            verdict = "killed"
        elif job.overdue(self.study.file.limits.seconds) and rung < self.study.rungs:
            verdict = "timeout"
        if verdict == "continue":
            self._keep(lane, job, rung, value)
            if rung < self.study.rungs:
                return False
        self.runs.stop(lane)
        self._end(job, verdict, value)
        return True

    def _keep(self, lane: int, job: RunningTrial, rung: int, value: float) -> None:
        best = value <= min(job.trial.intermediate_values.values())
        with contextlib.suppress(ValueError):  # a pack whose marks fall apart: it goes on from an earlier checkpoint
            checkpoints.save_checkpoints(self.runs, lane, job.config, job.folder, rung, best)

    def _end(self, job: RunningTrial, verdict: str, value: float) -> None:
        match verdict:
            case "continue":
                self.jobs.finish(job, value)
            case "killed":
                self.jobs.end(job, TrialState.FAIL, "killed")
            case "timeout":
                self.jobs.end(job, TrialState.PRUNED, "timeout", self._overdue(job))
            case "prune":
                self.jobs.end(job, TrialState.PRUNED, "pruned")
            case _:
                self.jobs.end(job, TrialState.PRUNED, verdict)

    def _end_overdue(self) -> None:
        """End the trials whose time is over in the middle of a rung; the others go on from their last one."""
        limit = self.study.file.limits.seconds
        for job in [job for job in self.lanes.values() if job in self.jobs.held and job.overdue(limit)]:
            self.jobs.end(job, TrialState.PRUNED, "timeout", self._overdue(job))

    def _overdue(self, job: RunningTrial) -> str:
        return f"limits.seconds: allows {self.study.file.limits.seconds:g}, the trial took {job.spent():.1f}"

    def _fill(self) -> None:
        """Put trials of the pack's shape into lanes that came free; others wait for a pack of their own."""
        taken = list(self.lanes.values())
        held = [job for job in self.jobs.held if job not in taken and not job.alone]
        waiting = [job for job in held if pack_key(job.config) == self.key]
        free = [lane for lane in range(len(self.fitting)) if lane not in self.lanes]
        for lane, job in zip(free, waiting, strict=False):
            try:
                self.runs.start(lane, job.config)
                self._begin(lane, job)
                self.lanes[lane] = job
            except Exception as error:  # its own failure, not its neighbours'
                with contextlib.suppress(KeyError):  # it may not have come so far
                    self.runs.stop(lane)
                self.jobs.failed(error, [job])

    def _drop_lost(self) -> None:
        """Let go of the trials that the keeper found lost."""
        for lane, job in list(self.lanes.items()):
            if (job.claim.slot, job.claim.attempt) in self.jobs.keeper.lost:
                self.runs.stop(lane)
                self.jobs.let_go(job.claim)
                del self.lanes[lane]
