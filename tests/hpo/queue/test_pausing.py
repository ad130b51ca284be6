"""Paused slots: who can take one, what its trial is meanwhile, and that each is promoted or ended once."""

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.optuna_internals.objects import get_study_id
from hpo.queue.budget import fill_slots
from hpo.queue.heartbeat import free_expired_leases
from hpo.queue.identity import restore_slots
from hpo.queue.pausing import PausedTrial, Promotion, pause, promote, prune_paused, reserve
from hpo.queue.slots import Claim, Slots
from hpo.search.marks import Standing
from hpo.storage.attributes import ATTEMPTS, END_REASON, MARKS, PAUSED, PRUNING_DECISION
from hpo.storage.fencing import fenced
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from tests.support.race import Race

N = 12
PLACE = Standing(rung=1, rank=2, n=3, n_kept=1)


def slots_of(store: Store) -> Slots:
    study = optuna.load_study(study_name="s", storage=store.optuna)
    return Slots(store, get_study_id(study))


def start(slots: Slots, owner: str, lease_s: float = 60.0, rungs: tuple[int, int] | None = None) -> Claim:
    """Claim a slot and create its trial, with a value at the first rung."""
    claim = slots.claim(owner, lease_s, rungs=rungs, first_stop=1)
    assert claim is not None
    with fenced(slots.held(claim, owner), slots.link(claim, owner)):
        trial_id = slots.store.optuna.create_new_trial(slots.study_id)
    slots.store.optuna.set_trial_user_attr(trial_id, "slot", claim.slot)
    slots.store.optuna.set_trial_user_attr(trial_id, "kind", "search")
    slots.store.optuna.set_trial_intermediate_value(trial_id, 1, 3.0 + claim.slot)
    return claim._replace(trial_id=trial_id)


def paused(slots: Slots, owner: str = "me", rungs: tuple[int, int] | None = None) -> Claim:
    claim = start(slots, owner, rungs=rungs)
    assert pause(slots, claim, owner, PLACE, {"decision": "paused", **PLACE._asdict()}, {})
    return claim


def candidate(claim: Claim, next_stop: int = 3) -> Promotion:
    assert claim.trial_id is not None
    return Promotion(claim.trial_id, PLACE, next_stop)


def ending(claim: Claim) -> PausedTrial:
    assert claim.trial_id is not None
    return PausedTrial(claim.trial_id, 3.0, {"rule": "asha"})


@pytest.fixture
def slots(store: Store) -> Slots:
    optuna.create_study(study_name="s", storage=store.optuna)
    slots = slots_of(store)
    fill_slots(slots, [("search", None)] * N)
    return slots


def state_of(slots: Slots, claim: Claim) -> tuple[str, TrialState, bool]:
    """Return the state of the slot, of its trial, and whether the trial has the attribute of paused trials."""
    assert claim.trial_id is not None
    (row,) = slots.run(sa.select(SLOT.c.state).where(SLOT.c.slot == claim.slot))
    trial = slots.store.rdb.get_trial(claim.trial_id)
    return row[0], trial.state, PAUSED in trial.user_attrs


def test_paused_slot_has_no_lease_and_no_claim_takes_it(slots: Slots) -> None:
    held = paused(slots)
    assert state_of(slots, held) == ("paused", TrialState.WAITING, True)
    assert slots.store.rdb.get_trial(held.trial_id or 0).user_attrs[PAUSED] == "rung 1, rank 2 of 3"
    assert slots.renew("me", [(held.slot, held.attempt)], 60) == set()
    assert slots.renew_at_rung(held, "me", 60, 2) is None
    assert slots.owners() == []
    assert free_expired_leases(slots.store) == []
    assert slots.claim("me", 60, only_started=True) is None
    assert {slots.claim("me", 60).slot for _ in range(N - 1)} == set(range(1, N))  # type: ignore[union-attr]
    assert slots.claim("me", 60) is None
    assert (slots.paused(), slots.n_unfinished()) == ({held.slot}, N - 1)


def test_pause_of_a_lost_claim_has_no_effect_and_repeating_a_pause_neither(slots: Slots) -> None:
    lost = start(slots, "me", lease_s=-1.0)
    assert len(free_expired_leases(slots.store)) == 1
    record = {"decision": "paused", "rung": 1}
    assert not pause(slots, lost, "me", PLACE, record, {})
    assert state_of(slots, lost) == ("free", TrialState.WAITING, False)
    held = slots.claim("other", 60)
    assert held is not None
    assert pause(slots, held, "other", PLACE, record, {})
    assert pause(slots, held, "other", PLACE, record, {})  # the answer of the first call was lost
    trial = slots.store.rdb.get_trial(held.trial_id or 0)
    assert trial.user_attrs[MARKS] == [record]
    assert [end[:2] for end in slots.attempts(held.slot)] == [[1, "lost"], [2, "paused_at_rung"]]


def test_promotion_takes_the_first_that_is_still_paused(slots: Slots) -> None:
    first, second = paused(slots), paused(slots)
    candidates = [candidate(first), candidate(second)]
    claims = [promote(slots, f"worker {i}", 60, candidates, None) for i in range(3)]
    assert [claim and (claim.slot, claim.attempt, claim.trial_id) for claim in claims] == [
        (first.slot, 2, first.trial_id),
        (second.slot, 2, second.trial_id),
        None,
    ]
    assert state_of(slots, first) == ("leased", TrialState.RUNNING, False)
    decisions = slots.store.rdb.get_trial(first.trial_id or 0).user_attrs[MARKS]
    assert [record["decision"] for record in decisions] == ["paused", "promoted"]


def promote_all(i: int, url: str, candidates: list[Promotion]) -> list[int]:
    with open_store(url, patience=60) as store:
        claims = iter(lambda: promote(slots_of(store), f"process {i}", 600, candidates, None), None)
        return [claim.slot for claim in claims if claim]


def test_of_eight_processes_exactly_one_promotes_each_paused_trial(race: Race, slots: Slots) -> None:
    claims = [paused(slots) for _ in range(N)]
    promoted = race(promote_all, slots.store.url, [candidate(claim) for claim in claims])
    assert sorted(slot for each in promoted for slot in each) == list(range(N))


def prune_all(i: int, url: str, trials: list[PausedTrial]) -> list[int]:
    with open_store(url, patience=60) as store:
        return prune_paused(slots_of(store), trials) or []


def test_of_eight_processes_exactly_one_ends_the_paused_trials(race: Race, slots: Slots) -> None:
    claims = [paused(slots) for _ in range(N)]
    ended = race(prune_all, slots.store.url, [ending(claim) for claim in claims])
    assert sorted(trial_id for each in ended for trial_id in each) == sorted(claim.trial_id or 0 for claim in claims)
    trial = slots.store.optuna.get_trial(claims[0].trial_id or 0)
    assert (trial.state, trial.values, trial.user_attrs[END_REASON]) == (TrialState.PRUNED, [3.0], "pruned")
    assert trial.user_attrs[PRUNING_DECISION] == {"rule": "asha"}
    assert not {PAUSED, ATTEMPTS} & trial.user_attrs.keys()
    assert trial.datetime_complete is not None
    assert slots.counts() == {"free": 0, "leased": 0, "done": N, "expired": 0}


def test_paused_trials_do_not_end_while_another_trial_runs_or_is_interrupted(slots: Slots) -> None:
    held, running = paused(slots), start(slots, "me")
    assert prune_paused(slots, [ending(held)]) is None
    slots.release(running, "me")
    assert prune_paused(slots, [ending(held)]) is None
    assert state_of(slots, held) == ("paused", TrialState.WAITING, True)
    again = slots.claim("me", 60)
    assert again is not None
    slots.done(again, "me")
    assert prune_paused(slots, [ending(held)]) == [held.trial_id]
    assert prune_paused(slots, [ending(held)]) == []


def test_unspent_tokens_of_a_paused_trial_are_free_and_a_promotion_reserves_to_the_next_mark(slots: Slots) -> None:
    budget = (9, 12)  # rungs of a trial, rungs of all trials
    first, running = paused(slots, rungs=budget), start(slots, "me", rungs=budget)
    assert slots.rungs() == 2
    assert reserve(slots, running, "me", 3, 12)
    assert slots.rungs() == 4
    assert not reserve(slots, running, "me", 12, 12)
    assert slots.claim("me", 60, rungs=budget, first_stop=1) is None  # a full run does not fit
    assert promote(slots, "me", 60, [candidate(first, next_stop=10)], 12) is None
    claim = promote(slots, "me", 60, [candidate(first, next_stop=9)], 12)
    assert claim is not None
    assert slots.rungs() == 12
    assert not reserve(slots, first, "me", 3, 12)  # its attempt has ended
    assert pause(slots, claim, "me", Standing(3, 1, 1, 0), {"decision": "paused", "rung": 3}, {})
    assert slots.rungs() == 6


def test_kill_takes_a_paused_trial_and_an_expired_lease_on_a_promoted_one_makes_it_interrupted(slots: Slots) -> None:
    killed, lost = paused(slots), paused(slots)
    assert slots.request_action(killed.slot, "kill")
    claim = slots.take(killed.slot, "kill", 60)
    assert claim is not None
    assert claim.requested_action == "kill"
    assert state_of(slots, killed) == ("leased", TrialState.WAITING, False)
    assert promote(slots, "me", -1.0, [candidate(killed), candidate(lost)], None) is not None
    free_expired_leases(slots.store)
    assert state_of(slots, lost) == ("free", TrialState.WAITING, False)
    interrupted = slots.claim("me", 60, only_started=True)
    assert interrupted is not None
    assert interrupted.slot == lost.slot


def test_lost_slot_of_a_paused_trial_is_restored_as_paused(slots: Slots) -> None:
    held, running = paused(slots), start(slots, "me")
    slots.transact(lambda connection: connection.execute(sa.delete(SLOT)))
    restore_slots(slots)
    assert state_of(slots, held) == ("paused", TrialState.WAITING, True)
    assert state_of(slots, running) == ("free", TrialState.WAITING, False)
