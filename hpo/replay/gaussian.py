"""Gaussian process regression with one length scale per coordinate, for surrogates of learning curves.

Optuna's own process is private, and scikit-learn is not a dependency. A test compares this one with closed forms.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky
from scipy.optimize import minimize

Array = np.ndarray
JITTER = 1e-8


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process with a Matern-5/2 kernel and a constant mean.

    x: (N, F). weights: K^-1 (y - mean), (N,). log_scales: log length scales, (F,). log_amplitude, log_noise: logs of
    the variances of the signal and of the noise.
    """

    x: Array
    weights: Array
    mean: float
    log_scales: Array
    log_amplitude: float
    log_noise: float

    def predict(self, x: Array) -> Array:
        """Return the mean of the process without noise at points (M, F), as (M,)."""
        kernel = np.exp(self.log_amplitude) * matern(_distances(x, self.x, self.log_scales))
        return self.mean + kernel @ self.weights


def fit(x: Array, y: Array, starts: int = 2) -> GaussianProcess:
    """Return the process that maximizes the marginal likelihood of y (N,) at x (N, F), with weak priors.

    starts: number of starting points of the optimizer.
    """
    mean, spread = float(y.mean()), float(y.std()) or 1.0
    z, n_scales = (y - mean) / spread, x.shape[1]
    bounds = [(-3.5, 4.0)] * n_scales + [(-3.0, 4.0), (-11.0, 1.0)]
    best, least = np.zeros(n_scales + 2), np.inf
    for start in range(starts):
        first = np.array([0.5 * start] * n_scales + [0.0, -3.0])
        found = minimize(_loss, first, args=(x, z), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
        if found.fun < least:
            best, least = found.x, float(found.fun)
    scales, amplitude, noise = best[:n_scales], float(best[-2]), float(best[-1])
    kernel = np.exp(amplitude) * matern(_distances(x, x, scales))
    weights = cho_solve(cho_factor(kernel + (np.exp(noise) + JITTER) * np.eye(len(x)), lower=True), z)
    # The units of y: the mean scales with `spread`, the variances with its square.
    return GaussianProcess(
        x, weights / spread, mean, scales, amplitude + 2 * np.log(spread), noise + 2 * np.log(spread)
    )


def matern(distances: Array) -> Array:
    """Return the Matern-5/2 correlation at scaled distances."""
    r = np.sqrt(5) * distances
    return (1 + r + r**2 / 3) * np.exp(-r)


def _distances(a: Array, b: Array, log_scales: Array) -> Array:
    a, b = a / np.exp(log_scales), b / np.exp(log_scales)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def _loss(theta: Array, x: Array, z: Array) -> tuple[float, Array]:
    """Return the negative log marginal likelihood with weak priors, and its gradient.

    The priors keep length scales that the data does not determine near 1, and noise near a hundredth.
    """
    n, scales = len(z), theta[:-2]
    r = _distances(x, x, scales)
    signal = np.exp(theta[-2]) * matern(r)
    lower = cholesky(signal + (np.exp(theta[-1]) + JITTER) * np.eye(n), lower=True, check_finite=False)
    inverse = cho_solve((lower, True), np.eye(n), check_finite=False)
    alpha = inverse @ z
    loss = 0.5 * z @ alpha + np.log(np.diag(lower)).sum()
    outer = inverse - np.outer(alpha, alpha)
    # d matern / d log scale of axis f = 5/3 (1 + sqrt(5) r) exp(-sqrt(5) r) (difference of axis f / scale)^2
    slope = np.exp(theta[-2]) * 5 / 3 * (1 + np.sqrt(5) * r) * np.exp(-np.sqrt(5) * r) * outer
    gradient = np.empty_like(theta)
    for f, column in enumerate(x.T):
        squares = ((column[:, None] - column[None, :]) / np.exp(scales[f])) ** 2
        gradient[f] = 0.5 * (slope * squares).sum()
    gradient[-2] = 0.5 * (outer * signal).sum()
    gradient[-1] = 0.5 * np.exp(theta[-1]) * np.trace(outer)
    centre, width = np.array([0.5] * len(scales) + [0.5, -4.5]), np.array([1.5] * len(scales) + [1.5, 2.0])
    loss += 0.5 * (((theta - centre) / width) ** 2).sum()
    return float(loss), gradient + (theta - centre) / width**2
