"""The worker: claim trials of a study, train them, until its budget is spent or somebody says stop."""

import functools
import math
import os
import random
import signal
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from hpo.errors import WorkFailed
from hpo.queue.heartbeat import LEASE_S, LeaseRenewer
from hpo.queue.registry import StoredStudy, StudyState
from hpo.runs.run_dir import is_writable
from hpo.storage.retry import outages
from hpo.worker.executor import EventListener, TrialExecutor
from hpo.worker.pack import PackRunner
from hpo.worker.signals import GracePeriodExpired, SignalHandler
from model.cache import cache_root

POLL_S = (0.5, 3.0)  # between looks for a slot that came free, while others still work: at first, and at most
PROBE_S = 10.0  # between looks at a disk that was full
OUTAGE_S = 2.0  # for which the storage did not answer, from when on it is written down
RESTART_STATUS = 75  # exit status of a worker whose device failed: a new process may find it well


class Worker:
    """Works on one study."""

    def __init__(
        self, stored: StoredStudy, out: Path, pack: int, listener: EventListener, parent: int | None = None
    ) -> None:
        """Join a study.

        out: folder of the runs. listener: is told what happens. parent: the process without which not to go on.
        """
        self.stored, self.out, self.pack, self.listener, self.parent = stored, out, pack, listener, parent
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.keeper = LeaseRenewer(stored.slots, self.owner, LEASE_S)
        self.alarm = SignalHandler()
        self.jobs = TrialExecutor(stored, self.owner, self.keeper, out, LEASE_S, self.tell)
        self.now = StudyState("active", False, None)
        self.claimed = 0

    def work(self, turns: float = math.inf) -> int:
        """Run trials; return 0 when there is nothing left to do, else 128 + the signal that ended the work.

        turns: how many trials to take at most.
        """
        self.tell({"event": "joined", "owner": self.owner})
        word = "interrupted"
        with self.keeper, self.alarm:
            try:
                self._work(turns)
                word = "preempted" if self.alarm.signal else self.now.state
            except (GracePeriodExpired, KeyboardInterrupt):  # each trial goes on from its last rung
                if self.alarm.signal is None:
                    raise
                word = "preempted"
            finally:
                self.alarm.rest()
                self.jobs.requeue(self.jobs.held, word)
        return 128 + self.alarm.signal if self.alarm.signal else 0

    def _work(self, turns: float) -> None:
        pause = POLL_S[0]
        while not self._leaving():
            if self.jobs.quarantine:
                self._recover(*self.jobs.quarantine, turns)
            elif self.now.state == "paused":
                self.jobs.requeue(self.jobs.held, "paused")
                if turns < math.inf or self._spent():  # there are other studies; there is nothing to wait for
                    return
                time.sleep(POLL_S[0])
            else:
                self._claim(turns)
                if self.jobs.held:
                    pause = POLL_S[0]
                    refill = functools.partial(self._claim, turns)
                    lanes = PackRunner(self.jobs, self.pack, self.alarm).run(self._leaving_pack, refill)
                    self.pack = max(1, lanes or self.pack)
                elif turns < math.inf or self._spent():
                    return
                elif not self.jobs.quarantine:
                    time.sleep(random.uniform(0.7, 1.0) * pause)
                    pause = min(1.5 * pause, POLL_S[1])

    def tell(self, event: dict[str, Any]) -> None:
        try:
            self.listener(event)
        except BrokenPipeError:  # whoever listened is gone
            self.listener = lambda event: None
            self.alarm.ask(signal.SIGTERM)

    def _leaving(self) -> bool:
        """Return whether to leave: on a signal, without the process that started this worker, or where told to."""
        if self.parent is not None and os.getppid() != self.parent:
            self.alarm.ask(signal.SIGTERM)
        if self.alarm.signal is None:
            self.now = self.jobs.teller.now()
            for seconds in outages.pop_durations():
                if seconds >= OUTAGE_S:
                    self.jobs.log("away", f"the storage did not answer for {seconds:.0f} s")
        return self.alarm.signal is not None or self.now.state == "stopped"

    def _leaving_pack(self) -> bool:
        return self._leaving() or self.now.state == "paused" or self.jobs.quarantine is not None

    def _claim(self, turns: float) -> None:
        """Take trials until there is one for each lane of the pack."""
        while len(self.jobs.held) < self.pack and self.claimed < turns and self.jobs.quarantine is None:
            if self._leaving() or self.now.state != "active" or not self.jobs.claim(self.pack):
                return
            self.claimed += 1

    def _spent(self) -> bool:
        if self.stored.slots.n_unfinished(only_started=self.stored.is_over(self.now)) == 0:
            return True
        # Tokens that do not pay for another trial; one that is running may end early and leave enough.
        limit = self.now.rungs
        return (
            limit is not None
            and self.stored.slots.rungs() + limit[0] > limit[1]
            and not self.stored.slots.n_unfinished(True)
        )

    def _recover(self, kind: str, text: str, turns: float) -> None:
        """Take no trials until this machine is well again.

        Raises:
            WorkFailed: only another process may find it so, or there are other studies to serve meanwhile.
        """
        self.jobs.quarantine = None
        self.jobs.log("quarantined", f"three failures in a row: {text}")
        self.jobs.requeue(self.jobs.held, kind)
        if kind != "disk" or turns < math.inf:
            failed = WorkFailed(f"quarantined after three failures in a row: {text}")
            failed.status = RESTART_STATUS
            raise failed
        while not self._leaving() and not self._spent():
            if is_writable(self.out) and is_writable(cache_root()):
                self.jobs.breaker.half()
                self.jobs.log("released", "there is room again")
                return
            time.sleep(PROBE_S)
