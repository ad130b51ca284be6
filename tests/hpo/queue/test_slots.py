import threading
import time
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.queue.budget import add_slots, fill_slots
from hpo.queue.heartbeat import LeaseRenewer, free_expired_leases
from hpo.queue.slots import Claim, Slots
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from tests.support.control import events
from tests.support.race import N_PROCESSES, Race

SEARCH: tuple[str, None] = ("search", None)
EXPIRED = -1.0  # length of a lease that has expired from the start


@pytest.fixture
def slots(store: Store) -> Slots:
    slots = Slots(store, study_id=1)
    fill_slots(slots, [("baseline", {"optimizer.lr": 0.001}), SEARCH, SEARCH, SEARCH])
    return slots


def claim(slots: Slots, owner: str = "me", lease_s: float = 60.0) -> Claim:
    claim = slots.claim(owner, lease_s)
    assert claim
    return claim


def holds(slots: Slots, held: Claim, owner: str = "me") -> bool:
    """Return whether the fence of a claim lets its owner write."""
    with slots.store.engine.begin() as connection:
        return connection.execute(slots.held(held, owner)).first() is not None


def begin(slots: Slots, held: Claim, trial_id: int) -> None:
    """Note an Optuna trial in a slot, as the transaction that makes the trial does."""
    with slots.store.engine.begin() as connection:
        mine = (SLOT.c.study_id == slots.study_id) & (SLOT.c.slot == held.slot)
        connection.execute(sa.update(SLOT).where(mine).values(trial_id=trial_id))


def test_slots_are_claimed_in_order_until_none_is_left(slots: Slots) -> None:
    assert claim(slots) == Claim(0, 1, "baseline", {"optimizer.lr": 0.001}, None)
    assert [claim(slots) for _ in range(3)] == [Claim(i, 1, "search", None, None) for i in (1, 2, 3)]
    assert slots.claim("me", 60) is None


def test_filling_again_changes_nothing_and_a_larger_budget_adds(slots: Slots) -> None:
    held = claim(slots)
    fill_slots(slots, [SEARCH] * 6)
    assert slots.counts() == {"free": 5, "leased": 1, "done": 0, "expired": 0}
    assert holds(slots, held)
    assert slots.release(held, "me")
    assert claim(slots).kind == "baseline"


def test_a_smaller_budget_deletes_only_slots_that_nobody_claimed(slots: Slots) -> None:
    claims = [claim(slots) for _ in range(3)]
    assert slots.done(claims[0], "me")
    assert slots.release(claims[2], "me")
    fill_slots(slots, [SEARCH])
    assert slots.counts() == {"free": 1, "leased": 1, "done": 1, "expired": 0}


def test_an_interrupted_trial_comes_before_new_ones(slots: Slots) -> None:
    _, second = claim(slots), claim(slots)
    begin(slots, second, 17)
    assert slots.release(second, "me")
    fill_slots(slots, [SEARCH] * 5)
    assert claim(slots) == Claim(1, 2, "search", None, 17, interruptions=1)
    assert claim(slots).slot == 2


def test_an_expired_lease_goes_to_another_owner_and_the_first_is_fenced(slots: Slots) -> None:
    old = claim(slots, "old", EXPIRED)
    assert slots.counts() == {"free": 3, "leased": 0, "done": 0, "expired": 1}
    assert [lease[:3] for lease in free_expired_leases(slots.store)] == [("old", 0, 1)]
    new = claim(slots, "new")
    assert (new.slot, new.attempt, new.failures) == (0, 2, 1)
    assert not holds(slots, old, "old")
    assert slots.renew_at_rung(old, "old", 60, 1) is None
    assert not slots.done(old, "old")
    assert not slots.release(old, "old")
    assert slots.renew("old", [(0, 1)], 60) == set()
    assert holds(slots, new, "new")
    assert slots.renew_at_rung(new, "new", 60, 1) == ""
    assert [row[:2] for row in slots.attempts(0)] == [[1, "lost"]]


def test_the_same_owner_with_a_later_attempt_fences_its_earlier_one(slots: Slots) -> None:
    old = claim(slots, "me", EXPIRED)
    free_expired_leases(slots.store)
    new = claim(slots, "me")
    assert not slots.done(old, "me")
    assert slots.done(new, "me")


def test_a_lease_in_force_is_not_given_away(slots: Slots) -> None:
    for _ in range(4):
        claim(slots)
    assert slots.claim("other", 60) is None
    assert slots.n_unfinished() == 4


def test_ending_twice_is_ending_once(slots: Slots) -> None:
    held = claim(slots)
    assert slots.done(held, "me")
    assert slots.done(held, "me")  # the first answer may have been lost
    assert not slots.release(held, "me")
    assert slots.n_unfinished() == 3


def test_renewal_is_for_the_named_claims_of_the_owner(slots: Slots) -> None:
    mine, orphan, other = claim(slots, "me", 1.0), claim(slots, "me", 1.0), claim(slots, "you", 1.0)
    named = {(mine.slot, mine.attempt), (other.slot, other.attempt)}
    assert slots.renew("me", named, 900) == {(mine.slot, mine.attempt)}
    left = {lease.slot: lease.seconds for lease in slots.owners()}
    assert left[mine.slot] > 800
    assert left[orphan.slot] <= 1.0
    assert left[other.slot] <= 1.0


def test_owners_lists_every_claimed_slot(slots: Slots) -> None:
    first, second = claim(slots, "b"), claim(slots, "a", EXPIRED)
    begin(slots, first, 5)
    rows = slots.owners()
    assert [row[:5] for row in rows] == [("a", second.slot, 1, "search", None), ("b", 0, 1, "baseline", 5)]
    assert rows[0].seconds < 0 < rows[1].seconds


def test_studies_do_not_share_slots(store: Store, slots: Slots) -> None:
    other = Slots(store, study_id=2)
    assert other.claim("me", 60) is None
    fill_slots(other, [SEARCH])
    assert claim(other).slot == 0
    assert slots.counts()["free"] == 4


def test_a_time_zone_does_not_move_a_lease(slots: Slots, storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(slots)
    for name in ("TZ", "PGTZ"):
        monkeypatch.setenv(name, "Asia/Tokyo")
    with open_store(storage_url) as store:
        assert 0 < Slots(store, 1).owners()[0].seconds <= 60


def test_a_renewed_lease_outlives_its_length(slots: Slots) -> None:
    lease_s = 4.0  # a machine that does other work can stop a thread for more than a second
    with LeaseRenewer(slots, "me", lease_s) as renewer:
        held = claim(slots, "me", lease_s)
        renewer.hold(held)
        time.sleep(lease_s + 0.5)
        assert holds(slots, held)
        assert slots.counts()["expired"] == 0
        assert renewer.lost == set()


def test_the_renewer_survives_an_unreachable_storage(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    back = threading.Event()
    renew, failures = slots.renew, []

    def unreachable(*args: Any) -> set[tuple[int, int]]:
        if len(failures) < 3:
            failures.append(1)
            raise StorageError("unreachable")
        back.set()
        return renew(*args)

    monkeypatch.setattr(slots, "renew", unreachable)
    held = claim(slots, "me", 0.2)
    with LeaseRenewer(slots, "me", lease_s=0.2) as renewer:
        renewer.hold(held)
        assert back.wait(30)
        assert renewer.lost == set()


def test_the_renewer_reports_the_claim_that_another_owner_took(slots: Slots) -> None:
    kept, lost = claim(slots, "me"), claim(slots, "me", EXPIRED)
    free_expired_leases(slots.store)
    assert claim(slots, "other").slot == lost.slot
    with LeaseRenewer(slots, "me", lease_s=0.2) as renewer:
        renewer.hold(lost)
        renewer.hold(kept)
        deadline = time.monotonic() + 30
        while not renewer.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        assert renewer.lost == {(lost.slot, lost.attempt)}
        renewer.drop(lost)
        assert renewer.lost == set()


def test_renewer_frees_expired_leases_though_no_worker_claims(slots: Slots) -> None:
    claim(slots, "dead", EXPIRED)
    with LeaseRenewer(slots, "launch", lease_s=0.4):
        deadline = time.monotonic() + 30
        while slots.counts()["expired"] and time.monotonic() < deadline:
            time.sleep(0.05)
    assert slots.counts() == {"free": 4, "leased": 0, "done": 0, "expired": 0}


def test_what_was_added_by_hand_comes_after_the_baselines_and_before_the_search(slots: Slots) -> None:
    add_slots(slots, [("enqueued", {"x": 1}, None), ("retry", {"x": 2}, 7)])
    taken = [claim(slots) for _ in range(4)]
    assert [c.kind for c in taken] == ["baseline", "enqueued", "retry", "search"]
    assert (taken[2].fixed, taken[2].origin) == ({"x": 2}, 7)
    fill_slots(slots, [SEARCH])
    assert slots.n_unfinished() == 4, "a smaller budget leaves what was added by hand"


def test_a_budget_of_rungs_begins_a_trial_only_where_all_of_it_fits(slots: Slots) -> None:
    pays = (4, 10)  # rungs of a trial, rungs of the study
    first, second = (slots.claim("me", 60, rungs=pays) for _ in range(2))
    assert first is not None
    assert second is not None
    assert slots.claim("me", 60, rungs=pays) is None
    slots.done(first, "me", rung=2, event_type="pruned")
    assert slots.claim("me", 60, rungs=pays) is not None, "what a pruned trial left over pays for another"
    assert slots.rungs() == 10


def test_five_owners_at_once_do_not_set_aside_more_rungs_than_there_are(race: Race, store: Store) -> None:
    fill_slots(Slots(store, 1), [SEARCH] * 50)
    taken = race(claim_within, store.url)
    assert sum(len(each) for each in taken) == 5
    assert Slots(store, 1).rungs() == 20


def claim_within(i: int, url: str) -> list[int]:
    with open_store(url, patience=60) as store:
        slots = Slots(store, 1)
        found = [slots.claim(f"process {i}", 600, rungs=(4, 21)) for _ in range(4)]
        return [held.slot for held in found if held]


def claim_all(i: int, url: str) -> list[int]:
    with open_store(url, patience=60) as store:
        slots, mine = Slots(store, 1), []
        while slots.counts()["free"]:
            if held := slots.claim(f"process {i}", 600):
                mine.append(held.slot)
        return mine


def test_eight_processes_claim_every_slot_exactly_once(race: Race, store: Store) -> None:
    fill_slots(Slots(store, 1), [SEARCH] * 200)
    claimed = race(claim_all, store.url)
    assert sorted(slot for each in claimed for slot in each) == list(range(200))


def end_all(i: int, url: str, trial_ids: list[int]) -> list[int]:
    ended = []
    state, values = [(optuna.trial.TrialState.COMPLETE, [1.0]), (optuna.trial.TrialState.FAIL, None)][i % 2]
    with open_store(url, patience=60) as store:
        for trial_id in trial_ids:
            try:
                store.rdb.set_trial_state_values(trial_id, state, values)
                ended.append(trial_id)
            except optuna.exceptions.UpdateFinishedTrialError:
                pass
    return ended


def test_of_eight_processes_exactly_one_ends_a_trial(race: Race, store: Store) -> None:
    study = optuna.create_study(storage=store.optuna)
    trial_ids = [study.ask()._trial_id for _ in range(40)]
    ended = race(end_all, store.url, trial_ids)
    assert len(ended) == N_PROCESSES
    assert sorted(trial_id for each in ended for trial_id in each) == trial_ids


def test_event_with_a_text_that_no_storage_takes_is_stored_with_escapes(slots: Slots) -> None:
    slots.log("note", "NUL \0, the byte \udcff of a file name, é")
    assert events(slots.store, "note") == [("note", "NUL \\x00, the byte \\udcff of a file name, é")]
