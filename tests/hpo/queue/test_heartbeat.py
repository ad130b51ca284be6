"""Leases when the clock of the database is set back."""

import threading
import time

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.optuna_internals.objects import get_study_id
from hpo.queue.budget import fill_slots
from hpo.queue.heartbeat import LeaseRenewer, free_expired_leases, free_leases_of, void_leases
from hpo.queue.slots import Claim, Slots
from hpo.storage.schema import SLOT
from hpo.storage.store import Store

HOUR = 3600.0


@pytest.fixture
def slots(store: Store) -> Slots:
    slots = Slots(store, study_id=1)
    fill_slots(slots, [("search", None)] * 3)
    return slots


def claim(slots: Slots, owner: str, lease_s: float) -> Claim:
    claim = slots.claim(owner, lease_s)
    assert claim
    return claim


def set_clock_back(slots: Slots) -> None:
    """Move all leases an hour ahead, which has the same effect as setting the clock back by an hour."""
    with slots.store.engine.begin() as connection:
        leased = sa.update(SLOT).where(SLOT.c.state == "leased")
        connection.execute(leased.values(lease_until=SLOT.c.lease_until + HOUR))


def test_lease_that_lies_further_ahead_than_a_lease_can_is_void(slots: Slots) -> None:
    claim(slots, "dead", 60.0)
    assert void_leases(slots.store) == []
    set_clock_back(slots)
    assert slots.counts() == {"free": 2, "leased": 0, "done": 0, "expired": 1}
    assert [lease.seconds for lease in slots.owners()] == [0.0]
    assert [lease.slot for lease in void_leases(slots.store)] == [0]
    assert [lease.owner for lease in free_expired_leases(slots.store)] == ["dead"]
    assert slots.counts()["free"] == 3


def test_void_lease_of_a_dead_worker_is_freed_and_a_live_worker_keeps_its_own(slots: Slots) -> None:
    alive, dead = claim(slots, "alive", 3.0), claim(slots, "dead", 3.0)
    with LeaseRenewer(slots, "alive", 3.0) as renewer, LeaseRenewer(slots, "launch", 3.0):
        renewer.hold(alive)
        time.sleep(0.3)
        set_clock_back(slots)
        deadline = time.monotonic() + 20
        while {lease.slot for lease in slots.owners()} != {alive.slot} and time.monotonic() < deadline:
            time.sleep(0.05)
        assert renewer.lost == set()
    assert [word for _, word, _ in slots.attempts(dead.slot)] == ["lost"]
    assert slots.attempts(alive.slot) == []


def test_lease_in_force_is_not_freed_by_a_process_whose_last_round_was_before_the_clock_was_set_back(
    slots: Slots,
) -> None:
    before = slots.now() + HOUR  # the clock was an hour fast
    claim(slots, "alive", 60.0)
    assert free_expired_leases(slots.store, before=before, void=[]) == []


def test_lease_of_another_length_is_not_void(slots: Slots) -> None:
    claim(slots, "patient", 7200.0)
    assert void_leases(slots.store) == []
    with LeaseRenewer(slots, "launch", 0.2):
        threading.Event().wait(0.6)
    assert slots.counts()["leased"] == 1


@pytest.mark.parametrize(("state", "rungs"), [(TrialState.PRUNED, 2), (TrialState.FAIL, 2), (TrialState.COMPLETE, 8)])
def test_rungs_that_a_trial_had_reserved_are_free_if_its_worker_died_after_its_end(
    store: Store, state: TrialState, rungs: int
) -> None:
    study = optuna.create_study(study_name="s", storage=store.optuna)
    slots = Slots(store, get_study_id(study))
    fill_slots(slots, [("search", None)] * 3)
    held = slots.claim("dead", 60.0, rungs=(8, 24))
    assert held
    trial = study.ask()
    for step in (1, 2):
        trial.report(1.0, step)
    slots.run(sa.update(SLOT).where(SLOT.c.slot == held.slot).values(trial_id=trial._trial_id).returning(SLOT.c.slot))
    study.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state=state)
    assert slots.rungs() == 8
    assert [lease.slot for lease in free_leases_of(store, "dead")] == [held.slot]
    assert slots.rungs() == rungs
    assert slots.run(sa.select(SLOT.c.state).where(SLOT.c.slot == held.slot)) == [("done",)]
