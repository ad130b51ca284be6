import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hpo.replay.simulation import Outcome, simulate
from hpo.replay.worlds import Nearest, Recorded, Shuffled, World
from hpo.search.asha import AshaPruner
from tests.support.curves import crossing_curves, search


def replay_slowly(curves: Sequence[Sequence[float]], workers: int, peers: str) -> list[tuple[int, bool]]:
    """Return (rungs, pruned) of each trial of random search with the median rule: written without hpo and Optuna.

    All workers train one rung, one after the other, and so on. A trial is pruned from rung 3 on, if five trials have
    finished. finished: if its best value so far is worse than the median of at least five finished trials there.
    all: if at least half of at least five other trials and itself are better there; a pruned trial counts as worse.
    """
    waiting, lanes = list(range(len(curves))), [-1] * workers
    trained, pruned, finished = [0] * len(curves), [False] * len(curves), list[int]()
    lanes = [waiting.pop(0) for _ in lanes]
    while any(lane >= 0 for lane in lanes):
        for lane, trial in enumerate(lanes):
            if trial < 0:
                continue
            trained[trial] += 1
            rung = trained[trial]
            at_rung = [curves[other][rung - 1] for other in finished]
            over = rung == len(curves[trial])
            if over:
                finished.append(trial)
            elif peers == "finished" and rung >= 3 and len(at_rung) >= 5:
                pruned[trial] = min(curves[trial][:rung]) > statistics.median(at_rung)
            elif peers == "all" and rung >= 3 and len(finished) >= 5:
                others = [other for other in range(len(curves)) if other != trial]
                there = [curves[other][rung - 1] for other in others if trained[other] >= rung]
                n_peers = len(there) + sum(pruned[other] and trained[other] < rung for other in others)
                n_better = sum(value < min(curves[trial][:rung]) for value in there)
                pruned[trial] = n_peers >= 5 and 2 * n_better >= n_peers + 1
            if over or pruned[trial]:
                lanes[lane] = waiting.pop(0) if waiting else -1
    return list(zip(trained, pruned, strict=True))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("peers", ["finished", "all"])
def test_random_search_with_the_median_rule_equals_a_slow_replay(workers: int, peers: str) -> None:
    world = Shuffled(crossing_curves())
    rule = {"name": "median", "startup_trials": 5, "warmup_rungs": 2, "min_trials": 5, "peers": peers}
    outcome = simulate(world, search(rule, workers=workers), seed=3)
    given = world.given(3)
    assert given is not None
    expected = replay_slowly([list(run.curve) for run in given], workers, peers)
    assert [(trial.rungs, trial.state == "pruned") for trial in outcome.trials] == expected
    assert 10 < sum(pruned for _, pruned in expected) < 55
    assert outcome.spent == sum(rungs for rungs, _ in expected)


def test_path_holds_the_truth_of_the_best_trial_when_it_ended() -> None:
    world = Recorded(crossing_curves(8))
    outcome = simulate(world, search({"name": "none"}, workers=1), seed=0)
    finals = world.curves.values[:, -1]
    expected = [(6 * (i + 1), float(finals[i])) for i in range(8) if finals[i] == finals[: i + 1].min()]
    assert outcome.path == pytest.approx(expected)


def test_no_trial_starts_unless_the_budget_is_enough_for_a_full_run() -> None:
    outcome = simulate(Shuffled(crossing_curves()), search({"name": "median", "warmup_rungs": 0}, rungs=100), seed=0)
    assert 94 < outcome.spent <= 100
    full = simulate(Shuffled(crossing_curves()), search({"name": "none"}, rungs=100), seed=0)
    assert (len(full.trials), full.spent) == (16, 96)


def test_search_ends_where_a_recorded_curve_ends() -> None:
    curves = crossing_curves(6)
    curves.values[2, 4:] = np.nan
    curves.values[3, 1:] = np.inf
    states = [(t.state, t.rungs) for t in simulate(Recorded(curves), search({"name": "none"}), seed=0).trials]
    assert states[2:4] == [("unknown", 4), ("diverged", 2)]
    assert {state for i, (state, _) in enumerate(states) if i not in (2, 3)} == {"complete"}


def test_fixed_runs_come_first_and_are_never_pruned() -> None:
    curves = crossing_curves(40, fixed=np.arange(40) >= 35)
    outcome = simulate(Shuffled(curves), search({"name": "halving", "factor": 4}), seed=1)
    assert [trial.run.fixed for trial in outcome.trials] == [True] * 5 + [False] * 35
    assert {trial.state for trial in outcome.trials[:5]} == {"complete"}
    assert "pruned" in {trial.state for trial in outcome.trials[5:]}


def asha_outcome(**limits: Any) -> Outcome:
    return simulate(Shuffled(crossing_curves()), search({"name": "asha", "factor": 2}, **limits), seed=0)


def test_asha_promotes_paused_trials_and_prunes_the_rest_at_the_end() -> None:
    outcome = asha_outcome(trials=40)
    marks = AshaPruner(1, 2, 6).marks
    reached = {mark: [t for t in outcome.trials if t.rungs >= mark] for mark in marks}
    assert {t.state for t in outcome.trials} == {"complete", "pruned"}
    assert all(t.rungs in marks for t in outcome.trials if t.state == "pruned")
    for mark, after in zip(marks, [*marks[1:], 6], strict=True):
        beyond = [t for t in reached[mark] if t.rungs >= after]
        # Those that went on are at least as many as the rule keeps, because an early trial may go on alone.
        assert len(beyond) >= len(reached[mark]) // 2 - 1
    assert max(t.rungs for t in outcome.trials) == 6


def test_a_paused_trial_spends_its_budget_only_up_to_its_mark() -> None:
    outcome = asha_outcome(rungs=60)
    assert outcome.spent == sum(trial.rungs for trial in outcome.trials) <= 60
    assert len(outcome.trials) > 10  # ten full runs


def test_the_sampler_learns_from_the_trials_that_the_pruner_says() -> None:
    asked = []
    for pruner in ({"name": "asha"}, {"name": "asha", "learn_from": "deepest"}, {"name": "asha", "learn_from": "all"}):
        rules = search(pruner, {"name": "tpe", "startup_trials": 3}, trials=30)
        asked.append([trial.run.params for trial in simulate(Nearest(crossing_curves()), rules, seed=0).trials])
    assert asked[0] == asked[1]
    assert asked[0][:6] == asked[2][:6]
    assert asked[0] != asked[2]


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_a_search_is_the_same_for_the_same_seed_only(sampler: str) -> None:
    world: World = Nearest(crossing_curves())
    rules = search({"name": "median"}, {"name": sampler}, trials=14)
    first, again, other = (simulate(world, rules, seed) for seed in (1, 1, 2))
    values = [[trial.run.params["lr"] for trial in outcome.trials] for outcome in (first, again, other)]
    assert values[0] == values[1] != values[2]
    assert first.path == again.path


def test_tpe_finds_better_trials_than_random_search() -> None:
    world = Nearest(crossing_curves(200))
    finals = {}
    for name in ("random", "tpe"):
        rules = search({"name": "none"}, {"name": name}, trials=40)
        outcomes = [simulate(world, rules, seed) for seed in range(3)]
        finals[name] = np.mean([t.run.truth for outcome in outcomes for t in outcome.trials[20:]])
    assert finals["tpe"] < 0.7 * finals["random"]
