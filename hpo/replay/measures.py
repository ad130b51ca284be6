"""What a simulated search shows, and intervals over seeds.

A `Record` holds the measures of one search as JSON values, so that they can be kept in files and combined later.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from hpo.replay.curves import TOP, Array, Curves
from hpo.replay.simulation import Outcome, SimulatedTrial
from hpo.replay.worlds import World

GROUP = 20  # trials of a group, to see whether a rule becomes stricter during a study
SHARES = (0.25, 0.5, 1.0)  # of the budget, at which the regret is measured
N_RESAMPLES = 2000
BATCH = 100  # resamples of pairs that are in memory at once
LEVEL = 0.95

Record = dict[str, Any]


class Estimate(NamedTuple):
    """A statistic over seeds, with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def record(world: World, outcome: Outcome, seed: int) -> Record:
    """Return the measures of one search.

    path: [rungs trained by all trials, regret of the best trial so far] at each change of the best trial. groups: for
    each 20 trials the number of trials, of those that were ended, of those in the best tenth, and of these that were
    ended. A trial whose result nobody knows counts neither as ended nor as one of the best tenth.
    """
    trials = outcome.trials
    limit = world.top if world.top is not None else _limit(trials)
    groups = []
    for first in range(0, len(trials), GROUP):
        members = [trial for trial in trials[first : first + GROUP] if trial.state != "unknown"]
        best = [trial for trial in members if trial.run.truth <= limit]
        groups.append([len(members), _ended(members), len(best), _ended(best)])
    return {
        "seed": seed,
        "trials": len(trials),
        "rungs": outcome.spent,
        "path": [[rungs, round(truth - world.optimum, 6)] for rungs, truth in outcome.path],
        "groups": groups,
        "unknown": sum(trial.state == "unknown" for trial in trials),
        "ask_ms": round(1000 * float(np.median(outcome.asks)), 2) if outcome.asks else None,
    }


def _limit(trials: Sequence[SimulatedTrial]) -> float:
    """Return the truth of the last trial that belongs to the best tenth of a search."""
    known = sorted(trial.run.truth for trial in trials if not math.isnan(trial.run.truth))
    return known[max(1, round(TOP * len(known))) - 1] if known else -math.inf


def _ended(trials: Sequence[SimulatedTrial]) -> int:
    return sum(trial.state in ("pruned", "diverged") for trial in trials)


def regret_at(one: Record, rungs: float) -> float:
    """Return the regret of the best trial when all trials have trained a number of rungs; inf before the first."""
    reached = [regret for spent, regret in one["path"] if spent <= rungs]
    return float(reached[-1]) if reached else math.inf


def rungs_to(one: Record, regret: float) -> float:
    """Return the number of rungs after which the best trial is as good as a regret, inf if it never is."""
    return next((float(spent) for spent, reached in one["path"] if reached <= regret), math.inf)


def ratio(records: Sequence[Record], reference: Sequence[Record], budget: int) -> Estimate:
    """Return the median, over pairs of a search and a reference, of the rungs to the reference's final best.

    The unit is the whole budget of the reference, in rungs. A search that never gets there counts as infinite.
    """
    needed = _needed(records, reference, budget)
    rows, columns = _resamples(needed.shape)
    draws = []
    for start in range(0, N_RESAMPLES, BATCH):  # all resamples at once would take a gigabyte for long lists
        own = slice(start, start + BATCH)
        resampled = needed[rows[own, :, None], columns[own, None, :]]
        draws += [*np.median(resampled.reshape(len(resampled), -1), axis=1)]
    return Estimate(_median(needed), *_ends(draws))


def median_ratio(records: Sequence[Record], reference: Sequence[Record], budget: int) -> float:
    """Return the value of `ratio` without its interval, which takes most of the time."""
    return _median(_needed(records, reference, budget))


@lru_cache(maxsize=16)
def _resamples(shape: tuple[int, int]) -> list[Array]:
    """Return the indices of all resamples of a list of searches and of one of references, a row for each resample."""
    rng = np.random.default_rng(0)
    picked = [[rng.integers(n, size=n) for n in shape] for _ in range(N_RESAMPLES)]
    return [np.array(axis) for axis in zip(*picked, strict=True)]


def reached(records: Sequence[Record], reference: Sequence[Record], budget: int) -> float:
    """Return the share of pairs in which a search reaches the reference's final best within the budget."""
    return float((_needed(records, reference, budget) <= 1).mean())


def _needed(records: Sequence[Record], reference: Sequence[Record], budget: int) -> Array:
    finals = [regret_at(one, budget) for one in reference]
    return np.array([[rungs_to(one, final) / budget for final in finals] for one in records])


def _median(values: Array) -> float:
    return float(np.median(values))


def regret(records: Sequence[Record], rungs: float) -> Estimate:
    """Return the mean regret of searches that have trained a number of rungs."""
    return _mean([regret_at(one, rungs) for one in records])


def share(records: Sequence[Record], part: int, whole: int, groups: slice = slice(None)) -> Estimate:
    """Return a share of trials over all searches: column `part` of the groups, over column `whole`."""
    sums = np.array([np.sum(one["groups"][groups] or [[0] * 4], axis=0)[[part, whole]] for one in records], float)

    picked = np.random.default_rng(0).integers(len(sums), size=(N_RESAMPLES, len(sums)))
    with np.errstate(invalid="ignore"):  # no member of the whole: NaN
        value = float(np.divide(*sums.sum(axis=0)))
        draws = np.divide(*sums[picked].sum(axis=1).T)
    return Estimate(value, *_ends(draws))


def pruned_share(records: Sequence[Record], groups: slice = slice(None)) -> Estimate:
    """Return the share of trials that were ended."""
    return share(records, 1, 0, groups)


def lost_share(records: Sequence[Record], groups: slice = slice(None)) -> Estimate:
    """Return the share of the best tenth that was ended."""
    return share(records, 3, 2, groups)


def mean_of(records: Sequence[Record], of: Callable[[Record], float]) -> Estimate:
    """Return the mean of a measure of one search."""
    return _mean([of(one) for one in records])


def _mean(values: Sequence[float]) -> Estimate:
    v = np.asarray(values, float)
    draws = v[np.random.default_rng(0).integers(len(v), size=(N_RESAMPLES, len(v)))].mean(axis=1)
    return Estimate(float(v.mean()), *_ends(draws))


def _ends(draws: Sequence[float] | Array) -> tuple[float, float]:
    """Return the ends of a percentile interval of draws that may be infinite."""
    known = np.sort(np.asarray(draws, float))
    known = known[~np.isnan(known)]
    if not len(known):
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    return float(known[math.floor(tail * (len(known) - 1))]), float(known[math.ceil((1 - tail) * (len(known) - 1))])


def rank_correlations(curves: Curves) -> list[Estimate]:
    """Return, for each rung, Spearman's correlation of the loss there with the final loss, over known runs.

    The interval is that of Fisher's transformation with the variance of Bonett & Wright 2000, Psychometrika 65.
    """
    values, finals = curves.values[curves.known], curves.finals[curves.known]
    return [_spearman(np.where(np.isnan(at), np.inf, at), finals) for at in values.T]


def _spearman(a: Array, b: Array) -> Estimate:
    n = len(a)
    if n < 4 or len(set(a)) == 1 or len(set(b)) == 1:
        return Estimate(math.nan, math.nan, math.nan)
    r = float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])
    z, width = np.arctanh(min(max(r, -1 + 1e-12), 1 - 1e-12)), 1.96 * math.sqrt((1 + r**2 / 2) / (n - 3))
    return Estimate(r, float(np.tanh(z - width)), float(np.tanh(z + width)))


def summary(records: Sequence[Record], reference: Sequence[Record], budget: int) -> Mapping[str, Any]:
    """Return the measures of a sampler with a pruner against random search without pruning, with intervals.

    budget: of the reference, in rungs.
    """
    return {
        "seeds": len(records),
        "trials": mean_of(records, lambda one: one["trials"]).value,
        "ratio": ratio(records, reference, budget),
        "reached": reached(records, reference, budget),
        "regret": {part: regret(records, part * budget) for part in SHARES},
        "pruned": pruned_share(records),
        "lost": lost_share(records),
    }
