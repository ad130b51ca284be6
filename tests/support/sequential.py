"""Sequential comparisons of simulated runs, by the rules of the product."""

import numpy as np

from hpo.evidence.sequential import DEFAULT_PAIRS, sequential_bounds
from hpo.search.direction import Direction
from hpo.study.sequential import follow_pairs


def simulated_verdicts(arms: int, gain: float, studies: int, seed: int) -> tuple[float, float]:
    """Return the share of studies in which an arm is better, and the mean number of pairs.

    gain: of every arm, in standard deviations of a run.
    """
    bounds, rng = sequential_bounds(DEFAULT_PAIRS, arms), np.random.default_rng(seed)
    better, pairs = 0, 0
    for _ in range(studies):
        runs = rng.standard_normal((arms + 1, DEFAULT_PAIRS))
        runs[1:] -= gain
        results = {str(i): row.tolist() for i, row in enumerate(runs)}
        progress = follow_pairs(bounds, results, Direction.MINIMIZE)
        better += any(arm.outcome == "better" for arm in progress.values())
        pairs += max(len(arm.gains) for arm in progress.values())
    return better / studies, pairs / studies
