"""Lease the slots of a study to workers.

A slot is one trial of the budget, and one row of the table hpo_slot. A worker claims a free slot in one transaction
and receives a lease that expires by the database's clock. Every later write names the owner and the attempt of the
claim, so a worker that lost its lease changes nothing. There is one row for each trial of the budget, so the budget
is exact for any number of workers.

The state of Optuna's trial follows the state of the slot: RUNNING while the slot is leased, and WAITING while it is
free after an interruption.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa

from hpo.optuna_internals import RUNNING, TRIALS, WAITING, trial_state
from hpo.queue.inspect import SlotTable, not_in_force
from hpo.storage.schema import EVENT, SLOT

# Attempts in a row without a new rung after which the trial fails. FAILURES: its worker died, its device failed, or its
# files could not be written; the trial may be the cause. INTERRUPTIONS: whatever ended them, signals included.
MAX_FAILURES, MAX_INTERRUPTIONS = 5, 20

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


class Slots(SlotTable):
    """The slots of one study. Each method is one transaction, retried while the storage is unreachable."""

    def claim(
        self, owner: str, lease_s: float, only_started: bool = False, rungs: tuple[int, int] | None = None
    ) -> Claim | None:
        """Claim a free slot, or return None if there is none.

        The order is: interrupted trials, baselines, slots that `hpo retry` and `hpo enqueue` added, all others. If the
        answer of the database is lost, the retry claims a second slot; the first one is freed when its lease expires.

        only_started: claim only interrupted trials.
        rungs: (r, n): reserve r rungs for a new trial, and start one only if the reserved and trained rungs of the
            whole study stay at or below n.
        """
        started = _c.trial_id.is_not(None)
        first = (
            sa.select(_c.slot)
            .where(self.of_study, _c.state == "free", self._may_start(started, only_started, rungs))
            .order_by(sa.not_(started), _c.kind == "search", _c.slot)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has no such clause; there the whole transaction is exclusive
        )
        reserved = sa.case((started, _c.rungs), else_=rungs[0] if rungs else 0)
        values = self._lease(owner, lease_s) | {"rungs": reserved}
        update = sa.update(SLOT).where(self.of_study, _c.slot == first.scalar_subquery()).values(values)
        columns = (_c.slot, _c.attempt, _c.kind, _c.fixed, _c.trial_id, _c.origin, _c.requested_action)
        counts = (_c.failures, _c.interruptions)

        def write(connection: sa.Connection) -> Claim | None:
            if rungs is not None:
                self.lock(connection)  # otherwise two simultaneous claims could both take the last rungs
            row = connection.execute(update.returning(*columns, *counts)).first()
            if row is None:
                return None
            claim = Claim(*row)._replace(fixed=row.fixed and json.loads(row.fixed))
            set_trial_states(connection, [claim.trial_id], WAITING, RUNNING)
            self._log(connection, "began", slot=claim.slot, attempt=claim.attempt, owner=owner)
            return claim

        return self.transact(write)

    def _may_start(
        self, started: sa.ColumnElement[bool], only_started: bool, rungs: tuple[int, int] | None
    ) -> sa.ColumnElement[bool]:
        """Return the condition under which `claim` takes a free slot."""
        if only_started:
            return started
        if rungs is None:
            return sa.true()
        used = sa.select(sa.func.coalesce(sa.func.sum(_c.rungs), 0)).where(self.of_study).scalar_subquery()
        return sa.or_(started, used + rungs[0] <= rungs[1])

    def _lease(self, owner: str, lease_s: float) -> dict[str, Any]:
        """Return the values of a slot that becomes leased."""
        return {"state": "leased", "owner": owner, "attempt": _c.attempt + 1, **self._until(lease_s)}

    def _until(self, lease_s: float) -> dict[str, Any]:
        """Return the values of a lease that starts now."""
        return {"lease_until": self.clock + lease_s, "lease_s": lease_s}

    def held(self, claim: Claim, owner: str) -> sa.Select[Any]:
        """Return the query that finds and locks the slot while the owner holds the claim: the check of `fenced`."""
        return sa.select(_c.slot).where(self._is(claim, owner), _c.state == "leased").with_for_update()

    def link(self, claim: Claim, owner: str) -> sa.Update:
        """Return the statement that stores the newest Optuna trial of the study as the trial of the slot.

        Run it in the transaction that creates the trial: Optuna creates the trials of a study one at a time, so the
        newest trial is then the new one.
        """
        newest = sa.select(sa.func.max(TRIALS.c.trial_id)).where(TRIALS.c.study_id == self.study_id)
        unlinked = sa.and_(self._is(claim, owner), _c.trial_id.is_(None))  # a lost answer must not link a second trial
        return sa.update(SLOT).where(unlinked).values(trial_id=newest.scalar_subquery())

    def renewal(self, claim: Claim, owner: str, lease_s: float, rung: int, new: bool = True) -> sa.Executable:
        """Return the statement that renews a lease at a rung and returns the requested action: a check of `fenced`.

        new: whether no earlier attempt has reported this rung. Only a new rung resets the counts of failures and
            interruptions, because whatever ended the earlier attempt may end this one too.
        """
        rungs = sa.case((_c.rungs < rung, rung), else_=_c.rungs)
        update = sa.update(SLOT).where(self._is(claim, owner), _c.state == "leased")
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
        """Claim this slot if its trial was started and no lease on it is in force."""
        idle = sa.or_(_c.state == "free", sa.and_(_c.state == "leased", not_in_force(self.store)))
        interrupted = sa.and_(self.of_study, _c.slot == slot, idle, _c.trial_id.is_not(None))
        update = sa.update(SLOT).where(interrupted).values(self._lease(owner, lease_s))
        for slot, attempt, kind, trial_id in self.run(update.returning(_c.slot, _c.attempt, _c.kind, _c.trial_id)):
            return Claim(slot, attempt, kind, None, trial_id)
        return None

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
        self.transact(lambda connection: self._log(connection, event_type, text, owner=owner))

    def _close(self, claim: Claim, owner: str, after: str, event_type: str, text: str, **values: Any) -> bool:
        """End an attempt; return whether the claim is held, or was ended like this already by a call without answer."""

        def write(connection: sa.Connection) -> bool:
            leased = sa.update(SLOT).where(self._is(claim, owner), _c.state == "leased")
            row = connection.execute(leased.values(state=after, **values).returning(_c.trial_id)).first()
            if row is None:
                ended = sa.select(_c.slot).where(self._is(claim, owner), _c.state == after)
                return connection.execute(ended).first() is not None
            if after == "free":
                set_trial_states(connection, [row[0] or claim.trial_id], RUNNING, WAITING)
            self._log(connection, event_type, text, slot=claim.slot, attempt=claim.attempt, owner=owner)
            return True

        return self.transact(write)

    def _is(self, claim: Claim, owner: str) -> sa.ColumnElement[bool]:
        return sa.and_(self.of_study, _c.slot == claim.slot, _c.attempt == claim.attempt, _c.owner == owner)

    def _log(self, connection: sa.Connection, event_type: str, text: str = "", **values: Any) -> None:
        connection.execute(insert_event(self.clock, event_type, text, study_id=self.study_id, **values))


def insert_event(now: sa.ColumnElement[float], event_type: str, text: str, **values: Any) -> sa.Insert:
    """Return the statement that stores an event."""
    return sa.insert(EVENT).values(at=now, event_type=event_type, text=text or None, **values)


def set_trial_states(connection: sa.Connection, trial_ids: Sequence[int | None], before: str, after: str) -> None:
    """Change the state of Optuna's trials from `before` to `after`; a trial in a third state stays as it is."""
    ids = [trial_id for trial_id in trial_ids if trial_id is not None]
    if ids:
        matching = sa.and_(TRIALS.c.trial_id.in_(ids), TRIALS.c.state == trial_state(before))
        connection.execute(sa.update(TRIALS).where(matching).values(state=trial_state(after)))
