"""The worker: claim trials of a study and train them, until the budget is spent or a stop is requested."""

import functools
import math
import os
import random
import signal
import socket
import time
import uuid
from pathlib import Path

from hpo.errors import Interruption, WorkFailed
from hpo.queue.heartbeat import LeaseRenewer, lease_seconds
from hpo.queue.stored_study import StoredStudy, StudyState
from hpo.runs.run_dir import FolderGuard, can_write
from hpo.storage.retry import outages
from hpo.worker.events import Event, EventListener
from hpo.worker.executor import TrialExecutor
from hpo.worker.failures import Quarantine
from hpo.worker.pack import PackRunner
from hpo.worker.signals import SignalHandler

# Seconds between two attempts to claim a slot while no slot is free: (first, longest).
POLL_S = (0.5, 3.0)
# Seconds before the first test of a full disk, and the most before a later one. They double with each test.
PROBE_S, MAX_PROBE_S = 10.0, 160.0
# Quarantines without a trial that ends in between, after which the worker ends: the disk is too small for the study.
MAX_QUARANTINES = 5
# Outages of the storage of at least this many seconds are stored as events.
OUTAGE_S = 2.0
# Exit status of a worker whose device failed. The launcher starts a new process, in which the device may work again.
RESTART_STATUS = 75


class Worker:
    """Runs trials of one study.

    n_claimed: number of trials that it has claimed. spent: whether it has found the budget of the study spent.
    """

    def __init__(
        self, stored: StoredStudy, out: Path, pack: int, listener: EventListener, parent: int | None = None
    ) -> None:
        """Create a worker of a study.

        out: folder of the runs. pack: number of trials to train side by side. listener: receives the worker's events.
        parent: id of the parent process. The worker stops when this process ends.
        """
        self.stored, self.out, self.pack, self.listener, self.parent = stored, out, pack, listener, parent
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        lease_s = lease_seconds()
        self.renewer = LeaseRenewer(stored.slots, self.owner, lease_s)
        self.signals = SignalHandler()
        self.executor = TrialExecutor(stored, self.owner, self.renewer, out, lease_s, self.emit)
        self.executor.is_stopping = lambda: self.signals.signal is not None
        self.folder = FolderGuard(self.executor.folder, stored.uid)
        self.state = StudyState("active", False, None)
        self.n_claimed, self.spent = 0, False

    def work(self, max_trials: float = math.inf) -> int:
        """Run trials; return 0 when no work is left, or 128 + the number of the signal that stopped the worker.

        max_trials: number of trials to claim at most. If it is finite, the worker does not wait for trials of others.

        Raises:
            WorkFailed: the worker is quarantined.
        """
        self.emit({"event": "joined", "owner": self.owner})
        reason = "interrupted"  # by a failure, or of a claim whose answer was lost
        with self.renewer, self.signals:
            try:
                self._run_trials(max_trials)
                if self.signals.signal or self.state.state != "active":
                    reason = "preempted" if self.signals.signal else self.state.state
            except Interruption:  # each trial resumes later from its last rung
                if self.signals.signal is None:
                    raise
                reason = "preempted"
            finally:
                with self.signals.shield():
                    self.executor.leave(reason)
        return 128 + self.signals.signal if self.signals.signal else 0

    def _run_trials(self, max_trials: float) -> None:
        pause = POLL_S[0]
        waits = max_trials == math.inf  # otherwise the worker serves several studies, and another one may have work
        while not self._should_stop():
            if self.executor.quarantine:
                self._recover(self.executor.quarantine, waits)
            elif self.state.state == "paused":
                self.executor.requeue(self.executor.trials, "paused")
                if not waits or self._is_spent():
                    return
                time.sleep(POLL_S[0])
            else:
                self._claim_trials(max_trials)
                if self.executor.trials:
                    pause = POLL_S[0]
                    self._run_pack(max_trials)
                elif (spent := self._is_spent()) or not waits:
                    self.spent = spent
                    return
                elif not self.executor.quarantine:
                    time.sleep(random.uniform(0.7, 1.0) * pause)
                    pause = min(1.5 * pause, POLL_S[1])

    def _run_pack(self, max_trials: float) -> None:
        """Train one pack; after it ran out of memory, later packs are smaller."""
        refill = functools.partial(self._claim_trials, max_trials)
        size = PackRunner(self.executor, self.pack, self.signals).run(self._pack_should_stop, refill)
        self.pack = max(1, size or self.pack)

    def emit(self, event: Event) -> None:
        """Pass an event to the listener; stop the worker if the launcher that reads the events has ended.

        An event that cannot be printed is lost, for example on a full disk. No trial has caused this.
        """
        try:
            self.listener(event)
        except BrokenPipeError:
            self.listener = lambda event: None
            self.signals.request_stop(signal.SIGTERM)
        except (OSError, ValueError):  # ValueError: training code has closed standard output
            pass

    def _should_stop(self) -> bool:
        """Return whether to stop: after a signal, if the parent process has ended, or if the study is stopped.

        Raises:
            WorkFailed: the study or its run folder is gone.
            StorageError: the file of the storage is gone.
        """
        if self.parent is not None and os.getppid() != self.parent:
            self.signals.request_stop(signal.SIGTERM)
        if self.signals.signal is None:
            self.state = self.executor.reporter.study_state()
            self.folder.check()
            for seconds in outages.pop_durations():
                if seconds >= OUTAGE_S:
                    self.executor.log_event("away", f"the storage was unreachable for {seconds:.0f} s")
        return self.signals.signal is not None or self.state.state == "stopped"

    def _pack_should_stop(self) -> bool:
        return self._should_stop() or self.state.state == "paused" or self.executor.quarantine is not None

    def _claim_trials(self, max_trials: float) -> None:
        """Claim trials until a pack of one shape is full or no slot is free."""
        while self.executor.wants_trials(self.pack) and self.n_claimed < max_trials and not self.executor.quarantine:
            if self._should_stop() or self.state.state != "active" or not self.executor.claim_trial(self.pack):
                return
            self.n_claimed += 1

    def _is_spent(self) -> bool:
        """Return whether the study's budget leaves no work for this worker, now or later; then end paused trials.

        Raises:
            WorkFailed: the study is gone.
        """
        return self._is_used_up() and self.executor.end_paused(self.state)

    def _is_used_up(self) -> bool:
        """Return whether no trial is running or interrupted, and the budget has no room for another trial."""
        slots = self.stored.slots
        if slots.n_unfinished(only_started=self.stored.is_over(self.state)) == 0:
            self.stored.read_state()  # a study that is gone has no slots either
            return True
        if self.state.rungs is None:
            return False
        # The remaining tokens do not pay for another trial. A running trial may be pruned and leave enough, so the
        # worker waits until none is running.
        trial_rungs, budget_rungs = self.state.rungs
        return slots.rungs() + trial_rungs > budget_rungs and not slots.n_unfinished(only_started=True)

    def _recover(self, quarantine: Quarantine, waits: bool) -> None:
        """Requeue all trials and wait until this machine works again.

        waits: whether to wait in this process for a disk.

        Raises:
            WorkFailed: a new process is needed, the worker has other studies to serve, or waiting is useless.
        """
        self.executor.quarantine = None
        kind, text, unwritable = quarantine
        self.executor.log_event("quarantined", f"the {kind} failed: {text}")
        self.executor.requeue(self.executor.trials, kind)
        if unwritable is None or not waits:
            failed = WorkFailed(f"worker quarantined: {text}; repair the {kind} of this machine")
            failed.status = RESTART_STATUS
            raise failed
        breaker = self.executor.breaker
        breaker.n_quarantines += 1
        if breaker.n_quarantines > MAX_QUARANTINES:
            raise WorkFailed(f"{text}, {MAX_QUARANTINES} times although there was space in between; free disk space")
        pause = PROBE_S * 2 ** (breaker.n_quarantines - 1)
        probe_at = time.monotonic() + pause
        while not self._should_stop() and not self._is_spent():
            time.sleep(min(pause, POLL_S[0]))
            if time.monotonic() < probe_at:
                continue
            if can_write(unwritable.path, unwritable.n_bytes):
                self.executor.log_event("released", "the disk is writable again")
                return
            if self.stored.is_over(self.state):  # only trials that have started are left, and they need this disk
                raise WorkFailed(f"the budget is spent, and interrupted trials cannot be continued: {text}")
            pause = min(2 * pause, MAX_PROBE_S)
            probe_at = time.monotonic() + pause
