"""Renew the leases of a worker and free the leases that have expired.

A lease says which worker runs a slot, and until when by the database's clock. The worker's `LeaseRenewer` extends its
leases from a thread of its own. If the worker dies, its leases expire, and any other process frees their slots.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Collection
from typing import NamedTuple

import sqlalchemy as sa

from hpo.errors import Problem
from hpo.optuna_internals.tables import FINISHED, RUNNING, TRIAL_CURVES, TRIALS, WAITING, state_name
from hpo.queue.inspect import Lease, is_void
from hpo.queue.slots import Claim, Slots
from hpo.storage.retry import OpenStorage, limit_patience, outages, transact
from hpo.storage.schema import SLOT, database_clock, insert_event
from hpo.storage.trial_rows import set_trial_states

LEASE_S = "HPO_LEASE_S"  # environment variable: length of a lease in seconds, equal in all processes of a study
RETRY_S = 1.0  # pause after a failed renewal; short, so that live workers renew first once the storage is back

_c = SLOT.c
_log = logging.getLogger(__name__)


def lease_seconds() -> float:
    """Return the length of a lease: 60 s, or the value of HPO_LEASE_S.

    Raises:
        Problem: The value is not a number of seconds in the permitted range.
    """
    text = os.environ.get(LEASE_S, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= 86_400:
        raise Problem(f"{LEASE_S}: must be a number of seconds from 1 to 86400, got {text!r}; unset it to use 60")
    return seconds


class VoidLease(NamedTuple):
    """A lease that lies further ahead than a lease can, because the database's clock was set back."""

    study_id: int
    slot: int
    attempt: int
    lease_until: float
    lease_s: float


def void_leases(store: OpenStorage) -> list[VoidLease]:
    """Return the void leases of all studies.

    A live worker renews its own within a quarter of a lease after the clock was set back.
    """
    if "lease_s" in store.lacks:
        return []
    columns = (_c.study_id, _c.slot, _c.attempt, _c.lease_until, _c.lease_s)
    void = sa.select(*columns).where(_c.state == "leased", is_void(store))
    return transact(store, lambda connection: [VoidLease(*row) for row in connection.execute(void)])


def free_expired_leases(
    store: OpenStorage, before: float | None = None, void: Collection[VoidLease] | None = None
) -> list[Lease]:
    """Free the slots of all studies whose lease has expired, and return these leases.

    before: the leases must have expired by this time of the database's clock, as well as by now.
    void: the void leases to free; None: all of them.
    """
    clock = database_clock(store.engine)
    # The clock may have been set back since `before`, and then a lease that ends before it can be in force.
    expired = _c.lease_until < clock if before is None else sa.and_(_c.lease_until < before, _c.lease_until < clock)
    if void is None:
        return _free(store, sa.or_(expired, is_void(store)))
    same = (sa.and_(*(_c[key] == value for key, value in lease._asdict().items())) for lease in void)
    return _free(store, sa.or_(expired, *same))


def free_leases_of(store: OpenStorage, owner: str, text: str = "", event_type: str = "lost") -> list[Lease]:
    """Free the slots that a worker holds, and return their leases. Call it once the worker trains no longer.

    text: the reason, for the event. event_type: "lost" counts as a failure of the trials, another type does not.
    """
    return _free(store, _c.owner == owner, text, event_type)


def _free(
    store: OpenStorage, condition: sa.ColumnElement[bool], text: str = "", event_type: str = "lost"
) -> list[Lease]:
    """Free the leased slots that meet a condition. A slot whose trial has finished becomes done instead."""
    now = database_clock(store.engine)
    own = sa.and_(TRIALS.c.trial_id == _c.trial_id, TRIALS.c.study_id == _c.study_id)
    finished = sa.exists().where(own, state_name().in_(FINISHED))
    ended_early = sa.exists().where(own, state_name().in_(FINISHED), state_name() != "COMPLETE")
    last = sa.func.coalesce(sa.func.max(TRIAL_CURVES.c.step), 0)
    trained = sa.select(last).where(TRIAL_CURVES.c.trial_id == _c.trial_id).scalar_subquery()
    values = {
        "state": sa.case((finished, "done"), else_="free"),
        "rungs": sa.case((ended_early, trained), else_=_c.rungs),  # others may train the rest
        "failures": _c.failures + (1 if event_type == "lost" else 0),
        "interruptions": _c.interruptions + 1,
    }
    free = sa.update(SLOT).where(_c.state == "leased", condition).values(values)
    columns = (_c.study_id, _c.owner, _c.slot, _c.attempt, _c.kind, _c.trial_id, _c.state)

    def write(connection: sa.Connection) -> list[Lease]:
        rows = connection.execute(free.returning(*columns)).all()
        # A trial of another study may have the id of a trial of a deleted study.
        pairs = [(row.trial_id, row.study_id) for row in rows if row.state == "free" and row.trial_id is not None]
        own = sa.select(TRIALS.c.trial_id).where(sa.tuple_(TRIALS.c.trial_id, TRIALS.c.study_id).in_(pairs))
        set_trial_states(connection, connection.execute(own).scalars().all(), RUNNING, WAITING)
        for row in rows:
            lease = {"study_id": row.study_id, "slot": row.slot, "attempt": row.attempt, "owner": row.owner}
            connection.execute(insert_event(now, event_type, text, **lease))
        return [Lease(row.owner, row.slot, row.attempt, row.kind, row.trial_id, 0.0) for row in rows]

    return transact(store, write)


class LeaseRenewer:
    """A thread that renews the leases of one owner every quarter of a lease.

    The thread renews only the claims passed to `hold`. It also frees the expired leases of every owner and study, under
    two conditions: the storage has been reachable for at least half the duration of a lease, and the lease had expired
    at the previous renewal. After an outage of the storage, live workers can therefore renew first. For the same reason
    it frees a void lease only after nobody has renewed it for half of its length.

    lost: (slot, attempt) of each held claim that the owner has lost.
    """

    def __init__(self, slots: Slots, owner: str, lease_s: float) -> None:
        self.lost: set[tuple[int, int]] = set()
        self._slots, self._owner, self._lease_s = slots, owner, lease_s
        self._held: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._answering_since = time.monotonic()
        self._previous_round: float | None = None  # by the database's clock
        self._void_since: dict[VoidLease, float] = {}  # by time.monotonic()
        # daemon: a storage that does not answer must not keep the process alive
        self._thread = threading.Thread(target=self._loop, name="lease-renewer", daemon=True)

    def __enter__(self) -> "LeaseRenewer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1 if outages.is_ongoing() else 10)

    def hold(self, claim: Claim) -> None:
        """Renew this claim from now on."""
        with self._lock:
            self._held.add((claim.slot, claim.attempt))

    def drop(self, claim: Claim) -> None:
        """Stop renewing this claim. Call it before `Slots.done` and `Slots.release`."""
        with self._lock:
            self._held.discard((claim.slot, claim.attempt))
            self.lost.discard((claim.slot, claim.attempt))

    def _loop(self) -> None:
        interval = self._lease_s / 4
        pause, woke = interval, time.time()
        while not self._stop.wait(pause):
            if time.time() - woke > pause + interval:  # the whole machine was suspended, other workers included
                self._answering_since = time.monotonic()
            # Catch everything: if this thread died, a live worker would lose its trials.
            try:
                with limit_patience(interval):
                    self._run_round()
                pause = interval
            except Exception as error:
                _log.debug("leases not renewed: %s", error)
                self._answering_since = time.monotonic()
                pause = min(RETRY_S, interval)
            woke = time.time()

    def _run_round(self) -> None:
        self._renew()
        answering_for = time.monotonic() - self._answering_since
        if self._previous_round is not None and answering_for >= self._lease_s / 2:
            free_expired_leases(self._slots.store, before=self._previous_round, void=self._abandoned())
        self._previous_round = self._slots.now()

    def _abandoned(self) -> list[VoidLease]:
        """Return the void leases that nobody has renewed for half of their length."""
        now = time.monotonic()
        self._void_since = {lease: self._void_since.get(lease, now) for lease in void_leases(self._slots.store)}
        return [lease for lease, since in self._void_since.items() if now - since >= lease.lease_s / 2]

    def _renew(self) -> None:
        with self._lock:
            requested = set(self._held)
        if not requested:
            return
        renewed = self._slots.renew(self._owner, requested, self._lease_s)
        with self._lock:
            lost = (requested - renewed) & self._held
            self._held -= lost
            self.lost |= lost
