"""Fit the surface of `hpo.transfer.laws` to the runs of a ladder, and draw surfaces that the runs support as well."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from hpo.transfer.laws import Layout, Runs, excess, loss, minimum, optimum

# A run far from the optimum says little about its place: its error grows with its excess, by this share.
MISFIT = 0.12
FAR = 8.0  # runs whose excess is more than this many times the median excess have diverged
SHARED = 4.0  # weight of the noise of all cells in that of one cell, in runs
FREEDOM = 4.0  # of Student's t, whose weights limit single outliers
ROUNDS = 4
TOLERANCE, MAX_DAMPING = 1e-3, 1e3  # of the fit: the smallest relative gain of a step, and when to give up
N_DRAWS = 100
LEVEL = 0.9  # of intervals


@dataclass(frozen=True)
class Surface:
    """A fitted surface. p: (1, p) parameters. draws: (m, p) of equally supported surfaces.

    noise: standard deviation of a run near the optimum, in the cell that is longest and largest.
    """

    layout: Layout
    p: np.ndarray
    draws: np.ndarray
    noise: float


@dataclass(frozen=True)
class Estimate:
    """A prediction at one scale: coordinates with an interval each, loss with an interval.

    x: (d,) with the smallest expected loss. low, high: (d,) of the optimum.
    """

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    loss: float
    loss_low: float
    loss_high: float


def fit_surface(layout: Layout, runs: Runs, n_draws: int = N_DRAWS, seed: int = 0) -> Surface:
    """Fit a surface by penalized least squares, and draw surfaces from it.

    Each cell has a noise of its own, because runs that are ended early differ more than longer ones (docs/transfer.md).

    A draw weights the runs by a Bayesian bootstrap (Rubin 1981) and starts from another draw of the priors, so the
    draws spread as far as runs and priors together allow (Bardsley et al. 2014, randomize then optimize).
    """
    runs = converged(runs)
    best = np.array([runs.y[runs.cell == k].min() for k in range(layout.n_cells)])
    above = runs.y - best[runs.cell]
    typical = [np.median(above[runs.cell == k]) for k in range(layout.n_cells)]
    noise, weights = 0.1 * np.array(typical) + 1e-9, np.ones(len(runs.y))
    p = layout.mean[None, :]
    for _ in range(ROUNDS):
        sigma = np.hypot(noise[runs.cell], MISFIT * above)
        p = _solve(layout, runs, (weights / sigma**2)[None, :], layout.mean[None, :], p)
        above = np.maximum(excess(layout, p, runs.x, runs.s)[0], 0.0)
        residual = (runs.y - loss(layout, p, runs)[0]) / np.hypot(noise[runs.cell], MISFIT * above)
        weights = (FREEDOM + 1) / (FREEDOM + residual**2)
        noise = _noise(noise, residual, above, runs.cell)
        layout = _with_deviation(layout, p[0])
    rng = np.random.default_rng(seed)
    counts = rng.dirichlet(np.ones(len(runs.y)), n_draws) * len(runs.y)
    priors = layout.mean + layout.sd * rng.standard_normal((n_draws, len(layout.mean)))
    precision = counts * weights / np.hypot(noise[runs.cell], MISFIT * above) ** 2
    draws = _solve(layout, runs, precision, priors, np.repeat(p, n_draws, 0))
    return Surface(layout, p, draws, float(noise[runs.cell[np.argmax(runs.s.sum(1))]]))


def _with_deviation(layout: Layout, p: np.ndarray) -> Layout:
    """Return the layout with the deviation of cells from the power laws that prior and fit together suggest.

    The prior counts as much as four cells. A cell counts half, because the fitted power laws absorb a part of the
    deviations.
    """
    start, squares = len(p) - layout.n_cells, float(np.sum(p[-layout.n_cells :] ** 2))
    sd = layout.sd.copy()
    sd[start:] = np.sqrt((4 * layout.deviation**2 + squares) / (4 + layout.n_cells / 2))
    return replace(layout, sd=sd)


def converged(runs: Runs) -> Runs:
    """Return the runs without those that have diverged, which lie far above all others."""
    n_cells = int(runs.cell.max()) + 1
    best = np.array([runs.y[runs.cell == k].min() for k in range(n_cells)])
    above = runs.y - best[runs.cell]
    return runs.subset(above <= FAR * np.median(above))


def _noise(noise: np.ndarray, residual: np.ndarray, above: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the standard deviation of a run near the optimum of each cell, from the residuals in units of the last.

    That of a cell is a mean of its own and of all cells, in logarithms.
    """
    own, counts = noise.copy(), np.zeros(len(noise))
    for k in range(len(noise)):
        mine = cell == k
        near = residual[mine][above[mine] <= np.median(above[mine])]
        counts[k] = len(near)
        own[k] *= np.clip(1.4826 * np.median(np.abs(near)), 0.5, 2.0)
    common = np.average(np.log(own), weights=counts)
    return np.asarray(np.exp((counts * np.log(own) + SHARED * common) / (counts + SHARED)))


def _solve(
    layout: Layout, runs: Runs, precision: np.ndarray, prior: np.ndarray, start: np.ndarray, rounds: int = 30
) -> np.ndarray:
    """Minimize m penalized sums of squares by the method of Levenberg and Marquardt; return (m, p).

    precision: (m, n) of the runs. prior: (m, p), the means of the priors. start: (m, p).
    """
    # Parameters are in standard deviations of their priors, so that the penalty is a plain sum of squares.
    root, center, z = np.sqrt(precision), prior / layout.sd, start / layout.sd
    cost = _costs(layout, runs, root, center, z)[1]
    damping, open_ = np.full(len(z), 1e-2), np.arange(len(z))  # open_: which of the m still improve
    for _ in range(rounds):
        r = _costs(layout, runs, root[open_], center[open_], z[open_])[0]
        step = _step(_jacobian(layout, runs, root[open_], z[open_]), r, damping[open_])
        moved = _costs(layout, runs, root[open_], center[open_], z[open_] - step)[1]
        gain = (cost[open_] - moved) / (cost[open_] + 1e-12)
        better = open_[gain > 0]
        z[better], cost[better] = (z[open_] - step)[gain > 0], moved[gain > 0]
        damping[open_] = np.where(gain > 0, damping[open_] / 5, damping[open_] * 8)
        open_ = open_[(gain > TOLERANCE) | ((gain <= 0) & (damping[open_] < MAX_DAMPING))]
        if not len(open_):
            break
    return np.asarray(z * layout.sd)


def _costs(
    layout: Layout, runs: Runs, root: np.ndarray, center: np.ndarray, z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the residuals (m, n + p) of runs and priors, and the sums of their squares (m,)."""
    r = np.concatenate([root * (loss(layout, z * layout.sd, runs) - runs.y), z - center], axis=1)
    squares = (r**2).sum(1)
    return r, np.where(np.isfinite(squares), squares, np.inf)


def _step(jacobian: np.ndarray, r: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Return the damped Gauss-Newton steps (m, p). jacobian: (m, p, n) of the runs. r: (m, n + p)."""
    n, identity = jacobian.shape[2], np.eye(jacobian.shape[1])
    gradient = np.einsum("mpn,mn->mp", jacobian, r[:, :n]) + r[:, n:]
    normal = jacobian @ jacobian.transpose(0, 2, 1) + identity
    diagonal = np.einsum("mpp->mp", normal)
    damped = normal + (damping[:, None] * diagonal)[:, :, None] * identity
    return np.asarray(np.linalg.solve(damped, gradient[:, :, None])[:, :, 0])


def _jacobian(layout: Layout, runs: Runs, root: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the derivatives (m, p, n) of the weighted residuals of the runs, by central differences."""
    m, p = z.shape
    step = 1e-4
    moved = z[:, None, :] + step * np.concatenate([np.eye(p), -np.eye(p)])  # (m, 2 p, p)
    values = loss(layout, (moved * layout.sd).reshape(-1, p), runs).reshape(m, 2, p, -1)
    return root[:, None, :] * (values[:, 0] - values[:, 1]) / (2 * step)


def estimate(surface: Surface, s: np.ndarray, seed: int = 0, bounds: np.ndarray | None = None) -> Estimate:
    """Predict configuration and loss at a scale (2,), with coordinates between bounds (d, 2).

    The configuration is the one whose loss is smallest on average over all draws: if the position of the optimum is
    uncertain, it lies on the side on which a miss costs less.
    """
    layout, at = surface.layout, s[None, :]
    optima = optimum(layout, surface.draws, at)[:, 0]
    least, most = (-np.inf, np.inf) if bounds is None else bounds.T
    center = np.clip(np.median(optima, axis=0), least, most)

    def place(z: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(center + layout.unit * z, least, most))

    def expected(z: np.ndarray) -> float:
        return float(excess(layout, surface.draws, place(z)[None, :], at).mean())

    options = {"xatol": 1e-3, "fatol": 1e-9, "maxiter": 200 * layout.d}
    x = place(minimize(expected, np.zeros(layout.d), method="Nelder-Mead", options=options).x)
    values = (minimum(layout, surface.draws, at) + excess(layout, surface.draws, x[None, :], at))[:, 0]
    rng, deviation = np.random.default_rng(seed), layout.sd[-1]
    values = values + np.hypot(surface.noise, deviation) * rng.standard_normal(len(values))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(optima, [tail, 1 - tail], axis=0)
    ends = np.quantile(values, [tail, 0.5, 1 - tail])
    return Estimate(x, low, high, float(ends[1]), float(ends[0]), float(ends[2]))
