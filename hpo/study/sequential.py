"""Sequential comparison of arms: after each pair of runs, decide which arms need another pair.

An arm is better as soon as its one-sided t statistic crosses a bound. The bounds are computed when the comparison is
planned (`hpo.evidence.sequential`), hold for all looks together, and are stored with the study. The rules here need
the standard library alone, because workers and `hpo status` apply them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from hpo.search.direction import Direction

# Arm -> the value of each of its seeds, in order. NaN: the run ended without a value. None: it has not ended.
Results = Mapping[str, Sequence[float | None]]
Bounds = Sequence[Sequence[float]]
Outcome = Literal["better", "no gain", "lost"]

KEY = "sequential"  # of the plan, in `StudyFile.about`
MIN_PAIRS = 3  # the standard deviation of two differences is too uncertain
# An arm stops without a gain if, after k >= 4 pairs, its t is below 0.25 (k - 4). In simulations of 12 pairs, this
# ends an arm without effect after 5.6 pairs instead of 11.8, and costs at most 0.1 points of power.
FUTILE_FROM, FUTILE_SLOPE = 4, 0.25


@dataclass
class Progress:
    """What the pairs so far show about one arm.

    seeds: positions of the pairs that count. gains: their differences, positive where the arm is better.
    t: of each look. bound: what t must reach at the last look. outcome: None while more pairs are needed.
    """

    seeds: list[int] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    t: list[float] = field(default_factory=list)
    bound: float | None = None
    outcome: Outcome | None = None
    crossed: int = 0  # the largest m for which t has crossed the bound of m arms
    more_lost: int = 0  # lost runs of the arm minus lost runs of the reference


def plan_of(about: Mapping[str, Any]) -> Bounds | None:
    """Return the bounds of a sequential comparison, None for a comparison with a fixed number of pairs.

    bounds[m - 1][k - 3] is what t must reach after k pairs while m arms are not better yet.
    """
    plan = about.get(KEY)
    return None if plan is None else plan["bounds"]


def follow_pairs(bounds: Bounds, results: Results, direction: Direction) -> dict[str, Progress]:
    """Decide about each arm after each pair, in the order of the seeds; the first arm is the reference.

    The decisions depend on the results alone: neither the order in which runs end nor the number of workers matters.
    They stop at the first seed of which a needed run has not ended. Results after the decision on an arm are ignored.
    """
    (reference, own), *others = results.items()
    arms = {name: Progress() for name, _ in others}
    for i in range(len(own)):
        undecided = {name: arm for name, arm in arms.items() if arm.outcome is None}
        if not undecided or any(results[name][i] is None for name in (reference, *undecided)):
            break
        for name, arm in undecided.items():
            _add_pair(arm, i, results[name][i], own[i], direction)
        last = i == len(own) - 1
        _decide(bounds, arms, undecided, last)
    return arms


def _add_pair(arm: Progress, seed: int, value: float | None, reference: float | None, direction: Direction) -> None:
    assert value is not None
    assert reference is not None
    arm.more_lost += int(math.isnan(value)) - int(math.isnan(reference))
    gain = direction.loss(reference) - direction.loss(value)
    if math.isnan(gain):
        return
    arm.seeds.append(seed)
    arm.gains.append(gain)
    if len(arm.gains) >= MIN_PAIRS:
        arm.t.append(t_statistic(arm.gains))


def t_statistic(gains: Sequence[float]) -> float:
    """Return Student's t of paired differences; it is infinite where all differences are equal and not 0."""
    mean, sd = fmean(gains), stdev(gains)
    if sd == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / sd * math.sqrt(len(gains))


def _decide(bounds: Bounds, arms: Mapping[str, Progress], undecided: Mapping[str, Progress], last: bool) -> None:
    """Set the outcomes that follow from the pairs so far.

    The correction for several arms is Holm's (1979): with n arms, the first must cross the bound of level alpha / n,
    the next that of alpha / (n - 1), and so on. An arm that has crossed a bound at an earlier look counts as having
    crossed it. By the closure principle the error of the whole procedure stays below alpha, as for one look, because
    each bound holds for all looks together.
    """
    for arm in undecided.values():
        looked = len(arm.gains) - MIN_PAIRS
        if looked >= 0:
            levels = [m for m in range(1, len(bounds) + 1) if arm.t[-1] >= bounds[m - 1][looked]]
            arm.crossed = max([arm.crossed, *levels])
        if arm.more_lost > 0:
            arm.outcome = "lost"
    while True:
        left = sum(arm.outcome != "better" for arm in arms.values())
        crossed = [arm for arm in undecided.values() if arm.outcome is None and arm.crossed >= left]
        if not crossed:
            break
        for arm in crossed:
            arm.outcome = "better"
    for arm in undecided.values():
        looked = len(arm.gains) - MIN_PAIRS
        arm.bound = bounds[max(1, left) - 1][looked] if looked >= 0 else None
        if arm.outcome is None and (last or _is_futile(arm)):
            arm.outcome = "no gain"


def _is_futile(arm: Progress) -> bool:
    k = len(arm.gains)
    return k >= FUTILE_FROM and arm.t[-1] < FUTILE_SLOPE * (k - FUTILE_FROM)
