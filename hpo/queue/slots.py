"""Who runs which trial of the budget: one row a trial, leased by the database's clock.

The count of rows is the budget, so it is exact whatever the number of workers. A row is claimed in one
transaction; every later write names the owner and the attempt that it was claimed with, so a worker that lost
its lease changes nothing. The state of Optuna's trial goes with the slot's: RUNNING while it is leased, WAITING
while it is free and begun.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from hpo.queue.inspect import SlotTable
from hpo.storage.schema import EVENT, SLOT, TRIALS

MAX_FAILURES = 5  # attempts without a new rung after which a trial is given up: it may be what ends its workers

_LOCK = 0x68706F  # "hpo": with a study's id, the key of an advisory lock

T = TypeVar("T")
_c = SLOT.c


class Claim(NamedTuple):
    """A slot that an owner holds; `trial_id` is the Optuna trial that an earlier attempt began."""

    slot: int
    attempt: int
    kind: str
    fixed: dict[str, Any] | None
    trial_id: int | None
    origin: int | None = None
    requested_action: str | None = None
    failures: int = 0


class Slots(SlotTable):
    """The slots of one study. Every method is one transaction and is retried while the storage is away."""

    def claim(
        self, owner: str, lease_s: float, only_started: bool = False, rungs: tuple[int, int] | None = None
    ) -> Claim | None:
        """Take a free slot: interrupted trials first, then baselines, then what was added by hand, then the others.

        only_started: interrupted trials and no others.
        rungs: (r, n): r rungs are set aside for a trial that is begun, and none is begun where that makes more than
        n of the whole study.
        If the answer is lost and the call made again, a second slot is taken; the first comes free when its
        lease runs out, since nobody renews it.
        """
        begun = _c.trial_id.is_not(None)
        allowed: sa.ColumnElement[bool] = begun if only_started else sa.true()
        if rungs is not None:
            taken = sa.select(sa.func.coalesce(sa.func.sum(_c.rungs), 0)).where(self.of_study).scalar_subquery()
            allowed = sa.or_(begun, taken + rungs[0] <= rungs[1]) if not only_started else begun
        first = (
            sa.select(_c.slot)
            .where(self.of_study, _c.state == "free", allowed)
            .order_by(sa.not_(begun), _c.kind == "search", _c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has no such clause; there the whole transaction is exclusive
        )
        values = {"state": "leased", "owner": owner, "attempt": _c.attempt + 1, "lease_until": self.clock + lease_s}
        aside = sa.case((begun, _c.rungs), else_=rungs[0] if rungs else 0)
        take = sa.update(SLOT).where(self.of_study, _c.slot == first.scalar_subquery()).values(**values, rungs=aside)
        columns = (_c.slot, _c.attempt, _c.kind, _c.fixed, _c.trial_id, _c.origin, _c.requested_action, _c.failures)

        def write(connection: sa.Connection) -> Claim | None:
            if rungs is not None:
                self.lock(connection)  # two at once would both find room for one
            row = connection.execute(take.returning(*columns)).first()
            if row is None:
                return None
            found = Claim(*row)._replace(fixed=row.fixed and json.loads(row.fixed))
            set_trial_states(connection, [found.trial_id], "WAITING", "RUNNING")
            self._log(connection, "began", slot=found.slot, attempt=found.attempt, owner=owner)
            return found

        return self.transact(write)

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

    def renewal(self, claim: Claim, owner: str, lease_s: float, rung: int, new: bool = True) -> sa.Executable:
        """Return what renews a lease at a rung and gives the wish for its trial, as a fence of what is written."""
        later = sa.case((_c.rungs < rung, rung), else_=_c.rungs)
        statement = sa.update(SLOT).where(self._is(claim, owner), _c.state == "leased")
        # A rung that an earlier attempt has told is no progress: whatever ended that one may end this one.
        values = {"lease_until": self.clock + lease_s, "rungs": later} | ({"failures": 0} if new else {})
        return statement.values(values).returning(_c.requested_action)

    def renew_at_rung(self, claim: Claim, owner: str, lease_s: float, rung: int) -> str | None:
        """Renew a lease at a known rung; return what a person wishes of the trial, "" for nothing, None if lost."""
        rows = self.run(self.renewal(claim, owner, lease_s, rung, new=False))
        return (rows[0][0] or "") if rows else None

    def done(self, claim: Claim, owner: str, rung: int = 0, word: str = "complete", text: str = "") -> bool:
        """End the slot for good; False if the claim is lost.

        rung: how many its trial has trained; what was set aside beyond is free for others.
        """
        return self._close(claim, owner, "done", word, text, rungs=rung)

    def release(self, claim: Claim, owner: str, word: str = "preempted", text: str = "", failed: bool = False) -> bool:
        """Give the slot back, so that anyone may go on with it at once; False if the claim is lost."""
        return self._close(claim, owner, "free", word, text, failures=_c.failures + (1 if failed else 0))

    def request_action(self, slot: int, action: str) -> bool:
        """Note what a person wants of the slot's trial; False if it has ended."""
        statement = (
            sa.update(SLOT).where(self.of_study, _c.slot == slot, _c.state != "done").values(requested_action=action)
        )
        return bool(self.run(statement.returning(_c.slot)))

    def take(self, slot: int, owner: str, lease_s: float) -> Claim | None:
        """Claim this slot if it is begun, and free or its lease has run out."""
        idle = sa.or_(_c.state == "free", sa.and_(_c.state == "leased", _c.lease_until < self.clock))
        free = sa.and_(self.of_study, _c.slot == slot, idle, _c.trial_id.is_not(None))
        values = {"state": "leased", "owner": owner, "attempt": _c.attempt + 1, "lease_until": self.clock + lease_s}
        taken = sa.update(SLOT).where(free).values(**values).returning(_c.slot, _c.attempt, _c.kind, _c.trial_id)
        for slot, attempt, kind, trial_id in self.run(taken):
            return Claim(slot, attempt, kind, None, trial_id)
        return None

    def renew(self, owner: str, claims: Collection[tuple[int, int]], lease_s: float) -> set[tuple[int, int]]:
        """Renew these (slot, attempt) of the owner in one statement and return those that it still holds.

        Tried once: a caller on a timer has a better idea of when to try again.
        """
        held = sa.tuple_(_c.slot, _c.attempt).in_(sorted(claims))
        rows = self.run(
            sa.update(SLOT)
            .where(self.of_study, _c.owner == owner, _c.state == "leased", held)
            .values(lease_until=self.clock + lease_s)
            .returning(_c.slot, _c.attempt),
            patience=0.0,
        )
        return {(slot, attempt) for slot, attempt in rows}

    def log(self, word: str, text: str = "", owner: str | None = None) -> None:
        """Write down what happened to the study or a worker."""
        self.transact(lambda connection: self._log(connection, word, text, owner=owner))

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
                set_trial_states(connection, [row[0] or trial_id], "RUNNING", "WAITING")
            self._log(connection, word, text, slot=claim.slot, attempt=claim.attempt, owner=owner)
            return True

        return self.transact(write)

    def _is(self, claim: Claim, owner: str) -> sa.ColumnElement[bool]:
        return sa.and_(self.of_study, _c.slot == claim.slot, _c.attempt == claim.attempt, _c.owner == owner)

    def _log(self, connection: sa.Connection, word: str, text: str = "", **values: Any) -> None:
        connection.execute(insert_event(self.clock, word, text, study_id=self.study_id, **values))


def insert_event(now: sa.ColumnElement[float], event_type: str, text: str, **values: Any) -> sa.Insert:
    """Return what writes down an event."""
    return sa.insert(EVENT).values(at=now, event_type=event_type, text=text or None, **values)


def set_trial_states(connection: sa.Connection, trial_ids: Sequence[int | None], before: str, after: str) -> None:
    """Change the state of Optuna's trials from one word to another; a trial in a third state stays as it is."""
    for trial_id in trial_ids:
        if trial_id is not None:
            # Literals: on Postgres the column is an enumeration, to which no text parameter is converted.
            statement = f"UPDATE trials SET state = '{after}' WHERE trial_id = :id AND state = '{before}'"
            connection.execute(sa.text(statement), {"id": trial_id})
