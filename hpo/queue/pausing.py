"""Pause trials at marks, promote paused trials, and prune those that are still paused when the study ends.

`paused` is a state of a slot. A paused slot has no lease, and `Slots.claim` does not take it. Its trial is WAITING in
Optuna, as an interrupted trial, and has the attribute PAUSED. Every change of state is one transaction, so no trial is
promoted or ended twice.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from hpo.optuna_internals.tables import RUNNING, WAITING
from hpo.queue.slots import Claim, Slots
from hpo.search.marks import Standing
from hpo.storage.attributes import ATTEMPTS, END_REASON, MARKS, PAUSED, PRUNING_DECISION
from hpo.storage.schema import EVENT, SLOT
from hpo.storage.trial_rows import delete_attr, finish_as_pruned, read_attr, set_trial_states, write_attr

Record = dict[str, Any]  # what was decided about a trial at a mark, as it is stored

_c = SLOT.c


class Promotion(NamedTuple):
    """A paused trial that may continue: its id, its place at its mark, and the rungs until it may pause again.

    next_stop: the rungs that it has trained when it may pause again, with its probes. probe_rungs: the tokens of its
    probes until now, in rungs.
    """

    trial_id: int
    place: Standing
    next_stop: int
    probe_rungs: int = 0

    @property
    def rungs(self) -> int:
        """Return the number of rungs that the trial may train before it pauses again."""
        return self.next_stop - self.place.rung - self.probe_rungs


class PausedTrial(NamedTuple):
    """A paused trial that ends: its id, its last value, and the record of its last place."""

    trial_id: int
    value: float
    record: Record


def place_text(place: Standing) -> str:
    """Return the place of a trial as text, such as "rung 3, rank 4 of 9"."""
    return f"rung {place.rung}, rank {place.rank} of {place.n}"


def pause(
    slots: Slots,
    claim: Claim,
    owner: str,
    place: Standing,
    record: Record,
    attrs: Mapping[str, Any],
    probe_rungs: int = 0,
) -> bool:
    """End an attempt at a mark: free the lease and the rungs that are reserved beyond; return False if it is lost.

    attrs: further attributes of the trial. probe_rungs: the tokens of its probes, in rungs.
    """
    values = {"state": "paused", "rungs": place.rung + probe_rungs, "failures": 0, "interruptions": 0}

    def write(connection: sa.Connection) -> bool:
        leased = sa.update(SLOT).where(slots.claimed(claim, owner), _c.state == "leased")
        row = connection.execute(leased.values(values).returning(_c.trial_id)).first()
        if row is None:  # a call without answer may have written it
            already = sa.select(_c.slot).where(slots.claimed(claim, owner), _c.state == "paused")
            return connection.execute(already).first() is not None
        set_trial_states(connection, [row.trial_id], RUNNING, WAITING)
        _add_record(connection, row.trial_id, record)
        for key, value in {**attrs, PAUSED: place_text(place)}.items():
            write_attr(connection, row.trial_id, key, value)
        attempt = {"slot": claim.slot, "attempt": claim.attempt, "owner": owner}
        slots.store_event(connection, "paused_at_rung", place_text(place), **attempt)
        return True

    return slots.transact(write)


def promote(
    slots: Slots, owner: str, lease_s: float, candidates: Sequence[Promotion], budget_rungs: int | None
) -> Claim | None:
    """Claim the first of these trials that is still paused; return None if there is none.

    budget_rungs: number of rungs that all trials together may train. A trial is promoted only if its rungs up to its
        next stop fit.
    """

    def write(connection: sa.Connection) -> Claim | None:
        if budget_rungs is not None:
            slots.lock(connection)
        for candidate in candidates:
            is_paused = sa.and_(slots.of_study, _c.trial_id == candidate.trial_id, _c.state == "paused")
            if budget_rungs is not None:
                is_paused = sa.and_(is_paused, slots.used_rungs() + candidate.rungs <= budget_rungs)
            values = slots.lease(owner, lease_s) | {"rungs": candidate.next_stop}
            if row := connection.execute(slots.claiming(is_paused, values)).first():
                return _promoted(connection, slots, Claim.from_row(row), owner, candidate.place)
        return None

    return slots.transact(write)


def _promoted(connection: sa.Connection, slots: Slots, claim: Claim, owner: str, place: Standing) -> Claim:
    assert claim.trial_id is not None
    set_trial_states(connection, [claim.trial_id], WAITING, RUNNING)
    delete_attr(connection, claim.trial_id, PAUSED)
    _add_record(connection, claim.trial_id, {"decision": "promoted", **place._asdict()})
    attempt = {"slot": claim.slot, "attempt": claim.attempt, "owner": owner}
    slots.store_event(connection, "began", f"promoted from {place_text(place)}", **attempt)
    return claim


def reserve(slots: Slots, claim: Claim, owner: str, next_stop: int, budget_rungs: int) -> bool:
    """Reserve the rungs of a trial up to its next stop; return False if the budget has no room or the claim is lost."""

    def write(connection: sa.Connection) -> bool:
        slots.lock(connection)
        held = sa.and_(slots.claimed(claim, owner), _c.state == "leased")
        fits = sa.or_(_c.rungs >= next_stop, slots.used_rungs() - _c.rungs + next_stop <= budget_rungs)
        values = {"rungs": sa.case((_c.rungs < next_stop, next_stop), else_=_c.rungs)}
        return connection.execute(sa.update(SLOT).where(held, fits).values(values)).rowcount > 0

    return slots.transact(write)


def prune_paused(slots: Slots, trials: Sequence[PausedTrial]) -> list[int] | None:
    """End the trials that are still paused as pruned; return their ids, None if a trial of the study is running or
    interrupted. All of them end in one transaction, which has no effect if it is repeated."""

    def write(connection: sa.Connection) -> list[int] | None:
        slots.lock(connection)
        started = sa.or_(_c.state == "leased", sa.and_(_c.state == "free", _c.trial_id.is_not(None)))
        if connection.execute(sa.select(_c.slot).where(slots.of_study, started).limit(1)).first():
            return None
        return [trial.trial_id for trial in trials if _prune(connection, slots, trial)]

    return slots.transact(write)


def _prune(connection: sa.Connection, slots: Slots, trial: PausedTrial) -> bool:
    """End one paused trial; return False if it is no longer paused."""
    is_paused = sa.and_(slots.of_study, _c.trial_id == trial.trial_id, _c.state == "paused")
    update = sa.update(SLOT).where(is_paused).values(state="done")
    row = connection.execute(update.returning(_c.slot, _c.attempt)).first()
    if row is None:
        return False
    of_slot = sa.and_(EVENT.c.study_id == slots.study_id, EVENT.c.slot == row.slot, EVENT.c.event_type != "began")
    columns = (EVENT.c.attempt, EVENT.c.event_type, EVENT.c.owner, EVENT.c.at)
    ends = connection.execute(sa.select(*columns).where(of_slot).order_by(EVENT.c.id)).all()
    paused_at = datetime.fromtimestamp(ends[-1].at) if ends else datetime.now()  # when its training ended
    finish_as_pruned(connection, trial.trial_id, WAITING, trial.value, paused_at)
    delete_attr(connection, trial.trial_id, PAUSED)
    attrs: dict[str, Any] = {END_REASON: "pruned", PRUNING_DECISION: trial.record}
    if row.attempt > 1:
        attrs[ATTEMPTS] = [[end.attempt, end.event_type, end.owner] for end in ends]
    for key, value in attrs.items():
        write_attr(connection, trial.trial_id, key, value)
    slots.store_event(connection, "pruned", "the study ended while it was paused", slot=row.slot)
    return True


def _add_record(connection: sa.Connection, trial_id: int, record: Record) -> None:
    write_attr(connection, trial_id, MARKS, [*(read_attr(connection, trial_id, MARKS) or ()), record])
