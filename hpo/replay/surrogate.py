"""A surrogate of learning curves: from a configuration to a whole curve, fitted to recorded runs."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from hpo.replay.curves import Array, Curves, features
from hpo.replay.gaussian import GaussianProcess, fit

MIN_CONFIGURATIONS = 10  # complete ones without which no surrogate is fitted
MAX_FITTED = 400  # configurations to which the process is fitted; more take minutes and change little
EXPLAINED = 0.995  # share of the variance of the curves that the components keep
MAX_COMPONENTS = 4
FOLDS = 5


@dataclass(frozen=True)
class HeldOutError:
    """How well a surrogate predicts configurations that it was not fitted to, at the last rung.

    rmse: root mean square error of the better half, in the unit of the objective. spread: standard deviation of the
    better half. rank: Spearman's correlation over all configurations.
    """

    n: int
    rmse: float
    spread: float
    rank: float


@dataclass(frozen=True)
class Warp:
    """Losses of each rung on a scale on which they are about normal: the log of the distance from a floor.

    floor: below the best recorded value, (R,). worst: larger values, and diverged runs, count as this one, (R,).
    """

    floor: Array
    worst: Array

    def scaled(self, values: Array) -> Array:
        """Return losses (N, R) on the scale."""
        return np.log(np.minimum(values, self.worst) - self.floor)

    def plain(self, scaled: Array) -> Array:
        """Return the losses of values on the scale."""
        return np.minimum(np.exp(scaled) + self.floor, self.worst)


@dataclass(frozen=True)
class Surrogate:
    """One process for each principal component of the curves on the scale of a `Warp`."""

    curves: Curves
    warp: Warp
    centre: Array
    components: Array
    processes: tuple[GaussianProcess, ...]

    def predict(self, units: Array) -> Array:
        """Return the mean curves of configurations at positions (N, D) of the space, as (N, R)."""
        x = features(self.curves.space, units)
        scores = np.stack([process.predict(x) for process in self.processes], axis=1)
        return self.warp.plain(self.centre + scores @ self.components)


def mean_curves(curves: Curves) -> tuple[Array, Array]:
    """Return the mean curve of each configuration with a known end, (M, R), and the indices of these configurations."""
    kept = np.flatnonzero(~np.isnan(curves.truth))
    means = [curves.values[(curves.config == c) & curves.known].mean(axis=0) for c in kept]
    return np.array(means).reshape(len(kept), curves.rungs), kept


def fit_surrogate(curves: Curves, rng: np.random.Generator | None = None) -> Surrogate:
    """Return the surrogate of recorded curves. Configurations beyond MAX_FITTED are left out at random."""
    values, kept = mean_curves(curves)
    if len(kept) > MAX_FITTED:
        chosen = (rng or np.random.default_rng(0)).permutation(len(kept))[:MAX_FITTED]
        values, kept = values[chosen], kept[chosen]
    return _fit(curves, values, kept)


def _fit(curves: Curves, values: Array, kept: Array) -> Surrogate:
    best, median = values.min(axis=0), np.nanmedian(np.where(np.isinf(values), np.nan, values), axis=0)
    gap = np.maximum(median - best, 1e-9)
    worst = np.minimum(np.where(np.isinf(values), -np.inf, values).max(axis=0), median + 10 * gap)
    warp = Warp(best - gap / 4, worst)
    scaled = warp.scaled(values)
    centre = scaled.mean(axis=0)
    _, singular, rows = np.linalg.svd(scaled - centre, full_matrices=False)
    shares = np.cumsum(singular**2) / max((singular**2).sum(), 1e-300)
    n = min(MAX_COMPONENTS, int(np.searchsorted(shares, EXPLAINED)) + 1, len(singular))
    x = features(curves.space, curves.units[kept])
    processes = tuple(fit(x, (scaled - centre) @ row) for row in rows[:n])
    return Surrogate(curves, warp, centre, rows[:n], processes)


def held_out_error(curves: Curves) -> HeldOutError:
    """Return the error of surrogates that are fitted to four fifths of the configurations, on the other fifth."""
    values, kept = mean_curves(curves)
    order = np.random.default_rng(0).permutation(len(kept))[:MAX_FITTED]
    predicted = np.empty(len(order))
    for fold in range(FOLDS):
        held = np.arange(len(order)) % FOLDS == fold
        surrogate = _fit(curves, values[order[~held]], kept[order[~held]])
        predicted[held] = surrogate.predict(curves.units[kept[order[held]]])[:, -1]
    true = values[order, -1]
    good = np.isfinite(true) & (true <= np.median(true))
    rank = stats.spearmanr(predicted, true).statistic if len(set(true)) > 1 else np.nan
    rmse = float(np.sqrt(((predicted - true)[good] ** 2).mean()))
    return HeldOutError(len(order), rmse, float(true[good].std()), float(rank))
