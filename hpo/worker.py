"""The worker: claim trials, train them side by side, report at each rung, tell how each ended."""

import contextlib
import errno
import math
import os
import signal
import socket
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from hpo import checkpoints, folders, plug
from hpo.data import Corpora
from hpo.explain import messages
from hpo.job import Job, configuration, open_trial
from hpo.patience import StorageError
from hpo.problems import Problem, WorkFailed
from hpo.pruner import Judge
from hpo.register import Registered
from hpo.slots import Claim, Renewer
from hpo.status import ENDED, ERROR, METRICS

LEASE_S = 60.0
LOOK_S = 5.0  # between looks at hours and tokens used, which read the whole study
POLL_S = 1.0  # between looks for a slot that came free, while others still work
FULL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EFBIG, errno.EIO)
Tell = Callable[[dict[str, Any]], None]


class Worker:
    """Works on one study until its budget is spent or somebody says stop."""

    def __init__(self, at: Registered, out: Path, pack: int, listener: Tell, parent: int | None = None) -> None:
        """Join a study.

        out: folder of the runs. listener: is told what happens. parent: the process without which not to go on.
        """
        self.at, self.out, self.pack, self.listener, self.parent = at, out, pack, listener, parent
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.judge = Judge(at.optuna, at.study.file.pruner.build(at.study.rungs), at.study.rungs)
        self.renewer = Renewer(at.slots, self.owner, LEASE_S)
        self.corpora = Corpora()
        self.jobs: list[Job] = []  # claimed and not ended, training or waiting for a pack of their shape
        self.stopping: int | None = None
        self.over, self.look_at_budget = False, 0.0

    def work(self) -> int:
        """Run trials; return 0 when the budget is spent, else 128 + the signal that ended the work."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        with self.renewer:
            try:
                while not self._stopped():
                    self._claim()
                    if self.jobs:
                        self._run_pack()
                    elif self._spent():
                        break
                    else:
                        time.sleep(POLL_S)
            finally:
                for job in self.jobs:
                    self._requeue(job)
        return 128 + self.stopping if self.stopping else 0

    def _on_signal(self, number: int, _: Any) -> None:
        """First signal: finish the rung, save, requeue, leave. Second: leave now; the trials are requeued."""
        if self.stopping is not None:
            raise KeyboardInterrupt
        self.stopping = number

    def tell(self, event: dict[str, Any]) -> None:
        try:
            self.listener(event)
        except BrokenPipeError:  # whoever listened is gone
            self.listener = lambda event: None
            self.stopping = self.stopping or signal.SIGTERM

    def _stopped(self) -> bool:
        """Return whether to stop: on a signal, or when the process that started this worker is gone."""
        if self.parent is not None and os.getppid() != self.parent:
            self.stopping = self.stopping or signal.SIGTERM
        return self.stopping is not None

    def _spent(self) -> bool:
        return self.at.slots.left(only_begun=self._over()) == 0

    def _over(self) -> bool:
        """Return whether the hours or tokens of the budget are used up, after which no trial is begun."""
        if time.monotonic() >= self.look_at_budget:
            self.over = self.at.over()
            self.look_at_budget = time.monotonic() + LOOK_S
        return self.over

    def _claim(self) -> None:
        """Take trials until there is one for each place of the pack."""
        while len(self.jobs) < self.pack and not self._stopped():
            claim = self.at.slots.claim(self.owner, LEASE_S, only_begun=self._over())
            if claim is None:
                return
            self.renewer.hold(claim)
            try:
                self._take(claim, open_trial(self.at, claim, self.owner, self.pack))
            except BaseException:
                if all(job.claim != claim for job in self.jobs):  # else it is given back with the others
                    self.renewer.drop(claim)
                    self.at.slots.release(claim, self.owner)
                raise

    def _take(self, claim: Claim, trial: FrozenTrial) -> None:
        """Find out what a trial is to train, and put it among the jobs."""
        if trial.state.is_finished():  # an earlier attempt ended it, but not its slot
            self.renewer.drop(claim)
            self.at.slots.done(claim, self.owner)
            return
        folder = folders.trial_folder(self.out, self.at.study.name, trial.number)
        job = Job(claim, trial, self.at.study.base, folder)
        self.jobs.append(job)
        self.tell({"event": "start", "trial": job.number, "kind": claim.kind, "attempt": claim.attempt})
        # Fields that are fine one by one may not go together, as n_head and n_embd, or leave too little text. Pruned,
        # not failed: the sampler forgets a failed trial and would come back.
        try:
            job.config = configuration(self.at, claim, trial)
            data_hash = self.corpora.hash(job.config)
        except ValidationError as error:
            self._end(job, TrialState.PRUNED, "invalid", "; ".join(messages(error, type(self.at.study.base))))
            return
        except Problem as problem:
            self._end(job, TrialState.PRUNED, "invalid", str(problem))
            return
        job.trial = self.at.store.optuna.get_trial(trial._trial_id)  # a copy of our own, parameters included
        self._write_config(job, data_hash)
        value = job.trial.intermediate_values.get(self.at.study.rungs, math.nan)
        if math.isfinite(value):  # the last attempt ended between its last report and telling so
            job.metrics = next(iter(reversed(list(folders.lines(job.folder / "metrics.jsonl")))), {})
            self._end(job, TrialState.COMPLETE, "complete", value=value)

    def _run_pack(self) -> None:
        """Train the first job and all that fit beside it, refilling places, until none of that shape is left."""
        key = plug.pack_key(self.jobs[0].config)
        fitting = [job for job in self.jobs if plug.pack_key(job.config) == key]
        places: dict[int, Job] = {}
        try:
            runs = self._built(fitting)
            for place, job in enumerate(fitting):
                self._begin(runs, place, job)
                places[place] = job
            for _, reports in runs:
                for place, metrics in reports.items():
                    if self._beat(runs, place, places[place], metrics):
                        del places[place]
                self._drop_lost(runs, places)
                if self._stopped():
                    for place, job in places.items():
                        self._save(runs, place, job)
                    return
                self._refill(runs, places, key, len(fitting))
            for job in list(places.values()):
                self._end(job, TrialState.FAIL, "error", "the training function ended before its last rung")
        except Exception as error:  # whatever a configuration or a user's function does must not end the worker
            if isinstance(error, OSError) and error.errno in FULL:
                raise WorkFailed(f"cannot write in {self.out}: {error.strerror or error}") from error
            if _is_ours(error):
                raise
            at_fault = [job for job in places.values() or fitting if job in self.jobs]
            if not at_fault:
                raise
            self._blame(error, at_fault)

    def _built(self, jobs: list[Job]) -> plug.Runs:
        given = self.corpora.given(jobs[0].config)
        return plug.runs(self.at.study.file.train, [job.config for job in jobs], **given)

    def _begin(self, runs: plug.Runs, place: int, job: Job) -> None:
        """Go on from a checkpoint if an earlier attempt left one."""
        rung = 0
        found = checkpoints.newest(job.folder) if job.claim.attempt > 1 else None
        if found is not None:
            with contextlib.suppress(ValueError, OSError):
                rung = runs.resume(place, found)
        folders.keep_rungs(job.folder / "metrics.jsonl", rung)

    def _beat(self, runs: plug.Runs, place: int, job: Job, metrics: Any) -> bool:
        """Report one rung of one trial; return whether the trial ended."""
        objective = self.at.study.file.objective
        try:
            rung, value, job.metrics = plug.reported(metrics, objective)
        except Exception as error:  # one function's failure is not its neighbours'
            self._blame(error, [job])
            runs.stop(place)
            return True
        if not self.at.slots.holds(job.claim, self.owner):
            return self._lose(runs, place, job)
        folders.append(job.folder / "metrics.jsonl", job.metrics)
        if rung > job.rung:
            try:
                self.at.store.optuna.set_trial_intermediate_value(job.trial._trial_id, rung, value)
            except UpdateFinishedTrialError:  # whoever took it over has ended it
                return self._lose(runs, place, job)
            job.trial.intermediate_values[rung] = value
        shown = {key: folders.jsonable(v) for key, v in job.metrics.items()}
        self.tell({"event": "rung", "trial": job.number, "rung": rung, "value": folders.jsonable(value), **shown})
        # A rung that an earlier attempt has reported was decided on then.
        best = value <= min(job.trial.intermediate_values.values())
        verdict = self.judge.verdict(job.trial, job.baseline) if rung >= job.rung else "continue"
        if verdict == "continue":
            checkpoints.keep(runs, place, job.config, job.folder, rung, best)
            if rung < self.at.study.rungs:
                return False
            self._end(job, TrialState.COMPLETE, "complete", value=value)
        else:
            self._end(job, TrialState.PRUNED, "diverged" if verdict == "diverged" else "pruned")
        runs.stop(place)
        return True

    def _save(self, runs: plug.Runs, place: int, job: Job) -> None:
        # A full disk, or a pack whose marks fall apart: the trial goes on from an earlier checkpoint, or starts again.
        with contextlib.suppress(OSError, ValueError):
            runs.save(place, job.folder / checkpoints.INTERRUPTED)

    def _refill(self, runs: plug.Runs, places: dict[int, Job], key: str, size: int) -> None:
        """Put new trials of the pack's shape into places that came free; others wait for a pack of their own."""
        self._claim()
        waiting = [j for j in self.jobs if j not in places.values() and plug.pack_key(j.config) == key]
        free = [place for place in range(size) if place not in places]
        for place, job in zip(free, waiting, strict=False):
            runs.start(place, job.config)
            self._begin(runs, place, job)
            places[place] = job

    def _lose(self, runs: plug.Runs, place: int, job: Job) -> bool:
        """Let go of a trial whose lease another worker took: nothing more is written of it. Return True."""
        runs.stop(place)
        self._forget(job)
        self.tell({"event": "lost", "trial": job.number})
        return True

    def _drop_lost(self, runs: plug.Runs, places: dict[int, Job]) -> None:
        """Let go of the trials that the renewer found lost."""
        for place, job in list(places.items()):
            if (job.claim.slot, job.claim.attempt) in self.renewer.lost:
                self._lose(runs, place, job)
                del places[place]

    def _end(self, job: Job, state: TrialState, word: str, error: str = "", value: float | None = None) -> None:
        """Tell the study how a trial ended, then close its slot."""
        storage, trial_id = self.at.store.optuna, job.trial._trial_id
        finite = [v for v in job.trial.intermediate_values.values() if math.isfinite(v)]
        values = [value] if value is not None else finite[-1:] if state == TrialState.PRUNED else []
        try:
            storage.set_trial_user_attr(trial_id, METRICS, {k: folders.jsonable(v) for k, v in job.metrics.items()})
            storage.set_trial_user_attr(trial_id, ENDED, word)
            if error:
                storage.set_trial_user_attr(trial_id, ERROR, error)
            storage.set_trial_state_values(trial_id, state, values or None)
        except UpdateFinishedTrialError:
            pass  # an earlier attempt told the same: runs are deterministic
        self._forget(job)
        self.at.slots.done(job.claim, self.owner)
        self.judge.look_again()
        self.look_at_budget = 0.0
        checkpoints.forget(job.folder, all_of_them=state != TrialState.COMPLETE)
        told = {"event": word, "trial": job.number, "rung": job.rung, "value": values[0] if values else None}
        self.tell(told | ({"error": error.strip().splitlines()[-1]} if error else {}))

    def _blame(self, error: Exception, jobs: list[Job]) -> None:
        """Fail the trials of a pack that an exception ended, with its text."""
        text = "".join(traceback.format_exception(error))
        for job in jobs:
            with contextlib.suppress(OSError):
                (job.folder / "stderr.log").write_text(text, "utf-8")
            self._end(job, TrialState.FAIL, "error", text)

    def _requeue(self, job: Job) -> None:
        """Give a trial back as it is: RUNNING, its slot free, for whoever claims it next."""
        self.renewer.drop(job.claim)
        with contextlib.suppress(StorageError):
            self.at.slots.release(job.claim, self.owner)
            self.tell({"event": "requeued", "trial": job.number, "rung": job.rung})

    def _forget(self, job: Job) -> None:
        self.jobs.remove(job)
        self.renewer.drop(job.claim)

    def _write_config(self, job: Job, data_hash: str | None) -> None:
        provenance = {
            "study": self.at.study.name,
            "trial": job.number,
            "kind": job.claim.kind,
            "data_hash": data_hash,
            "train": self.at.study.file.train,
            "config": self.at.study.file.config,
            "pack": self.pack,
            **folders.machine(),
        }
        folders.write(job.folder / "config.yaml", folders.config_text(job.config, provenance))


def _is_ours(error: Exception) -> bool:
    """Return whether an error is the storage's or the machine's, not the trial's: it would fail the next trial too."""
    return isinstance(error, StorageError | Problem) or (isinstance(error, OSError) and error.errno in FULL)
