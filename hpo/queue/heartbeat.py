"""Leases are kept from a thread of its own: renewed whatever the storage does, and freed where they ran out."""

import logging
import os
import threading
import time

import sqlalchemy as sa

from hpo.queue.inspect import Lease
from hpo.queue.slots import Claim, Slots, event, set_state
from hpo.storage.retry import OpenStorage, at_most, transact
from hpo.storage.schema import SLOT, TRIALS, clock

LEASE_S = float(os.environ.get("HPO_LEASE_S", "60"))  # the same for all processes of a study
AGAIN_S = 1.0  # to the next try where the storage is away: whoever renews first when it is back keeps its leases

_c = SLOT.c
_log = logging.getLogger(__name__)


def reap(store: OpenStorage, owner: str | None = None, text: str = "", before: float | None = None) -> list[Lease]:
    """Free the slots whose lease has run out, in every study of the storage; return them.

    before: judge by this earlier time of the database's clock.
    owner: instead, those of a worker that is known to have ended. text: what is known of its end.
    A trial that was told before its worker ended is done, not to be run again.
    """
    now = clock(store.engine)
    gone = _c.lease_until < (now if before is None else before) if owner is None else _c.owner == owner
    told = sa.exists().where(
        TRIALS.c.trial_id == _c.trial_id, sa.cast(TRIALS.c.state, sa.String).in_(["COMPLETE", "PRUNED", "FAIL"])
    )
    values = {"state": sa.case((told, "done"), else_="free"), "failures": _c.failures + 1}
    free = sa.update(SLOT).where(_c.state == "leased", gone).values(values)
    columns = (_c.study_id, _c.owner, _c.slot, _c.attempt, _c.kind, _c.trial_id, _c.state)

    def write(connection: sa.Connection) -> list[Lease]:
        rows = connection.execute(free.returning(*columns)).all()
        set_state(connection, [row.trial_id for row in rows if row.state == "free"], "RUNNING", "WAITING")
        for row in rows:
            ended = {"study_id": row.study_id, "slot": row.slot, "attempt": row.attempt, "owner": row.owner}
            connection.execute(event(now, "lost", text, **ended))
        return [Lease(row.owner, row.slot, row.attempt, row.kind, row.trial_id, 0.0) for row in rows]

    return transact(store, write)


class LeaseRenewer:
    """A thread that renews an owner's leases every quarter of a lease, whatever happens to the storage.

    It renews what it was told to `hold` and nothing else. `lost`: the (slot, attempt) of what it was to hold
    and the owner has no more. Every keeper also frees the leases that ran out, of whatever owner and study, but only
    after the storage has answered for half a lease, and by the time of the tick before: when a storage comes back, or
    goes on after standing still, the living renew before anyone is judged.
    """

    def __init__(self, slots: Slots, owner: str, lease_s: float) -> None:
        self.lost: set[tuple[int, int]] = set()
        self._slots, self._owner, self._lease_s = slots, owner, lease_s
        self._held: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._answered_since = time.monotonic()
        self._ticked: float | None = None  # by the database's clock
        # daemon: a storage that does not answer must not keep the process alive
        self._thread = threading.Thread(target=self._loop, name="keeper", daemon=True)

    def __enter__(self) -> "LeaseRenewer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def hold(self, claim: Claim) -> None:
        """Renew this claim from now on."""
        with self._lock:
            self._held.add((claim.slot, claim.attempt))

    def drop(self, claim: Claim) -> None:
        """Renew this claim no more; call it before `done` and `release`."""
        with self._lock:
            self._held.discard((claim.slot, claim.attempt))
            self.lost.discard((claim.slot, claim.attempt))

    def _loop(self) -> None:
        pause, woke = self._lease_s / 4, time.time()
        while not self._stop.wait(pause):
            if time.time() - woke > pause + self._lease_s / 4:  # the machine slept, and the others with it
                self._answered_since = time.monotonic()
            # Everything is caught: were this thread to die, a living worker would lose its trials.
            try:
                with at_most(self._lease_s / 4):
                    self._tend()
                pause = self._lease_s / 4
            except Exception as error:
                _log.debug("leases not renewed: %s", error)
                self._answered_since = time.monotonic()
                pause = min(AGAIN_S, self._lease_s / 4)
            woke = time.time()

    def _tend(self) -> None:
        self._renew()
        if self._ticked is not None and time.monotonic() - self._answered_since >= self._lease_s / 2:
            reap(self._slots.store, before=self._ticked)
        self._ticked = self._slots.now()

    def _renew(self) -> None:
        with self._lock:
            asked = set(self._held)
        if not asked:
            return
        still = self._slots.renew(self._owner, asked, self._lease_s)
        with self._lock:
            gone = (asked - still) & self._held
            self._held -= gone
            self.lost |= gone
