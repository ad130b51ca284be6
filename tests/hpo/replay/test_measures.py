import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hpo.replay import measures
from hpo.replay.measures import record
from hpo.replay.simulation import simulate
from hpo.replay.worlds import Shuffled
from tests.support.curves import crossing_curves, search


def searched(*path: tuple[int, float], groups: Any = ()) -> measures.Record:
    return {"seed": 0, "trials": 1, "rungs": 10, "path": [list(p) for p in path], "groups": list(groups)}


def test_ratio_is_the_median_over_pairs_of_the_rungs_to_the_final_best_of_the_reference() -> None:
    records = [searched((2, 0.5), (4, 0.1)), searched((5, 0.2)), searched((1, 0.9))]
    reference = [searched((3, 0.5), (9, 0.2), (12, 0.0)), searched((3, 0.1))]
    # pairs: to 0.2 (the value at rung 10, not the later one) in 4, 5, never; to 0.1 in 4, never, never
    estimate = measures.ratio(records, reference, budget=10)
    assert estimate.value == math.inf
    assert measures.reached(records, reference, budget=10) == pytest.approx(3 / 6)
    assert measures.ratio(records[:1], reference, budget=10).value == pytest.approx(0.4)
    assert measures.regret_at(reference[0], 2) == math.inf


def test_interval_covers_the_mean_in_about_95_of_100_cases() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(100):
        records = [searched((1, value)) for value in rng.normal(1.0, 0.2, size=30)]
        _, low, high = measures.regret(records, 10)
        inside += low <= 1.0 <= high
    assert 88 <= inside <= 100


def test_shares_are_over_all_searches_and_by_groups_of_twenty_trials() -> None:
    records = [searched(groups=[[20, 5, 2, 1], [10, 8, 1, 1]]), searched(groups=[[20, 15, 4, 0], [0, 0, 0, 0]])]
    assert measures.pruned_share(records).value == pytest.approx(28 / 50)
    assert measures.lost_share(records).value == pytest.approx(2 / 7)
    assert measures.lost_share(records, slice(1, 2)).value == 1.0
    assert math.isnan(measures.lost_share(records[1:], slice(1, 2)).value)


def test_record_counts_the_best_tenth_of_the_pool_that_was_pruned() -> None:
    world = Shuffled(crossing_curves(60))
    outcome = simulate(world, search({"name": "halving", "factor": 4}), seed=0)
    best = sorted(trial.run.truth for trial in outcome.trials)[:6]
    kept = record(world, outcome, seed=0)
    columns = np.sum(kept["groups"], axis=0)
    assert [len(kept["groups"]), columns[0], columns[2]] == [3, 60, 6]
    assert columns[1] == sum(trial.state == "pruned" for trial in outcome.trials) > 20
    assert columns[3] == sum(t.state == "pruned" and t.run.truth in best for t in outcome.trials) > 0
    assert kept["path"][-1][1] >= 0


def test_rank_correlation_is_that_of_scipy_for_each_rung() -> None:
    curves = crossing_curves(50)
    estimates = measures.rank_correlations(curves)
    expected = [stats.spearmanr(curves.values[:, rung], curves.values[:, -1]).statistic for rung in range(6)]
    assert [e.value for e in estimates] == pytest.approx(expected)
    assert all(e.low < e.value < e.high for e in estimates[:5])


def test_runs_with_unknown_results_do_not_count_for_the_rank_correlation() -> None:
    curves = crossing_curves(50)
    expected = measures.rank_correlations(curves)[2].value
    curves = crossing_curves(50)
    curves = type(curves)(**{**curves.__dict__, "values": np.vstack([curves.values, [[9, 1, np.nan, *[np.nan] * 3]]]),
                             "config": np.arange(51), "params": [*curves.params, curves.params[0]]})  # fmt: skip
    assert measures.rank_correlations(curves)[2].value == pytest.approx(expected)
