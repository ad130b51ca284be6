"""Who runs which trial of the budget: one row a trial, leased by the database's clock.

The count of rows is the budget, so it is exact whatever the number of workers. A row is claimed in one
statement; every later write names the owner and the attempt that it was claimed with, so a worker that lost
its lease changes nothing.
"""

import json
import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.engine import SLOT
from hpo.patience import retry
from hpo.reading import Opened

Fixed = Mapping[str, Any] | None  # parameters that a slot must run with; None: the sampler chooses

_log = logging.getLogger(__name__)
_c = SLOT.c
# Seconds since 1970 by the clock of the database; the clocks of workers differ.
_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


class Claim(NamedTuple):
    """A slot that an owner holds; `trial_id` is the Optuna trial that an earlier attempt began."""

    slot: int
    attempt: int
    kind: str
    fixed: dict[str, Any] | None
    trial_id: int | None


class Lease(NamedTuple):
    """A claimed slot as others see it; `seconds` is below 0 when the lease has run out."""

    owner: str
    slot: int
    attempt: int
    kind: str
    trial_id: int | None
    seconds: float


class Slots:
    """The slots of one study. Every method is one transaction and is retried while the storage is away."""

    def __init__(self, store: Opened, study_id: int) -> None:
        self.store = store
        self.study_id = study_id
        self._now: sa.ColumnElement[float] = sa.literal_column(_NOW[store.engine.name], sa.Double)
        self._study = _c.study_id == study_id

    def fill(self, wanted: Sequence[tuple[str, Fixed]]) -> None:
        """Make slots 0, 1, ... of these (kind, fixed); slots that are there already stay as they are.

        Slots above are deleted if nobody ever claimed them: a smaller budget undoes no work.
        """
        rows = [
            {
                "study_id": self.study_id,
                "slot": slot,
                "kind": kind,
                "fixed": None if fixed is None else json.dumps(dict(fixed)),
            }
            for slot, (kind, fixed) in enumerate(wanted)
        ]
        insert = postgresql.insert if self.store.engine.name == "postgresql" else sqlite.insert
        unused = sa.delete(SLOT).where(self._study, _c.slot >= len(rows), _c.state == "free", _c.attempt == 0)

        def write() -> None:
            with self.store.engine.begin() as connection:
                if rows:
                    connection.execute(insert(SLOT).on_conflict_do_nothing(), rows)
                connection.execute(unused)

        self.store.retry(write)

    def now(self) -> float:
        """Return the database's clock, in seconds since 1970."""
        return float(self._run(sa.select(self._now))[0][0])

    def claim(self, owner: str, lease_s: float, only_begun: bool = False) -> Claim | None:
        """Take a slot that is free or whose lease has run out: interrupted trials first, then the lowest.

        only_begun: interrupted trials and no others.
        If the answer is lost and the call made again, a second slot is taken; the first comes free when its
        lease runs out, since nobody renews it.
        """
        vacant = sa.or_(_c.state == "free", sa.and_(_c.state == "leased", _c.lease_until < self._now))
        first = (
            sa.select(_c.slot)
            .where(self._study, vacant, _c.trial_id.is_not(None) if only_begun else sa.true())
            .order_by(_c.trial_id.is_(None), _c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has no such clause; there the whole transaction is exclusive
        )
        rows = self._run(
            sa.update(SLOT)
            .where(self._study, _c.slot == first.scalar_subquery())
            .values(state="leased", owner=owner, attempt=_c.attempt + 1, lease_until=self._now + lease_s)
            .returning(_c.slot, _c.attempt, _c.kind, _c.fixed, _c.trial_id)
        )
        for slot, attempt, kind, fixed, trial_id in rows:
            return Claim(slot, attempt, kind, fixed and json.loads(fixed), trial_id)
        return None

    def link(self, claim: Claim, owner: str, trial_id: int) -> bool:
        """Note which Optuna trial the slot runs as; False if the claim is lost."""
        return self._write(claim, owner, "leased", trial_id=trial_id)

    def done(self, claim: Claim, owner: str) -> bool:
        """End the slot for good; False if the claim is lost."""
        return self._write(claim, owner, "done", state="done")

    def release(self, claim: Claim, owner: str) -> bool:
        """Give the slot back, so that anyone may go on with it at once; False if the claim is lost."""
        return self._write(claim, owner, "free", state="free")

    def holds(self, claim: Claim, owner: str) -> bool:
        """Tell whether the claim is still the owner's."""
        return bool(self._run(sa.select(_c.slot).where(self._is(claim, owner), _c.state == "leased")))

    def renew(self, owner: str, claims: Collection[tuple[int, int]], lease_s: float) -> set[tuple[int, int]]:
        """Renew these (slot, attempt) of the owner in one statement and return those that it still holds.

        Tried once: a caller on a timer has a better idea of when to try again.
        """
        held = sa.tuple_(_c.slot, _c.attempt).in_(sorted(claims))
        rows = self._run(
            sa.update(SLOT)
            .where(self._study, _c.owner == owner, _c.state == "leased", held)
            .values(lease_until=self._now + lease_s)
            .returning(_c.slot, _c.attempt),
            patience=0.0,
        )
        return {(slot, attempt) for slot, attempt in rows}

    def counts(self) -> dict[str, int]:
        """Return how many slots are free, leased, done, and expired (leased, but the lease has run out)."""
        ran_out = sa.and_(_c.state == "leased", _c.lease_until < self._now)
        state = sa.case((ran_out, "expired"), else_=_c.state).label("state")
        inner = sa.select(state).where(self._study).subquery()
        rows = self._run(sa.select(inner.c.state, sa.func.count()).group_by(inner.c.state))
        return {"free": 0, "leased": 0, "done": 0, "expired": 0} | dict(rows)

    def left(self, only_begun: bool = False) -> int:
        """Return how many slots are not done; `only_begun`: of those that somebody holds or has begun."""
        begun = sa.or_(_c.state == "leased", _c.trial_id.is_not(None)) if only_begun else sa.true()
        rows = self._run(sa.select(sa.func.count()).select_from(SLOT).where(self._study, _c.state != "done", begun))
        return int(rows[0][0])

    def owners(self) -> list[Lease]:
        """Return the claimed slots with their owners, in the order of owners and slots."""
        columns = (_c.owner, _c.slot, _c.attempt, _c.kind, _c.trial_id, _c.lease_until - self._now)
        leased = sa.select(*columns).where(self._study, _c.state == "leased")
        return [Lease(*row) for row in self._run(leased.order_by(_c.owner, _c.slot))]

    def _is(self, claim: Claim, owner: str) -> sa.ColumnElement[bool]:
        return sa.and_(self._study, _c.slot == claim.slot, _c.attempt == claim.attempt, _c.owner == owner)

    def _write(self, claim: Claim, owner: str, after: str, **values: object) -> bool:
        """Change the slot if the claim stands, or was changed so already: an answer may have been lost."""
        mine = sa.and_(self._is(claim, owner), _c.state.in_(["leased", after]))
        return bool(self._run(sa.update(SLOT).where(mine).values(**values).returning(_c.slot)))

    def _run(self, statement: sa.Executable, patience: float | None = None) -> Sequence[Any]:
        def once() -> Sequence[Any]:
            with self.store.engine.begin() as connection:
                return connection.execute(statement).all()

        return retry(once, patience=self.store.patience if patience is None else patience, url=self.store.url)


class Renewer:
    """A thread that renews an owner's leases every quarter of a lease, whatever happens to the storage.

    It renews what it was told to `hold` and nothing else. `lost`: the (slot, attempt) of what it was to hold
    and the owner has no more.
    """

    def __init__(self, slots: Slots, owner: str, lease_s: float) -> None:
        self.lost: set[tuple[int, int]] = set()
        self._slots, self._owner, self._lease_s = slots, owner, lease_s
        self._held: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        # daemon: a storage that does not answer must not keep the process alive
        self._thread = threading.Thread(target=self._loop, name="renewer", daemon=True)

    def __enter__(self) -> "Renewer":
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
        while not self._stop.wait(self._lease_s / 4):
            # Everything is caught: were this thread to die, a living worker would lose its trials.
            try:
                self._renew()
            except Exception as error:
                _log.debug("leases not renewed: %s", error)

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
