"""Lease the slots of a study to workers.

A slot is one trial of the budget, and one row of the table hpo_slot. A worker claims a free slot in one transaction
and receives a lease that expires by the database's clock. Every later write names the owner and the attempt of the
claim, so a worker that lost its lease changes nothing. There is one row for each trial of the budget, so the budget
is exact for any number of workers.

The state of Optuna's trial follows the state of the slot: RUNNING while the slot is leased, and WAITING while it is
free after an interruption or paused (see `hpo.queue.pausing`).
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from hpo.optuna_internals.tables import RUNNING, TRIALS, WAITING
from hpo.queue.inspect import SlotTable, not_in_force
from hpo.storage.attributes import PAUSED
from hpo.storage.schema import SLOT, insert_event
from hpo.storage.trial_rows import delete_attr, set_trial_states

# Attempts in a row without a new rung after which the trial fails. FAILURES: its worker died, its device failed, or its
# files could not be written; the trial may be the cause. INTERRUPTIONS: whatever ended them, signals included.
MAX_FAILURES, MAX_INTERRUPTIONS = 5, 20

PAUSABLE = ("search", "enqueued")  # kinds of slots whose trials may pause at a mark

T = TypeVar("T")
_c = SLOT.c


class Claim(NamedTuple):
    """A slot that an owner has claimed.

    fixed: the values that the trial must use; None: the sampler suggests them.
    trial_id: the Optuna trial that an earlier attempt created.
    origin: of a retry, the number of the trial that failed.
    requested_action: "kill" if `hpo kill` has requested the end of the trial.
    failures: failed attempts since the last new rung. interruptions: all attempts since then.
    """

    slot: int
    attempt: int
    kind: str
    fixed: dict[str, Any] | None
    trial_id: int | None
    origin: int | None = None
    requested_action: str | None = None
    failures: int = 0
    interruptions: int = 0

    @classmethod
    def from_row(cls, row: sa.Row[Any]) -> "Claim":
        """Return the claim in a row that `Slots.claiming` returns."""
        return cls._make(row)._replace(fixed=row.fixed and json.loads(row.fixed))


class Slots(SlotTable):
    """The slots of one study. Each method is one transaction, retried while the storage is unreachable."""

    def claim(
        self,
        owner: str,
        lease_s: float,
        only_started: bool = False,
        rungs: tuple[int, int] | None = None,
        first_stop: int | None = None,
        search: bool = True,
    ) -> Claim | None:
        """Claim a free slot, or return None if there is none.

        The order is: interrupted trials, baselines, slots that `hpo retry` and `hpo enqueue` added, all others. If the
        answer of the database is lost, the retry claims a second slot; the first one is freed when its lease expires.

        only_started: claim only interrupted trials.
        rungs: (r, n): reserve r rungs for a new trial, and start one only if the reserved and trained rungs of the
            whole study stay at or below n.
        first_stop: reserve only this number of rungs for a trial that may pause there.
        search: whether to claim trials of the search that have not started.
        """
        started = _c.trial_id.is_not(None)
        first = self._first_free(self._may_start(started, only_started, rungs), search)
        full = rungs[0] if rungs else 0
        pausable = _c.kind.in_(PAUSABLE) if first_stop is not None else sa.false()
        reserved = sa.case((started, _c.rungs), (pausable, min(full, first_stop or 0)), else_=full)
        values = self.lease(owner, lease_s) | {"rungs": reserved}
        update = self.claiming(sa.and_(self.of_study, _c.slot == first.scalar_subquery()), values)

        def write(connection: sa.Connection) -> Claim | None:
            if rungs is not None:
                self.lock(connection)  # otherwise two simultaneous claims could both take the last rungs
            row = connection.execute(update).first()
            if row is None:
                return None
            claim = Claim.from_row(row)
            set_trial_states(connection, [claim.trial_id], WAITING, RUNNING)
            self.store_event(connection, "began", slot=claim.slot, attempt=claim.attempt, owner=owner)
            return claim

        return self.transact(write)

    def _first_free(self, may_start: sa.ColumnElement[bool], search: bool) -> sa.Select[tuple[int]]:
        """Return the query that finds and locks the slot to claim. The arguments are those of `claim`."""
        started = _c.trial_id.is_not(None)
        return (
            sa.select(_c.slot)
            .where(self.of_study, _c.state == "free", may_start)
            .where(sa.true() if search else sa.or_(started, _c.kind != "search"))
            .order_by(sa.not_(started), _c.kind == "search", _c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has no such clause; there the whole transaction is exclusive
        )

    def _may_start(
        self, started: sa.ColumnElement[bool], only_started: bool, rungs: tuple[int, int] | None
    ) -> sa.ColumnElement[bool]:
        """Return the condition under which `claim` takes a free slot."""
        if only_started:
            return started
        if rungs is None:
            return sa.true()
        return sa.or_(started, self.used_rungs() + rungs[0] <= rungs[1])

    def used_rungs(self) -> sa.ScalarSelect[Any]:
        """Return the query of the rungs of the whole study that are trained or reserved."""
        return sa.select(sa.func.coalesce(sa.func.sum(_c.rungs), 0)).where(self.of_study).scalar_subquery()

    def claiming(self, condition: sa.ColumnElement[bool], values: Mapping[str, Any]) -> sa.Executable:
        """Return the statement that sets values of the slots under a condition, and returns rows of `Claim`."""
        columns = (_c.slot, _c.attempt, _c.kind, _c.fixed, _c.trial_id, _c.origin, _c.requested_action)
        update = sa.update(SLOT).where(condition).values(values)
        return update.returning(*columns, _c.failures, _c.interruptions)

    def lease(self, owner: str, lease_s: float) -> dict[str, Any]:
        """Return the values of a slot that becomes leased."""
        return {"state": "leased", "owner": owner, "attempt": _c.attempt + 1, **self._until(lease_s)}

    def _until(self, lease_s: float) -> dict[str, Any]:
        """Return the values of a lease that starts now."""
        return {"lease_until": self.clock + lease_s, "lease_s": lease_s}

    def held(self, claim: Claim, owner: str) -> sa.Select[Any]:
        """Return the query that finds and locks the slot while the owner holds the claim: the check of `fenced`."""
        return sa.select(_c.slot).where(self.claimed(claim, owner), _c.state == "leased").with_for_update()

    def link(self, claim: Claim, owner: str) -> sa.Update:
        """Return the statement that stores the newest Optuna trial of the study as the trial of the slot.

        Run it in the transaction that creates the trial: Optuna creates the trials of a study one at a time, so the
        newest trial is then the new one.
        """
        newest = sa.select(sa.func.max(TRIALS.c.trial_id)).where(TRIALS.c.study_id == self.study_id)
        unlinked = sa.and_(
            self.claimed(claim, owner), _c.trial_id.is_(None)
        )  # a lost answer must not link a second trial
        return sa.update(SLOT).where(unlinked).values(trial_id=newest.scalar_subquery())

    def renewal(self, claim: Claim, owner: str, lease_s: float, rung: int, new: bool = True) -> sa.Executable:
        """Return the statement that renews a lease at a rung and returns the requested action: a check of `fenced`.

        new: whether no earlier attempt has reported this rung. Only a new rung resets the counts of failures and
            interruptions, because whatever ended the earlier attempt may end this one too.
        """
        rungs = sa.case((_c.rungs < rung, rung), else_=_c.rungs)
        update = sa.update(SLOT).where(self.claimed(claim, owner), _c.state == "leased")
        values = {**self._until(lease_s), "rungs": rungs} | ({"failures": 0, "interruptions": 0} if new else {})
        return update.values(values).returning(_c.requested_action)

    def renew_at_rung(self, claim: Claim, owner: str, lease_s: float, rung: int) -> str | None:
        """Renew a lease at a rung that is already reported; return the requested action or "", None if it is lost."""
        rows = self.run(self.renewal(claim, owner, lease_s, rung, new=False))
        return (rows[0][0] or "") if rows else None

    def done(self, claim: Claim, owner: str, rung: int = 0, event_type: str = "complete", text: str = "") -> bool:
        """Mark the slot as done; return False if the claim is lost.

        rung: how many rungs its trial has trained. Rungs that were reserved beyond are available again.
        """
        return self._close(claim, owner, "done", event_type, text, rungs=rung)

    def release(
        self, claim: Claim, owner: str, event_type: str = "preempted", text: str = "", failed: bool = False
    ) -> bool:
        """Free the slot, so that any worker can resume its trial; return False if the claim is lost."""
        counts = {"failures": _c.failures + (1 if failed else 0), "interruptions": _c.interruptions + 1}
        return self._close(claim, owner, "free", event_type, text, **counts)

    def request_action(self, slot: int, action: str) -> bool:
        """Store an action for the worker of a slot, such as "kill"; return False if the slot is done."""
        update = sa.update(SLOT).where(self.of_study, _c.slot == slot, _c.state != "done")
        return bool(self.run(update.values(requested_action=action).returning(_c.slot)))

    def take(self, slot: int, owner: str, lease_s: float) -> Claim | None:
        """Claim this slot if its trial was started and no lease on it is in force, as of a paused trial."""
        idle = sa.or_(_c.state.in_(("free", "paused")), sa.and_(_c.state == "leased", not_in_force(self.store)))
        interrupted = sa.and_(self.of_study, _c.slot == slot, idle, _c.trial_id.is_not(None))
        take = self.claiming(interrupted, self.lease(owner, lease_s))

        def write(connection: sa.Connection) -> Claim | None:
            row = connection.execute(take).first()
            if row is not None:
                delete_attr(connection, row.trial_id, PAUSED)
            return None if row is None else Claim.from_row(row)

        return self.transact(write)

    def renew(self, owner: str, claims: Collection[tuple[int, int]], lease_s: float) -> set[tuple[int, int]]:
        """Renew these (slot, attempt) in one statement and return those that the owner still holds.

        This method does not retry: its caller runs on a timer and retries at a better time.
        """
        claimed = sa.tuple_(_c.slot, _c.attempt).in_(sorted(claims))
        rows = self.run(
            sa.update(SLOT)
            .where(self.of_study, _c.owner == owner, _c.state == "leased", claimed)
            .values(self._until(lease_s))
            .returning(_c.slot, _c.attempt),
            patience=0.0,
        )
        return {(slot, attempt) for slot, attempt in rows}

    def log(self, event_type: str, text: str = "", owner: str | None = None) -> None:
        """Store an event of the study or of a worker."""
        self.transact(lambda connection: self.store_event(connection, event_type, text, owner=owner))

    def _close(self, claim: Claim, owner: str, after: str, event_type: str, text: str, **values: Any) -> bool:
        """End an attempt; return whether the claim is held, or was ended like this already by a call without answer."""

        def write(connection: sa.Connection) -> bool:
            leased = sa.update(SLOT).where(self.claimed(claim, owner), _c.state == "leased")
            row = connection.execute(leased.values(state=after, **values).returning(_c.trial_id)).first()
            if row is None:
                ended = sa.select(_c.slot).where(self.claimed(claim, owner), _c.state == after)
                return connection.execute(ended).first() is not None
            if after == "free":
                set_trial_states(connection, [row[0] or claim.trial_id], RUNNING, WAITING)
            self.store_event(connection, event_type, text, slot=claim.slot, attempt=claim.attempt, owner=owner)
            return True

        return self.transact(write)

    def claimed(self, claim: Claim, owner: str) -> sa.ColumnElement[bool]:
        """Return the condition that selects the slot of a claim if the owner still holds this attempt."""
        return sa.and_(self.of_study, _c.slot == claim.slot, _c.attempt == claim.attempt, _c.owner == owner)

    def store_event(self, connection: sa.Connection, event_type: str, text: str = "", **values: Any) -> None:
        """Store an event of the study in a transaction."""
        connection.execute(insert_event(self.clock, event_type, text, study_id=self.study_id, **values))
