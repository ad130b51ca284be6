"""Read the slots, leases and events of a study."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from hpo.errors import Problem
from hpo.storage.attributes import REGISTERING
from hpo.storage.retry import OpenStorage, transact
from hpo.storage.schema import EVENT, SLOT, database_clock
from hpo.storage.studies import study_has_uid

# State of a slot that a sequential comparison does not need any more. It does not count as a trial of the budget.
SKIPPED = "skipped"

_LOCK = 0x68706F  # "hpo": with a study's id, the key of an advisory lock

# Event types that an ordinary run produces; `events` leaves them out.
ORDINARY = ("began", "complete", "pruned", "diverged", "invalid", "paused_at_rung")

# Attempts in a row without a new rung from which on `hpo status` and `hpo doctor` name the trial.
STALLED = 3

T = TypeVar("T")
_c = SLOT.c


class Lease(NamedTuple):
    """A leased slot.

    trial_id: the Optuna trial, None before an attempt has created it.
    seconds: time until the lease expires, negative after that; 0 for a void lease.
    """

    owner: str
    slot: int
    attempt: int
    kind: str
    trial_id: int | None
    seconds: float


class SlotEvent(NamedTuple):
    """An unusual event of an attempt, of a worker or of the study."""

    seconds_ago: float
    event_type: str
    slot: int | None
    attempt: int | None
    owner: str | None
    text: str | None


def is_void(store: OpenStorage) -> sa.ColumnElement[bool]:
    """Return the condition under which a lease is void: it lies further ahead than a lease can.

    The database's clock was then set back after the lease had started. The margin is one length of the lease.
    """
    if "lease_s" in store.lacks:
        return sa.false()
    clock = database_clock(store.engine)
    return sa.and_(_c.lease_until > clock, _c.lease_until > clock + 2 * _c.lease_s)


def not_in_force(store: OpenStorage) -> sa.ColumnElement[bool]:
    """Return the condition under which a lease has expired or is void."""
    return sa.or_(_c.lease_until < database_clock(store.engine), is_void(store))


class SlotTable:
    """Read access to the slots of one study.

    Each method is one transaction, retried while the storage is unreachable.
    """

    def __init__(self, store: OpenStorage, study_id: int, uid: str = "") -> None:
        """Create access to the slots under an id.

        uid: uid of the study, "" for any. With a uid, every statement finds its rows only while the study has this id,
            so nothing is read or written once the study was deleted or renamed, even if another study has its id.
        """
        self.store = store
        self.study_id = study_id
        self.uid = uid
        self.clock = database_clock(store.engine)
        self.of_study = _c.study_id == study_id
        if uid:
            self.of_study = sa.and_(self.of_study, _c.study_uid == uid, study_has_uid(study_id, uid))

    def now(self) -> float:
        """Return the database's clock in seconds since 1970."""
        return float(self.run(sa.select(self.clock))[0][0])

    def trial_id(self, slot: int) -> int | None:
        """Return the id of the Optuna trial of a slot, None before an attempt has created it."""
        rows = self.run(sa.select(_c.trial_id).where(self.of_study, _c.slot == slot))
        return rows[0][0] if rows else None

    def counts(self) -> dict[str, int]:
        """Return how many slots are free, leased, done, and expired (leased, but the lease has expired or is void)."""
        has_expired = sa.and_(_c.state == "leased", not_in_force(self.store))
        state = sa.case((has_expired, "expired"), else_=_c.state).label("state")
        states = sa.select(state).where(self.of_study, _c.state != SKIPPED).subquery()
        rows = self.run(sa.select(states.c.state, sa.func.count()).group_by(states.c.state))
        return {"free": 0, "leased": 0, "done": 0, "expired": 0} | dict(rows)

    def n_unfinished(self, only_started: bool = False) -> int:
        """Return how many slots are free or leased; with `only_started`, how many of them are leased or have a trial.

        A paused slot does not count, because its trial may never continue.
        """
        started = sa.or_(_c.state == "leased", _c.trial_id.is_not(None)) if only_started else sa.true()
        unfinished = _c.state.in_(("free", "leased"))
        rows = self.run(sa.select(sa.func.count()).select_from(SLOT).where(self.of_study, unfinished, started))
        return int(rows[0][0])

    def has_started(self) -> bool:
        """Return whether a slot was ever leased."""
        started = sa.or_(_c.state != "free", _c.trial_id.is_not(None))
        return bool(self.run(sa.select(sa.func.count()).select_from(SLOT).where(self.of_study, started))[0][0])

    def paused(self) -> frozenset[int]:
        """Return the slots whose trials are paused."""
        return frozenset(row[0] for row in self.run(sa.select(_c.slot).where(self.of_study, _c.state == "paused")))

    def rungs(self) -> int:
        """Return how many rungs of the study are trained or reserved."""
        return int(self.run(sa.select(sa.func.coalesce(sa.func.sum(_c.rungs), 0)).where(self.of_study))[0][0])

    def owners(self) -> list[Lease]:
        """Return the leases, sorted by owner and slot."""
        seconds = sa.case((is_void(self.store), 0.0), else_=_c.lease_until - self.clock)
        columns = (_c.owner, _c.slot, _c.attempt, _c.kind, _c.trial_id, seconds)
        leased = sa.select(*columns).where(self.of_study, _c.state == "leased")
        return [Lease(*row) for row in self.run(leased.order_by(_c.owner, _c.slot))]

    def attempts(self, slot: int) -> list[list[Any]]:
        """Return [attempt, event type, owner] for the end of each attempt of a slot."""
        columns = (EVENT.c.attempt, EVENT.c.event_type, EVENT.c.owner)
        of_slot = sa.and_(EVENT.c.study_id == self.study_id, EVENT.c.slot == slot, EVENT.c.attempt.is_not(None))
        ends = sa.and_(of_slot, EVENT.c.event_type != "began")
        return [list(row) for row in self.run(sa.select(*columns).where(ends).order_by(EVENT.c.id))]

    def events(self, limit: int = 1000) -> list[SlotEvent]:
        """Return the unusual events of the study, the latest first."""
        unusual = sa.and_(EVENT.c.study_id == self.study_id, EVENT.c.event_type.not_in(ORDINARY))
        seconds_ago = self.clock - EVENT.c.at
        columns = (seconds_ago, EVENT.c.event_type, EVENT.c.slot, EVENT.c.attempt, EVENT.c.owner, EVENT.c.text)
        latest = sa.select(*columns).where(unusual).order_by(EVENT.c.id.desc()).limit(limit)
        return [SlotEvent(*row) for row in self.run(latest)]

    def stalled(self) -> dict[int, int]:
        """Return the number of attempts since the last new rung by slot, for slots with at least STALLED of them."""
        if "interruptions" in self.store.lacks:
            return {}
        stalled = sa.and_(self.of_study, _c.state != "done", _c.interruptions >= STALLED)
        return {row[0]: row[1] for row in self.run(sa.select(_c.slot, _c.interruptions).where(stalled))}

    def lock(self, connection: sa.Connection) -> None:
        """Lock the study for this transaction. SQLite needs no lock: its write transactions are exclusive."""
        if self.store.engine.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK, self.study_id)))

    def run(self, statement: sa.Executable, patience: float | None = None) -> Sequence[Any]:
        """Execute a statement in a transaction of its own and return its rows."""
        return self.transact(lambda connection: connection.execute(statement).all(), patience)

    def transact(self, work: Callable[[sa.Connection], T], patience: float | None = None) -> T:
        """Call `work` in a transaction; see `hpo.storage.retry.transact`."""
        return transact(self.store, work, patience)


class BeingRegistered(Problem):
    """A launch is creating the slots of a study, or was interrupted while it did so."""


def unregistered_problem(store: OpenStorage, name: str, study_id: int, attrs: Mapping[str, Any]) -> Problem:
    """Return the error for a study that has no definition: one that is being registered, or one of another program."""
    if REGISTERING not in attrs:
        return Problem(f"--study: {name!r} was not created by `hpo launch`")
    n = sum(SlotTable(store, study_id).counts().values())
    return BeingRegistered(
        f"study {name}: being registered, {n:,} of {attrs[REGISTERING]['slots']:,} trials; "
        "if no launch is running, the next `hpo launch` of the study continues"
    )
