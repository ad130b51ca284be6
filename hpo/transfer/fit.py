"""Fit the surface of `hpo.transfer.laws` to the runs of a ladder, and draw surfaces that the runs support as well."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, minimize

from hpo.transfer.laws import Layout, Runs, excess, loss, minimum, optimum

# A run far from the optimum says little about its place: its error grows with its excess, by this share.
MISFIT = 0.15
FAR = 8.0  # runs whose excess is more than this many times the median excess have diverged
FREEDOM = 4.0  # of Student's t, whose weights limit single outliers
ROUNDS = 4
N_DRAWS = 100
LEVEL = 0.9  # of intervals


@dataclass(frozen=True)
class Surface:
    """A fitted surface. p: its parameters. draws: (m, p) of equally supported surfaces. noise: of a run."""

    layout: Layout
    p: np.ndarray
    draws: np.ndarray
    noise: float


@dataclass(frozen=True)
class Estimate:
    """A prediction at one scale: coordinates with an interval each, loss with an interval.

    x: (d,) with the smallest expected loss. low, high: (d,) of the optimum. exact: loss expected at x.
    """

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    loss: float
    loss_low: float
    loss_high: float


def fit_surface(layout: Layout, runs: Runs, n_draws: int = N_DRAWS, seed: int = 0) -> Surface:
    """Fit a surface by penalized least squares, and draw surfaces from it.

    A draw weights the runs by a Bayesian bootstrap (Rubin 1981) and starts from another draw of the priors, so the
    draws spread as far as runs and priors together allow (Bardsley et al. 2014, randomize then optimize).
    """
    runs = converged(runs)
    best = np.array([runs.y[runs.cell == k].min() for k in range(layout.n_cells)])
    above = runs.y - best[runs.cell]
    noise = 0.1 * float(np.median(above)) + 1e-9
    p, weights = layout.mean.copy(), np.ones(len(runs.y))
    for _ in range(ROUNDS):
        sigma = np.sqrt(noise**2 + (MISFIT * above) ** 2)
        p = _solve(layout, runs, weights / sigma**2, layout.mean, p)
        above = np.maximum(excess(layout, p, runs.x, runs.s), 0.0)
        residual = (runs.y - loss(layout, p, runs)) / np.sqrt(noise**2 + (MISFIT * above) ** 2)
        weights = (FREEDOM + 1) / (FREEDOM + residual**2)
        noise = _noise(noise, residual, above)
    sigma = np.sqrt(noise**2 + (MISFIT * above) ** 2)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n_draws):
        counts = rng.dirichlet(np.ones(len(runs.y))) * len(runs.y)
        prior = layout.mean + layout.sd * rng.standard_normal(len(layout.mean))
        draws.append(_solve(layout, runs, counts * weights / sigma**2, prior, p, n=30))
    return Surface(layout, p, np.array(draws).reshape(n_draws, -1), noise)


def converged(runs: Runs) -> Runs:
    """Return the runs without those that have diverged, which lie far above all others."""
    n_cells = int(runs.cell.max()) + 1
    best = np.array([runs.y[runs.cell == k].min() for k in range(n_cells)])
    above = runs.y - best[runs.cell]
    return runs.subset(above <= FAR * np.median(above))


def _noise(noise: float, residual: np.ndarray, above: np.ndarray) -> float:
    """Return the standard deviation of a run near the optimum, from the residuals in units of the last one."""
    near = above <= np.median(above)
    ratio = 1.4826 * float(np.median(np.abs(residual[near])))
    return noise * min(max(ratio, 0.5), 2.0)


def _solve(
    layout: Layout, runs: Runs, precision: np.ndarray, prior: np.ndarray, start: np.ndarray, n: int = 60
) -> np.ndarray:
    root = np.sqrt(precision)

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.concatenate([root * (loss(layout, p, runs) - runs.y), (p - prior) / layout.sd])

    return least_squares(
        residuals, start, method="lm", x_scale=layout.sd, max_nfev=n * len(start), xtol=1e-4, ftol=1e-4
    ).x


def estimate(surface: Surface, s: np.ndarray, seed: int = 0) -> Estimate:
    """Predict configuration and loss at a scale (2,).

    The configuration is the one whose loss is smallest on average over all draws: if the position of the optimum is
    uncertain, it lies on the side on which a miss costs less.
    """
    layout, at = surface.layout, s[None, :]
    optima = np.array([optimum(layout, p, at)[0] for p in surface.draws])

    def expected(x: np.ndarray) -> float:
        return float(np.mean([excess(layout, p, x[None, :], at)[0] for p in surface.draws]))

    center = np.median(optima, axis=0)
    scaled = minimize(
        lambda z: expected(center + layout.unit * z),
        np.zeros(layout.d),
        method="Nelder-Mead",
        options={"xatol": 1e-2, "fatol": 1e-7, "maxiter": 200 * layout.d},
    )
    x = center + layout.unit * scaled.x
    values = np.array([minimum(layout, p, at)[0] + excess(layout, p, x[None, :], at)[0] for p in surface.draws])
    noise = np.hypot(surface.noise, layout.sd[-1]) * np.random.default_rng(seed).standard_normal(len(values))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(optima, [tail, 1 - tail], axis=0)
    ends = np.quantile(values + noise, [tail, 0.5, 1 - tail])
    return Estimate(x, low, high, float(ends[1]), float(ends[0]), float(ends[2]))
