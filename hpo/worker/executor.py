"""The trials in a worker's hands: claimed, ended, given back, and what is made of a failure."""

import gc
import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from pydantic import ValidationError

from hpo.config.files import config_text
from hpo.config.validation import messages
from hpo.errors import Problem, StorageError, Unwritable
from hpo.optuna_internals import get_trial_id
from hpo.queue.heartbeat import LeaseRenewer
from hpo.queue.registry import StoredStudy
from hpo.queue.slots import MAX_FAILURES, Claim
from hpo.runs import checkpoints
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.memory import memory_problem
from hpo.runs.provenance import describe_machine
from hpo.runs.run_dir import read_metrics, trial_folder, write_file
from hpo.search.pruning import Decider
from hpo.storage.attributes import FORKED
from hpo.storage.fencing import LeaseLost, fenced
from hpo.storage.retry import limit_patience
from hpo.worker.failures import CircuitBreaker, classify_failure
from hpo.worker.reporter import UNREACHABLE_WAIT_S, Reporter, last_line
from hpo.worker.trial import RunningTrial, open_trial, trial_config

EventListener = Callable[[dict[str, Any]], None]
EVENT_TYPES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "error"}


class TrialExecutor:
    """What one owner has claimed and not ended, training or waiting for a pack of its shape."""

    def __init__(
        self, stored: StoredStudy, owner: str, keeper: LeaseRenewer, out: Path, lease_s: float, tell: EventListener
    ) -> None:
        self.stored, self.owner, self.keeper, self.out, self.lease_s, self.tell = (
            stored,
            owner,
            keeper,
            out,
            lease_s,
            tell,
        )
        self.teller = Reporter(stored, owner, keeper, lease_s)
        self.judge = Decider(stored.optuna, stored.study.file.pruner.build(stored.study.rungs), stored.study.rungs)
        self.corpora = PreparedDatasets()
        self.breaker = CircuitBreaker()
        self.held: list[RunningTrial] = []
        self.quarantine: tuple[str, str] | None = None  # kind and text of the failures that this machine repeats

    def claim(self, pack: int) -> bool:
        """Claim a trial for a pack of so many and find out what it is to train; False where there is none."""
        now = self.teller.now()
        claim = self.stored.slots.claim(self.owner, self.lease_s, self.stored.is_over(now), now.rungs)
        if claim is None:
            return False
        self.keeper.hold(claim)
        try:
            trial = open_trial(self.stored, claim, self.owner, pack)
            job = RunningTrial(claim, trial, self.stored.study.base, self._folder(trial.number))
            self.held.append(job)
            self._take(job, pack)
        except LeaseLost:
            self.let_go(claim)
        except Exception as error:
            held = [job for job in self.held if job.claim == claim]
            if not held:
                self.keeper.drop(claim)
                self.stored.slots.release(claim, self.owner, "interrupted", str(error), failed=True)
                raise
            self.failed(error, held)  # its own failure, whoever trains beside it
        return True

    def _take(self, job: RunningTrial, pack: int) -> None:
        """Find out what a trial is to train; end it where that is clear already."""
        claim = job.claim
        if job.trial.state.is_finished():  # an earlier attempt ended it, but not its slot
            self.held.remove(job)
            self.teller.close(job, EVENT_TYPES[job.trial.state])
            return
        self.tell({"event": "start", "trial": job.number, "kind": claim.kind, "attempt": claim.attempt})
        if claim.requested_action == "kill":
            self.end(job, TrialState.FAIL, "killed")
            return
        if claim.failures >= MAX_FAILURES:
            why = f"{claim.failures} attempts in a row ended without a rung; the trial may be what ends its workers"
            self.end(job, TrialState.FAIL, "lost", why)
            return
        # Fields that are fine one by one may not go together, as n_head and n_embd, or leave too little text. Pruned,
        # not failed: the sampler forgets a failed trial and would come back.
        try:
            with fenced(self.stored.slots.held(claim, self.owner)):
                job.config = trial_config(self.stored, claim, job.trial)
            data_hash = self.corpora.data_hash(job.config)
        except ValidationError as error:
            self.end(job, TrialState.PRUNED, "invalid", "; ".join(messages(error, type(self.stored.study.base))))
            return
        except Unwritable:
            raise
        except Problem as problem:
            self.end(job, TrialState.PRUNED, "invalid", str(problem))
            return
        job.trial = self.stored.store.optuna.get_trial(
            get_trial_id(job.trial)
        )  # a copy of our own, parameters included
        if reason := memory_problem(self.stored.study, job.config, self.corpora):
            self.end(job, TrialState.PRUNED, "oom", reason)
            return
        self._write_config(job, data_hash, pack)
        last = job.trial.intermediate_values.get(self.stored.study.rungs)
        if last is not None and math.isfinite(last):  # the last attempt ended between its last report and telling so
            job.metrics = next(iter(reversed(list(read_metrics(job.folder / "metrics.jsonl")))), {})
            self.finish(job, last)

    def verdict(self, job: RunningTrial) -> str:
        """Return what becomes of a trial; while the storage is away, nothing is known that would end it."""
        try:
            with limit_patience(UNREACHABLE_WAIT_S):
                verdict = self.judge.verdict(job.trial, job.spared)
        except StorageError as error:
            if not error.passing:
                raise
            return "continue"
        if verdict == "prune":
            job.pruned = self.judge.record(self.stored.study.file.pruner, job.trial)
        return verdict

    def finish(self, job: RunningTrial, value: float) -> None:
        """End a trial that reached its last rung, and keep checkpoints of the best trials alone."""
        self.end(job, TrialState.COMPLETE, "complete", value=value)
        complete = self.stored.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        own = [trial for trial in complete if trial.user_attrs.get("kind") != FORKED]
        ranked = sorted(own, key=lambda trial: trial.values[0])
        checkpoints.remove_all_checkpoints(
            self._folder(trial.number) for trial in ranked[self.stored.study.file.keep_best :]
        )

    def end(self, job: RunningTrial, state: TrialState, word: str, error: str = "", value: float | None = None) -> None:
        """Tell the study how a trial ended, and close its slot."""
        try:
            values = self.teller.end(job, state, word, error, value)
        except LeaseLost:
            self.let_go(job.claim)
            return
        self.held.remove(job)
        self.judge.look_again()
        if state != TrialState.FAIL:
            self.breaker.well()
        checkpoints.remove_checkpoints(job.folder, all_of_them=state != TrialState.COMPLETE)
        told = {"event": word, "trial": job.number, "rung": job.rung, "value": values[0] if values else None}
        self.tell(told | ({"error": last_line(error)} if error else {}))

    def let_go(self, claim: Claim) -> None:
        """Forget a trial whose lease another worker took: nothing more is written of it."""
        self.keeper.drop(claim)
        for job in [job for job in self.held if job.claim == claim]:
            self.held.remove(job)
            self.tell({"event": "taken", "trial": job.number})

    def requeue(self, jobs: Sequence[RunningTrial], word: str, text: str = "", failed: bool = False) -> None:
        """Give trials back, their slots free, for whoever claims them next."""
        for job in list(jobs):
            self.held.remove(job)
            if self.teller.requeue(job, word, text, failed):
                self.tell({"event": "requeued", "trial": job.number, "rung": job.rung, "text": word})

    def failed(self, error: Exception, jobs: Sequence[RunningTrial]) -> int | None:
        """Do what a failure asks for; return the lanes that a pack may have from now on, None for as many as before.

        Raises:
            Exception: the failure itself, where it is no trial's and not this machine's.
        """
        text = "".join(traceback.format_exception(error))
        match classify_failure(error):
            case "ours":
                raise error
            case "disk" | "device" as word:
                # A disk is no trial's doing; what fails a device may be, since a configuration can ask for nonsense.
                self.requeue(jobs, word, last_line(text), failed=word == "device")
                if self.breaker.failed(word):
                    self.quarantine = word, last_line(text)
                else:
                    time.sleep(1.0)  # what passes by itself has a moment to do so
            case "oom":
                gc.collect()
                if len(jobs) > 1:  # which of them is too large shows when fewer train side by side
                    self.log("oom", f"{len(jobs)} trials do not fit side by side: {last_line(text)}")
                    return len(jobs) // 2
                self.end(jobs[0], TrialState.PRUNED, "oom", text)
            case _:
                for job in jobs:
                    with suppress(OSError):
                        (job.folder / "stderr.log").write_text(text, "utf-8")
                    self.end(job, TrialState.FAIL, "error", text)
        return None

    def log(self, word: str, text: str) -> None:
        """Write down what happened to this worker; a storage that is away is not waited for."""
        self.tell({"event": "note", "text": f"{word}: {text}"})
        with suppress(StorageError), limit_patience(UNREACHABLE_WAIT_S):
            self.stored.slots.log(word, text, self.owner)

    def _folder(self, number: int) -> Path:
        return trial_folder(self.out, self.stored.study.name, number)

    def _write_config(self, job: RunningTrial, data_hash: str | None, pack: int) -> None:
        provenance = {
            "study": self.stored.study.name,
            "trial": job.number,
            "kind": job.claim.kind,
            "data_hash": data_hash,
            "train": self.stored.study.file.train,
            "config": self.stored.study.file.config,
            "pack": pack,
            **describe_machine(),
        }
        write_file(job.folder / "config.yaml", config_text(job.config, provenance))
