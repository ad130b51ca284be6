"""Who runs which trial of the budget: one row a trial, leased by the database's clock.

The count of rows is the budget, so it is exact whatever the number of workers. A row is claimed in one
transaction; every later write names the owner and the attempt that it was claimed with, so a worker that lost
its lease changes nothing. The state of Optuna's trial goes with the slot's: RUNNING while it is leased, WAITING
while it is free and begun.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.storage.engine import EVENT, SLOT
from hpo.storage.retry import retry
from hpo.storage.trials import Opened

Fixed = Mapping[str, Any] | None  # parameters that a slot must run with; None: the sampler chooses

LOST_IN_A_ROW = 5  # attempts without a new rung after which a trial is given up: it may be what ends its workers
ADDED = 1_000_000  # slots from here on were added by hand, beside those of the budget

_LOCK = 0x68706F  # "hpo": with a study's id, the key of an advisory lock

T = TypeVar("T")
_c = SLOT.c
TRIALS = sa.table("trials", sa.column("trial_id"), sa.column("study_id"), sa.column("state"))
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
    origin: int | None = None
    wish: str | None = None
    failures: int = 0


class Lease(NamedTuple):
    """A claimed slot as others see it; `seconds` is below 0 when the lease has run out."""

    owner: str
    slot: int
    attempt: int
    kind: str
    trial_id: int | None
    seconds: float


class Happening(NamedTuple):
    """Something out of the ordinary: to an attempt of a slot, to a worker, or to the study."""

    seconds_ago: float
    word: str
    slot: int | None
    attempt: int | None
    owner: str | None
    text: str | None


ORDINARY = ("began", "complete", "pruned", "diverged", "invalid")


class Slots:
    """The slots of one study. Every method is one transaction and is retried while the storage is away."""

    def __init__(self, store: Opened, study_id: int) -> None:
        self.store = store
        self.study_id = study_id
        self._now = clock(store.engine)
        self._study = _c.study_id == study_id

    def clear(self) -> None:
        """Delete all slots and events."""

        def write(connection: sa.Connection) -> None:
            connection.execute(sa.delete(SLOT).where(self._study))
            connection.execute(sa.delete(EVENT).where(EVENT.c.study_id == self.study_id))

        self._transact(write)

    def fill(self, wanted: Sequence[tuple[str, Fixed]]) -> None:
        """Make slots 0, 1, ... of these (kind, fixed); slots that are there already stay as they are.

        Slots above are deleted if nobody ever claimed them: a smaller budget undoes no work.
        """
        rows = [
            {"study_id": self.study_id, "slot": slot, "kind": kind, "fixed": _text(fixed)}
            for slot, (kind, fixed) in enumerate(wanted)
        ]
        insert = postgresql.insert if self.store.engine.name == "postgresql" else sqlite.insert
        above = sa.and_(_c.slot >= len(rows), _c.slot < ADDED)

        def write(connection: sa.Connection) -> None:
            if rows:
                connection.execute(insert(SLOT).on_conflict_do_nothing(), rows)
            connection.execute(sa.delete(SLOT).where(self._study, above, _c.state == "free", _c.attempt == 0))

        self._transact(write)

    def add(self, wanted: Sequence[tuple[str, Fixed, int | None]]) -> None:
        """Add slots of these (kind, fixed, origin) beside those of the budget; they come before its search slots."""

        planned: list[int] = []

        def write(connection: sa.Connection) -> None:
            self._lock(connection)
            made = sa.select(_c.slot).where(self._study, _c.slot.in_(planned))
            if planned and connection.execute(made).first():  # its answer was lost
                return
            last = connection.execute(sa.select(sa.func.max(_c.slot)).where(self._study, _c.slot >= ADDED)).scalar()
            first = ADDED if last is None else last + 1
            planned[:] = range(first, first + len(wanted))
            for slot, (kind, fixed, origin) in enumerate(wanted, first):
                values = {"study_id": self.study_id, "slot": slot, "kind": kind, "fixed": _text(fixed)}
                connection.execute(sa.insert(SLOT).values(**values, origin=origin))

        self._transact(write)

    def now(self) -> float:
        """Return the database's clock, in seconds since 1970."""
        return float(self._run(sa.select(self._now))[0][0])

    def claim(
        self, owner: str, lease_s: float, only_begun: bool = False, rungs: tuple[int, int] | None = None
    ) -> Claim | None:
        """Take a free slot: interrupted trials first, then baselines, then what was added by hand, then the others.

        only_begun: interrupted trials and no others.
        rungs: (r, n): r rungs are set aside for a trial that is begun, and none is begun where that makes more than
        n of the whole study.
        If the answer is lost and the call made again, a second slot is taken; the first comes free when its
        lease runs out, since nobody renews it.
        """
        begun = _c.trial_id.is_not(None)
        allowed: sa.ColumnElement[bool] = begun if only_begun else sa.true()
        if rungs is not None:
            taken = sa.select(sa.func.coalesce(sa.func.sum(_c.rungs), 0)).where(self._study).scalar_subquery()
            allowed = sa.or_(begun, taken + rungs[0] <= rungs[1]) if not only_begun else begun
        first = (
            sa.select(_c.slot)
            .where(self._study, _c.state == "free", allowed)
            .order_by(sa.not_(begun), _c.kind == "search", _c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has no such clause; there the whole transaction is exclusive
        )
        values = {"state": "leased", "owner": owner, "attempt": _c.attempt + 1, "lease_until": self._now + lease_s}
        aside = sa.case((begun, _c.rungs), else_=rungs[0] if rungs else 0)
        take = sa.update(SLOT).where(self._study, _c.slot == first.scalar_subquery()).values(**values, rungs=aside)
        columns = (_c.slot, _c.attempt, _c.kind, _c.fixed, _c.trial_id, _c.origin, _c.wish, _c.failures)

        def write(connection: sa.Connection) -> Claim | None:
            if rungs is not None:
                self._lock(connection)  # two at once would both find room for one
            row = connection.execute(take.returning(*columns)).first()
            if row is None:
                return None
            found = Claim(*row)._replace(fixed=row.fixed and json.loads(row.fixed))
            set_state(connection, [found.trial_id], "WAITING", "RUNNING")
            self._log(connection, "began", slot=found.slot, attempt=found.attempt, owner=owner)
            return found

        return self._transact(write)

    def held(self, claim: Claim, owner: str) -> sa.Select[Any]:
        """Return what finds the slot while the claim is the owner's, and locks it: the check of `storage.fenced`."""
        return sa.select(_c.slot).where(self._is(claim, owner), _c.state == "leased").with_for_update()

    def link(self, claim: Claim, owner: str) -> sa.Update:
        """Return what notes the study's newest Optuna trial as that of the slot, inside the transaction that makes it.

        Optuna makes the trials of a study one at a time, so that the newest is the one just made.
        """
        newest = sa.select(sa.func.max(TRIALS.c.trial_id)).where(TRIALS.c.study_id == self.study_id)
        unlinked = sa.and_(self._is(claim, owner), _c.trial_id.is_(None))  # made once, though the answer is lost
        return sa.update(SLOT).where(unlinked).values(trial_id=newest.scalar_subquery())

    def trial_id(self, slot: int) -> int | None:
        """Return the Optuna trial of a slot."""
        rows = self._run(sa.select(_c.trial_id).where(self._study, _c.slot == slot))
        return rows[0][0] if rows else None

    def beating(self, claim: Claim, owner: str, lease_s: float, rung: int, new: bool = True) -> sa.Executable:
        """Return what renews a lease at a rung and gives the wish for its trial, as a fence of what is written."""
        later = sa.case((_c.rungs < rung, rung), else_=_c.rungs)
        statement = sa.update(SLOT).where(self._is(claim, owner), _c.state == "leased")
        # A rung that an earlier attempt has told is no progress: whatever ended that one may end this one.
        values = {"lease_until": self._now + lease_s, "rungs": later} | ({"failures": 0} if new else {})
        return statement.values(values).returning(_c.wish)

    def beat(self, claim: Claim, owner: str, lease_s: float, rung: int) -> str | None:
        """Renew a lease at a known rung; return what a person wishes of the trial, "" for nothing, None if lost."""
        rows = self._run(self.beating(claim, owner, lease_s, rung, new=False))
        return (rows[0][0] or "") if rows else None

    def done(self, claim: Claim, owner: str, rung: int = 0, word: str = "complete", text: str = "") -> bool:
        """End the slot for good; False if the claim is lost.

        rung: how many its trial has trained; what was set aside beyond is free for others.
        """
        return self._close(claim, owner, "done", word, text, rungs=rung)

    def release(self, claim: Claim, owner: str, word: str = "preempted", text: str = "", failed: bool = False) -> bool:
        """Give the slot back, so that anyone may go on with it at once; False if the claim is lost."""
        return self._close(claim, owner, "free", word, text, failures=_c.failures + (1 if failed else 0))

    def wish(self, slot: int, word: str) -> bool:
        """Note what a person wants of the slot's trial; False if it has ended."""
        statement = sa.update(SLOT).where(self._study, _c.slot == slot, _c.state != "done").values(wish=word)
        return bool(self._run(statement.returning(_c.slot)))

    def take(self, slot: int, owner: str, lease_s: float) -> Claim | None:
        """Claim this slot if it is begun, and free or its lease has run out."""
        idle = sa.or_(_c.state == "free", sa.and_(_c.state == "leased", _c.lease_until < self._now))
        free = sa.and_(self._study, _c.slot == slot, idle, _c.trial_id.is_not(None))
        values = {"state": "leased", "owner": owner, "attempt": _c.attempt + 1, "lease_until": self._now + lease_s}
        taken = sa.update(SLOT).where(free).values(**values).returning(_c.slot, _c.attempt, _c.kind, _c.trial_id)
        for slot, attempt, kind, trial_id in self._run(taken):
            return Claim(slot, attempt, kind, None, trial_id)
        return None

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

    def rungs(self) -> int:
        """Return how many rungs are trained or set aside."""
        return int(self._run(sa.select(sa.func.coalesce(sa.func.sum(_c.rungs), 0)).where(self._study))[0][0])

    def owners(self) -> list[Lease]:
        """Return the claimed slots with their owners, in the order of owners and slots."""
        columns = (_c.owner, _c.slot, _c.attempt, _c.kind, _c.trial_id, _c.lease_until - self._now)
        leased = sa.select(*columns).where(self._study, _c.state == "leased")
        return [Lease(*row) for row in self._run(leased.order_by(_c.owner, _c.slot))]

    def attempts(self, slot: int) -> list[list[Any]]:
        """Return [attempt, word, owner] of how each attempt of a slot ended."""
        columns = (EVENT.c.attempt, EVENT.c.word, EVENT.c.owner)
        mine = sa.and_(EVENT.c.study_id == self.study_id, EVENT.c.slot == slot, EVENT.c.word != "began")
        return [list(row) for row in self._run(sa.select(*columns).where(mine).order_by(EVENT.c.id))]

    def happened(self, limit: int = 1000) -> list[Happening]:
        """Return what happened out of the ordinary, the latest first."""
        told = sa.and_(EVENT.c.study_id == self.study_id, EVENT.c.word.not_in(ORDINARY))
        columns = (self._now - EVENT.c.at, EVENT.c.word, EVENT.c.slot, EVENT.c.attempt, EVENT.c.owner, EVENT.c.text)
        found = sa.select(*columns).where(told).order_by(EVENT.c.id.desc()).limit(limit)
        return [Happening(*row) for row in self._run(found)]

    def log(self, word: str, text: str = "", owner: str | None = None) -> None:
        """Write down what happened to the study or a worker."""
        self._transact(lambda connection: self._log(connection, word, text, owner=owner))

    def _close(self, claim: Claim, owner: str, after: str, word: str, text: str, **values: Any) -> bool:
        """End an attempt if the claim stands, or was ended so already: an answer may have been lost."""
        trial_id = claim.trial_id

        def write(connection: sa.Connection) -> bool:
            mine = sa.update(SLOT).where(self._is(claim, owner), _c.state == "leased").values(state=after, **values)
            row = connection.execute(mine.returning(_c.trial_id)).first()
            if row is None:
                there = sa.select(_c.slot).where(self._is(claim, owner), _c.state == after)
                return connection.execute(there).first() is not None
            if after == "free":
                set_state(connection, [row[0] or trial_id], "RUNNING", "WAITING")
            self._log(connection, word, text, slot=claim.slot, attempt=claim.attempt, owner=owner)
            return True

        return self._transact(write)

    def _is(self, claim: Claim, owner: str) -> sa.ColumnElement[bool]:
        return sa.and_(self._study, _c.slot == claim.slot, _c.attempt == claim.attempt, _c.owner == owner)

    def _lock(self, connection: sa.Connection) -> None:
        """Let one transaction at a time look at the whole study and write; on SQLite every one is alone."""
        if self.store.engine.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK, self.study_id)))

    def _log(self, connection: sa.Connection, word: str, text: str = "", **values: Any) -> None:
        connection.execute(event(self._now, word, text, study_id=self.study_id, **values))

    def _run(self, statement: sa.Executable, patience: float | None = None) -> Sequence[Any]:
        return self._transact(lambda connection: connection.execute(statement).all(), patience)

    def _transact(self, work: Callable[[sa.Connection], T], patience: float | None = None) -> T:
        return transact(self.store, work, patience)


def clock(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Return the database's clock, in seconds since 1970, as a part of a statement."""
    return sa.literal_column(_NOW[engine.name], sa.Double)


def event(now: sa.ColumnElement[float], word: str, text: str, **values: Any) -> sa.Insert:
    """Return what writes down an event."""
    return sa.insert(EVENT).values(at=now, word=word, text=text or None, **values)


def set_state(connection: sa.Connection, trial_ids: Sequence[int | None], before: str, after: str) -> None:
    """Change the state of Optuna's trials from one word to another; a trial in a third state stays as it is."""
    for trial_id in trial_ids:
        if trial_id is not None:
            # Literals: on Postgres the column is an enumeration, to which no text parameter is converted.
            statement = f"UPDATE trials SET state = '{after}' WHERE trial_id = :id AND state = '{before}'"
            connection.execute(sa.text(statement), {"id": trial_id})


def _text(fixed: Fixed) -> str | None:
    return None if fixed is None else json.dumps(dict(fixed))


def transact(store: Opened, work: Callable[[sa.Connection], T], patience: float | None = None) -> T:
    """Do some work in one transaction, made again while the storage is away."""

    def once() -> T:
        with store.engine.begin() as connection:
            return work(connection)

    return retry(once, patience=store.patience if patience is None else patience, url=store.url)
