"""hpo worker --follow: serve all active studies of a storage, one after the other, as long as the machine runs."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from hpo.config.permission import check_permission
from hpo.console import say
from hpo.errors import Interruption, Problem, StorageError
from hpo.queue.heartbeat import LeaseRenewer, lease_seconds
from hpo.queue.registry import load_stored_study
from hpo.queue.slots import Slots
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.resources import available_cores, set_thread_environment
from hpo.storage.attributes import SPEC, STUDY_STATE
from hpo.storage.connections import check_connections
from hpo.storage.retry import QUICK, transact
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from hpo.storage.studies import study_attrs, study_ids
from hpo.worker.arithmetic import settle_arithmetic, settle_pack
from hpo.worker.events import event_printer
from hpo.worker.join import preflight
from hpo.worker.signals import SignalHandler

POLL_S = 2.0  # seconds between two searches for a study, or two attempts to reach the storage
SKIP_S = 60.0  # seconds for which a study is skipped after this machine could not serve it
IDLE_S = 5.0  # seconds for which a study is skipped after it had no trial to run

_c = SLOT.c


class StudyTurn(NamedTuple):
    """How many trials of a study are running, and when this worker served the study last. The study with the
    smallest turn is next."""

    leased: int
    served: float
    name: str


class Follower:
    """A worker of all studies in a storage. The study with the fewest running trials has the next turn."""

    def __init__(self, storage: str, pack: int, out: Path) -> None:
        """Create a worker. pack: number of trials to train side by side, or AUTO_PACK. out: folder of the runs."""
        self.storage, self.pack, self.out = storage, pack, out
        self.packs: dict[str, int] = {}  # size of the packs of a study, by its uid
        self.signals = SignalHandler()
        self.datasets = PreparedDatasets()
        self.checked: set[str] = set()  # uids of the studies whose baseline trains on this machine
        self.uids: dict[int, str] = {}  # uid of each study that Optuna may have cached since the storage was opened
        self.served: dict[str, float] = {}  # study -> when it was served last
        self.skipped_until: dict[str, float] = {}  # study -> until when it is skipped

    def work(self) -> int:
        """Serve studies until a signal arrives; return 128 + its number.

        Raises:
            StorageError: the storage is unusable. The worker waits for an unreachable storage.
        """
        set_thread_environment(available_cores())
        lease_s, message = lease_seconds(), ""
        with self.signals:
            while self.signals.signal is None:
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
        return 128 + (self.signals.signal or 0)

    def _serve(self, store: Store) -> None:
        idle = False
        while self.signals.signal is None:
            name = self._next_study(store)
            if name is not None:
                idle = False
                if not self._serve_study(store, name):
                    self.uids.clear()
                    return
                continue
            if not idle:
                say("waiting for a study that has trials to run")
            idle = True
            self._pause()

    def _next_study(self, store: Store) -> str | None:
        """Return the study that has the next turn, or None if no study has a trial to run."""
        now = time.monotonic()
        candidates = [(name, i) for name, i in study_ids(store).items() if self.skipped_until.get(name, 0) <= now]
        unfinished = _count_slots(store, "free", "paused")  # a paused trial may continue, or must be ended
        leased = _count_slots(store, "leased")
        turns = []
        for name, study_id in candidates:
            attrs = study_attrs(store, study_id) if unfinished.get(study_id) else {}
            if SPEC in attrs and attrs.get(STUDY_STATE, "active") == "active":
                turns.append(StudyTurn(leased.get(study_id, 0), self.served.get(name, -math.inf), name))
        return min(turns).name if turns else None

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
            for note in stored.notes:
                say(note)
            stored = settle_arithmetic(stored, event_printer(stored.study.rungs, f"{name}: "))
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

        emit = event_printer(stored.study.rungs, f"{name}: ")
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
        if not worker.n_claimed:
            self.skipped_until[name] = time.monotonic() + IDLE_S

    def _skip(self, name: str, error: Exception) -> None:
        say(f"{name}: skipped for {SKIP_S:.0f} s: {error}")
        self.skipped_until[name] = time.monotonic() + SKIP_S

    def _pause(self) -> None:
        """Wait for POLL_S, or until a signal arrives."""
        until = time.monotonic() + POLL_S
        while self.signals.signal is None and time.monotonic() < until:
            time.sleep(0.1)


def _count_slots(store: Store, *states: str) -> dict[int, int]:
    """Return the number of slots in one of these states by study id."""
    query = sa.select(_c.study_id, sa.func.count()).where(_c.state.in_(states)).group_by(_c.study_id)
    return dict(transact(store, lambda connection: [tuple(row) for row in connection.execute(query)]))
