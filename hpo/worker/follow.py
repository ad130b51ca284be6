"""hpo worker --follow: serve every active study of a storage, turn by turn, for as long as the machine is up."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from hpo.console import say
from hpo.errors import Problem, StorageError
from hpo.queue.heartbeat import LEASE_S, LeaseRenewer
from hpo.queue.registry import load_stored_study
from hpo.queue.slots import Slots
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.resources import available_cores, set_thread_environment
from hpo.storage.attributes import SPEC, STUDY_STATE
from hpo.storage.retry import QUICK, transact
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from hpo.storage.trials import study_attrs, study_ids
from hpo.worker.events import event_printer
from hpo.worker.join import preflight
from hpo.worker.signals import GracePeriodExpired, SignalHandler

POLL_S = 2.0  # between looks for a study, or for a storage that is away
SKIP_S = 60.0  # before a study that this machine cannot serve is looked at again
IDLE_S = 5.0  # the same for one that has nothing to begin at this moment

_c = SLOT.c


class StudyTurn(NamedTuple):
    """How much of a study is being worked on, and when this worker last served it."""

    leased: int
    served: float
    name: str


class Follower:
    """One worker of all studies. Fair: each turn goes to the study with the fewest running trials."""

    def __init__(self, storage: str, pack: int, out: Path) -> None:
        self.storage, self.pack, self.out = storage, pack, out
        self.alarm = SignalHandler()
        self.corpora = PreparedDatasets()
        self.checked: set[str] = set()
        self.served: dict[str, float] = {}
        self.rests: dict[str, float] = {}  # study -> until when it is left alone

    def work(self) -> int:
        """Serve until a signal says stop; return 128 + its number."""
        set_thread_environment(available_cores())
        said = ""
        with self.alarm:
            while self.alarm.signal is None:
                try:
                    with (
                        open_store(self.storage, patience=QUICK) as store,
                        LeaseRenewer(Slots(store, 0), "follow", LEASE_S),
                    ):
                        said = ""
                        self._serve(store)
                except StorageError as error:
                    if not error.passing:
                        raise
                    if str(error) != said:
                        say(f"waiting: {error}")
                    said = str(error)
                    self._pause()
                except GracePeriodExpired:
                    break
        return 128 + (self.alarm.signal or 0)

    def _serve(self, store: Store) -> None:
        idle = False
        while self.alarm.signal is None:
            name = self._next(store)
            if name is not None:
                idle = False
                self._turn(store, name)
                continue
            if not idle:
                say("waiting for a study that has trials to run")
            idle = True
            self._pause()

    def _next(self, store: Store) -> str | None:
        """Return the study whose turn it is, None where none has a trial to begin."""
        open_to_all = [(name, i) for name, i in study_ids(store).items() if self.rests.get(name, 0) <= time.monotonic()]
        free, leased = _slots(store, "free"), _slots(store, "leased")
        turns = []
        for name, study_id in open_to_all:
            attrs = study_attrs(store, study_id) if free.get(study_id) else {}
            if SPEC in attrs and attrs.get(STUDY_STATE, "active") == "active":
                turns.append(StudyTurn(leased.get(study_id, 0), self.served.get(name, -math.inf), name))
        return min(turns).name if turns else None

    def _turn(self, store: Store, name: str) -> None:
        """Run one pack of trials of a study."""
        from hpo.worker.worker import Worker

        self.served[name] = time.monotonic()
        try:
            stored = load_stored_study(store, name)
            if name not in self.checked:
                preflight(stored, self.corpora)
                stored.raise_protocol()
                self.checked.add(name)
        except Problem as problem:
            say(f"{name}: left alone for {SKIP_S:.0f} s: {problem}")
            self.rests[name] = time.monotonic() + SKIP_S
            return
        worker = Worker(stored, self.out.absolute(), self.pack, event_printer(stored.study.rungs, f"{name}: "))
        worker.alarm, worker.jobs.corpora = self.alarm, self.corpora
        try:
            worker.work(turns=self.pack)
        except StorageError:
            raise
        except Exception as error:  # the machine's fault, or one that must not end the service of other studies
            say(f"{name}: left alone for {SKIP_S:.0f} s: {error}")
            self.rests[name] = time.monotonic() + SKIP_S
        if not worker.claimed:
            self.rests[name] = time.monotonic() + IDLE_S

    def _pause(self) -> None:
        """Wait a little, and not at all once a signal has come."""
        until = time.monotonic() + POLL_S
        while self.alarm.signal is None and time.monotonic() < until:
            time.sleep(0.1)


def _slots(store: Store, state: str) -> dict[int, int]:
    """Return by study how many slots are in a state."""
    found = sa.select(_c.study_id, sa.func.count()).where(_c.state == state).group_by(_c.study_id)
    return dict(transact(store, lambda connection: [tuple(row) for row in connection.execute(found)]))
