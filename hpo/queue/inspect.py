"""Slots, leases and events as they are shown."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from hpo.storage.retry import OpenStorage, transact
from hpo.storage.schema import EVENT, SLOT, clock

_LOCK = 0x68706F  # "hpo": with a study's id, the key of an advisory lock

T = TypeVar("T")
_c = SLOT.c


class Lease(NamedTuple):
    """A claimed slot as others see it; `seconds` is below 0 when the lease has run out."""

    owner: str
    slot: int
    attempt: int
    kind: str
    trial_id: int | None
    seconds: float


class SlotEvent(NamedTuple):
    """Something out of the ordinary: to an attempt of a slot, to a worker, or to the study."""

    seconds_ago: float
    event_type: str
    slot: int | None
    attempt: int | None
    owner: str | None
    text: str | None


ORDINARY = ("began", "complete", "pruned", "diverged", "invalid")


class SlotTable:
    """The slots of one study, as anyone may read them. Every method is one transaction, retried while the storage
    is unreachable."""

    def __init__(self, store: OpenStorage, study_id: int) -> None:
        self.store = store
        self.study_id = study_id
        self.clock = clock(store.engine)
        self.of_study = _c.study_id == study_id

    def now(self) -> float:
        """Return the database's clock, in seconds since 1970."""
        return float(self.run(sa.select(self.clock))[0][0])

    def trial_id(self, slot: int) -> int | None:
        """Return the Optuna trial of a slot."""
        rows = self.run(sa.select(_c.trial_id).where(self.of_study, _c.slot == slot))
        return rows[0][0] if rows else None

    def counts(self) -> dict[str, int]:
        """Return how many slots are free, leased, done, and expired (leased, but the lease has run out)."""
        ran_out = sa.and_(_c.state == "leased", _c.lease_until < self.clock)
        state = sa.case((ran_out, "expired"), else_=_c.state).label("state")
        inner = sa.select(state).where(self.of_study).subquery()
        rows = self.run(sa.select(inner.c.state, sa.func.count()).group_by(inner.c.state))
        return {"free": 0, "leased": 0, "done": 0, "expired": 0} | dict(rows)

    def n_unfinished(self, only_started: bool = False) -> int:
        """Return how many slots are not done; `only_started`: of those that somebody holds or has begun."""
        begun = sa.or_(_c.state == "leased", _c.trial_id.is_not(None)) if only_started else sa.true()
        rows = self.run(sa.select(sa.func.count()).select_from(SLOT).where(self.of_study, _c.state != "done", begun))
        return int(rows[0][0])

    def rungs(self) -> int:
        """Return how many rungs are trained or set aside."""
        return int(self.run(sa.select(sa.func.coalesce(sa.func.sum(_c.rungs), 0)).where(self.of_study))[0][0])

    def owners(self) -> list[Lease]:
        """Return the claimed slots with their owners, in the order of owners and slots."""
        columns = (_c.owner, _c.slot, _c.attempt, _c.kind, _c.trial_id, _c.lease_until - self.clock)
        leased = sa.select(*columns).where(self.of_study, _c.state == "leased")
        return [Lease(*row) for row in self.run(leased.order_by(_c.owner, _c.slot))]

    def attempts(self, slot: int) -> list[list[Any]]:
        """Return [attempt, word, owner] of how each attempt of a slot ended."""
        columns = (EVENT.c.attempt, EVENT.c.event_type, EVENT.c.owner)
        mine = sa.and_(EVENT.c.study_id == self.study_id, EVENT.c.slot == slot, EVENT.c.event_type != "began")
        return [list(row) for row in self.run(sa.select(*columns).where(mine).order_by(EVENT.c.id))]

    def events(self, limit: int = 1000) -> list[SlotEvent]:
        """Return what happened out of the ordinary, the latest first."""
        told = sa.and_(EVENT.c.study_id == self.study_id, EVENT.c.event_type.not_in(ORDINARY))
        columns = (
            self.clock - EVENT.c.at,
            EVENT.c.event_type,
            EVENT.c.slot,
            EVENT.c.attempt,
            EVENT.c.owner,
            EVENT.c.text,
        )
        found = sa.select(*columns).where(told).order_by(EVENT.c.id.desc()).limit(limit)
        return [SlotEvent(*row) for row in self.run(found)]

    def lock(self, connection: sa.Connection) -> None:
        """Let one transaction at a time look at the whole study and write; on SQLite every one is alone."""
        if self.store.engine.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK, self.study_id)))

    def run(self, statement: sa.Executable, patience: float | None = None) -> Sequence[Any]:
        return self.transact(lambda connection: connection.execute(statement).all(), patience)

    def transact(self, work: Callable[[sa.Connection], T], patience: float | None = None) -> T:
        return transact(self.store, work, patience)
