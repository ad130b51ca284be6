"""hpo worker --follow: serve all active studies of a storage, one after the other, as long as the machine runs."""

import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpo.config.permission import check_permission
from hpo.console import say
from hpo.errors import Interruption, Problem, StorageError, WorkFailed
from hpo.queue.heartbeat import LeaseRenewer, lease_seconds
from hpo.queue.registry import load_stored_study
from hpo.queue.slots import Slots
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.resources import available_cores, set_thread_environment
from hpo.storage.attributes import SPEC
from hpo.storage.connections import check_connections
from hpo.storage.retry import QUICK
from hpo.storage.store import Store, open_store
from hpo.storage.studies import study_attrs, study_ids
from hpo.study.places import at_places
from hpo.worker.arithmetic import settle_arithmetic, settle_pack
from hpo.worker.events import ENDS, EVENTS, Event, EventListener, event_printer, event_writer
from hpo.worker.join import preflight
from hpo.worker.signals import SignalHandler
from hpo.worker.turns import next_study, unfinished_studies

POLL_S = 2.0  # seconds between two searches for a study, or two attempts to reach the storage
SKIP_S = 60.0  # seconds for which a study is skipped after this machine could not serve it
IDLE_S = 5.0  # seconds for which a study is skipped after it had no trial to run


@dataclass(frozen=True)
class Service:
    """Which studies a worker serves, and for how long.

    study: the only study to serve, None for all. overrides: path=value, where the files of this study are on this
    machine. until_idle: whether the worker ends when no study has a trial to run. A study that this machine cannot
    serve then ends it too, if it is the only one.
    """

    study: str | None = None
    overrides: Sequence[str] = ()
    until_idle: bool = False


class Follower:
    """A worker of all studies in a storage. The study with the fewest running trials has the next turn."""

    def __init__(self, storage: str, pack: int, out: Path, service: Service = Service()) -> None:
        """Create a worker. pack: number of trials to train side by side, or AUTO_PACK. out: folder of the runs."""
        self.storage, self.pack, self.out, self.service = storage, pack, out, service
        self.packs: dict[str, int] = {}  # size of the packs of a study, by its uid
        self.signals = SignalHandler()
        self.datasets = PreparedDatasets()
        self.checked: set[str] = set()  # uids of the studies whose baseline trains on this machine
        self.uids: dict[int, str] = {}  # uid of each study that Optuna may have cached since the storage was opened
        self.served: dict[str, float] = {}  # study -> when it was served last
        self.skipped_until: dict[str, float] = {}  # study -> until when it is skipped
        self.spent: set[str] = set()  # studies without work for this worker, now or later
        self.worked_at = time.monotonic()  # when this worker had a trial last
        self.idle = False  # whether it ends, because no study has a trial to run
        self.n_claimed, self.n_rungs = 0, 0
        self.writer = event_writer() if os.environ.get(EVENTS) == "json" else None  # of events, for a launcher

    def work(self) -> int:
        """Serve studies until a signal arrives; return 128 + its number, or 0 if the worker ended because it was idle.

        Raises:
            StorageError: the storage is unusable. The worker waits for an unreachable storage.
            Problem: with `until_idle`, this machine cannot serve the only study.
            WorkFailed: with `until_idle`, SIGUSR1 has ended the worker before a trial reached a rung.
        """
        set_thread_environment(available_cores())
        lease_s, message = lease_seconds(), ""
        with self.signals:
            while self.signals.signal is None and not self.idle:
                try:
                    with (
                        open_store(self.storage, patience=QUICK) as store,
                        LeaseRenewer(Slots(store, 0), "follow", lease_s),
                    ):
                        check_connections(store, 1)
                        message = ""
                        self._serve(store)
                except StorageError as error:
                    if not error.passing:
                        raise
                    if str(error) != message:
                        say(f"waiting for the storage: {error}")
                    message = str(error)
                    self._pause()
                except Interruption:
                    break
        if self.service.until_idle and self.signals.signal == signal.SIGUSR1 and self.n_claimed and not self.n_rungs:
            # The scheduler would start the worker again and again.
            raise WorkFailed(
                "no trial has reached a rung before SIGUSR1 announced the end of the job; "
                "allow the job more time, or set more rungs"
            )
        return 0 if self.idle else 128 + (self.signals.signal or 0)

    def _serve(self, store: Store) -> None:
        waiting = False
        while self.signals.signal is None:
            name = self._next_study(store)
            if name is not None:
                waiting = False
                if not self._serve_study(store, name):
                    self.uids.clear()
                    return
                continue
            if self.service.until_idle and self._is_idle(store):
                self.idle = True
                return
            if not waiting:
                say("waiting for a study that has trials to run")
            waiting = True
            self._pause()

    def _is_idle(self, store: Store) -> bool:
        """Return whether to end: no study has a trial left, or the others have run all of them for two leases.

        Until then the lease of a worker that has died has expired.
        """
        left = unfinished_studies(store, self._studies(store), "free", "paused", "leased")
        return left.keys() <= self.spent or time.monotonic() >= self.worked_at + 2 * lease_seconds()

    def _studies(self, store: Store) -> dict[str, int]:
        """Return the id of each study to serve, by name.

        Raises:
            Problem: with `until_idle`, the only study is not in the storage.
        """
        studies, only = study_ids(store), self.service.study
        if only is None:
            return studies
        if only not in studies and self.service.until_idle:
            load_stored_study(store, only)  # raises the error
        return {name: i for name, i in studies.items() if name == only}

    def _next_study(self, store: Store) -> str | None:
        """Return the study that has the next turn, or None if no study has a trial to run."""
        now = time.monotonic()
        candidates = {name: i for name, i in self._studies(store).items() if self.skipped_until.get(name, 0) <= now}
        # a paused trial may continue, or must be ended
        return next_study(store, unfinished_studies(store, candidates, "free", "paused"), self.served)

    def _serve_study(self, store: Store, name: str) -> bool:
        """Run one pack of trials of a study; return False if the storage must be opened again first.

        SQLite gives the id of a deleted study to the next study, and Optuna caches trials by this id.
        """
        self.served[name] = time.monotonic()
        try:
            spec = study_attrs(store, study_ids(store).get(name, -1)).get(SPEC, {})
            check_permission(f"study {name}", spec, read_files=False)
            stored = load_stored_study(store, name)
            if self.uids.setdefault(stored.slots.study_id, stored.uid) != stored.uid:
                return False
            stored = replace(stored, study=at_places(stored.study, self.service.overrides))
            for note in stored.notes:
                say(note)
            stored = settle_arithmetic(stored, self._emitter(stored))
            if stored.uid not in self.checked:
                preflight(stored, self.datasets)
                stored.raise_protocol()
                self.checked.add(stored.uid)
        except Problem as problem:
            self._skip(name, problem)
            return True
        self._run_pack(stored, name)
        return True

    def _run_pack(self, stored: StoredStudy, name: str) -> None:
        from hpo.worker.worker import Worker  # loads the trainer, which an idle worker does not need

        emit = self._emitter(stored)
        if stored.uid not in self.packs:
            self.packs[stored.uid] = settle_pack(stored, self.pack, emit)
        worker = Worker(stored, self.out.absolute(), self.packs[stored.uid], emit)
        worker.signals, worker.executor.datasets = self.signals, self.datasets
        stored.store.patience = math.inf  # the worker holds trials, which wait for an unreachable storage
        try:
            worker.work(max_trials=self.packs[stored.uid])
        except StorageError:
            raise
        except Exception as error:  # a failure in one study must not end the service of the others
            self._skip(name, error)
        finally:
            stored.store.patience = QUICK
        self.n_claimed += worker.n_claimed
        if worker.n_claimed:
            self.worked_at = time.monotonic()
        else:
            self.skipped_until[name] = time.monotonic() + IDLE_S
        if worker.spent:
            self.spent.add(name)

    def _emitter(self, stored: StoredStudy) -> EventListener:
        emit = self.writer or event_printer(stored.study.rungs, f"{stored.study.name}: ")

        def count_and_emit(event: Event) -> None:
            self.n_rungs += event["event"] in ("rung", *ENDS)
            emit(event)

        return count_and_emit

    def _skip(self, name: str, error: Exception) -> None:
        """Skip a study for a while.

        Raises:
            Exception: the error, if the worker serves no other study and does not wait.
        """
        if self.service.until_idle and self.service.study is not None:
            raise error
        say(f"{name}: skipped for {SKIP_S:.0f} s: {error}")
        self.skipped_until[name] = time.monotonic() + SKIP_S

    def _pause(self) -> None:
        """Wait for POLL_S, or until a signal arrives."""
        until = time.monotonic() + POLL_S
        while self.signals.signal is None and time.monotonic() < until:
            time.sleep(0.1)
