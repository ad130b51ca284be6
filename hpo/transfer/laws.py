"""The model behind `hpo transfer`: one surface of the loss over all cells of a ladder.

A cell is a length and a size. In each cell, the loss is a bowl over the searched fields, and the bowls of all cells
share one law:

- the optimum of each field is linear in log tokens and log size, with a product term as interaction;
- the excess above the minimum is quadratic near the optimum and may be steeper on one side (LINEX, Varian 1975),
  because too large a learning rate costs more than too small a one;
- all curvatures scale with one power of tokens and one of size;
- the minimum is a sum of two power laws above a floor (Hoffmann et al. 2022, arXiv:2203.15556), and each cell may
  deviate from it by a small amount.

Published exponents are priors: normal distributions whose width is the spread between publications.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpo.transfer.fields import Axis

# Mean and standard deviation of the exponents of the optimum: in tokens, in size. The widths cover the publications:
# lr: Step Law (2503.04715) +0.31 and -0.71, Bjorck et al. (2409.19913) -0.32 and -0.23, nanochat +0.19 and 0.
# batch: Step Law 0.57, Power Lines (2505.13738) 0.38, its critical batch 0.46, nanochat 0.38; no effect of size.
# decay: nanochat D^-0.81, Power Lines and a constant horizon 0 to -0.5.
# horizon: tau in tokens as D (2405.13698) to D^0.47 N^0.53 (Power Lines).
EXPONENTS = {
    "lr": ((0.1, 0.35), (-0.4, 0.35)),
    "batch": ((0.47, 0.2), (0.0, 0.15)),
    "decay": ((-0.4, 0.3), (0.0, 0.2)),
    "horizon": ((0.75, 0.3), (0.2, 0.3)),
    "other": ((0.0, 0.1), (0.0, 0.1)),
}
INTERACTION = (0.0, 0.03)
UNIFORM_SIZE = (0.0, 0.2)  # exponent of lr in size with a parametrization that makes it the same at every size
# Direction in which the optimum of one field moves with another: lr goes as batch^0.25 (quartiles 0.20 to 0.42).
COUPLINGS = {("lr", "batch"): (-0.35, 0.2)}
COUPLING = (0.0, 0.25)
SKEW = {"lr": (1.0, 0.5), "batch": (-0.3, 0.4)}
CURVATURE_EXPONENT = (-0.1, 0.15)  # in tokens and in size
LOSS_EXPONENTS = ((0.32, 0.1), (0.34, 0.1))  # tokens 0.28 and 0.37, size 0.34 and 0.35: 2203.15556, 2404.10102
REDUCIBLE = (-0.8, 0.7)  # logit of the share of the loss that tokens and size reduce, at the middle of the ladder
CELL_DEVIATION = 0.0075  # of the minimum of a cell from the power laws, as a share of the loss; the data widen it
SMALL_SKEW = 1e-3  # below it, LINEX is a parabola to rounding
STEEP = 5.0  # largest exponent of LINEX, beyond which it goes on as a straight line


@dataclass(frozen=True)
class Runs:
    """Results of a ladder. x: (n, d) coordinates. s: (n, 2) log tokens and log size. y: (n,) losses.

    cell: (n,) index of the cell of each run.
    """

    x: np.ndarray
    s: np.ndarray
    y: np.ndarray
    cell: np.ndarray

    def subset(self, keep: np.ndarray) -> "Runs":
        return Runs(self.x[keep], self.s[keep], self.y[keep], self.cell[keep])


@dataclass(frozen=True)
class Layout:
    """What the parameters of a surface mean, and their priors.

    roles: of the axes. center, unit: of each axis, so that all are of comparable size. middle: log tokens and log size
    at which exponents turn. n_cells: number of cells. mean, sd: (p,) of the prior of each parameter.
    deviation: prior standard deviation of the minimum of a cell from the power laws.
    """

    roles: tuple[str, ...]
    center: np.ndarray
    unit: np.ndarray
    middle: np.ndarray
    n_cells: int
    mean: np.ndarray
    sd: np.ndarray
    deviation: float

    @property
    def d(self) -> int:
        return len(self.roles)

    def parts(self, p: np.ndarray) -> dict[str, np.ndarray]:
        """Return the named parts of vectors of parameters (m, p), each as (m, size)."""
        d = self.d
        sizes = {"optimum": d, "exponents": 3 * d, "log_curvature": d, "couplings": d * (d - 1) // 2, "skew": d}
        sizes |= {"curvature_exponents": 2, "minimum": 5, "deviations": self.n_cells}
        ends = np.cumsum(list(sizes.values()))
        return dict(zip(sizes, np.split(p, ends[:-1], axis=-1), strict=True))


def layout_of(axes: Sequence[Axis], runs: Runs, *, uniform_lr: bool = False, lr_by_batch: bool = False) -> Layout:
    """Return the layout and the priors of the surface of a ladder.

    uniform_lr: whether a parametrization keeps the best learning rate the same at every size.
    lr_by_batch: whether the learning rate is given per power of the batch already.
    """
    exponents = {**EXPONENTS, "lr": (EXPONENTS["lr"][0], UNIFORM_SIZE if uniform_lr else EXPONENTS["lr"][1])}
    couplings = {} if lr_by_batch else COUPLINGS
    roles = tuple(axis.role for axis in axes)
    low = np.minimum([axis.coordinate(axis.low) for axis in axes], runs.x.min(0))
    high = np.maximum([axis.coordinate(axis.high) for axis in axes], runs.x.max(0))
    unit = np.array([1.0 if axis.scale != "linear" else (axis.high - axis.low) / 2 for axis in axes])
    half = (high - low) / 2 / unit
    n_cells = int(runs.cell.max()) + 1
    best = np.array([runs.y[runs.cell == k].min() for k in range(n_cells)])
    spread = float(np.median(runs.y - best[runs.cell])) or 1e-6
    priors: list[tuple[float, float]] = [(0.0, float(h)) for h in half]
    priors += [prior for role in roles for prior in (*exponents[role], INTERACTION)]
    priors += [(float(np.log(2 * spread / h**2)), 1.5) for h in half]
    for j, role in enumerate(roles):
        priors += [couplings.get((role, other), COUPLING) for other in roles[j + 1 :]]
    priors += [SKEW.get(role, (0.0, 0.4)) for role in roles]
    priors += [CURVATURE_EXPONENT, CURVATURE_EXPONENT]
    scale = float(np.abs(best).mean())
    priors += [(float(best.mean()), 0.2 * scale), REDUCIBLE, (0.0, 1.0), *LOSS_EXPONENTS]
    priors += [(0.0, CELL_DEVIATION * scale)] * n_cells
    mean, sd = np.array(priors).T
    middle = np.array([runs.s[runs.cell == k].mean(0) for k in range(n_cells)]).mean(0)
    return Layout(roles, (low + high) / 2, unit, middle, n_cells, mean, sd, CELL_DEVIATION * scale)


def optimum(layout: Layout, p: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return the coordinates (m, n, d) of the optimum for m vectors of parameters p (m, p) at n scales s (n, 2)."""
    parts, at = layout.parts(p), s - layout.middle
    law = parts["exponents"].reshape(len(p), layout.d, 3)
    terms = np.column_stack([at, at[:, 0] * at[:, 1]])  # (n, 3)
    places = parts["optimum"][:, None, :] + np.einsum("nk,mdk->mnd", terms, law)
    return np.asarray(layout.center + layout.unit * places)


def excess(layout: Layout, p: np.ndarray, x: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return how much the loss at x (n, d) exceeds the minimum at scales s (n, 2), as (m, n)."""
    parts, away = layout.parts(p), (x - optimum(layout, p, s)) / layout.unit  # (m, n, d)
    mixed = away.copy()
    pairs = [(j, i) for j in range(layout.d) for i in range(j + 1, layout.d)]
    for k, (j, i) in enumerate(pairs):
        mixed[:, :, j] += parts["couplings"][:, k, None] * away[:, :, i]
    scale = np.exp(np.clip(parts["curvature_exponents"] @ (s - layout.middle).T, -5, 5))
    curvature = np.exp(np.clip(parts["log_curvature"], -30, 30))
    return np.asarray(scale * np.einsum("mnd,md->mn", linex(mixed, parts["skew"][:, None, :]), curvature))


def linex(u: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Return (exp(k u) - 1 - k u) / k^2, which is u^2 / 2 for a skew k of 0, and a straight line where k u is large."""
    k = np.where(np.abs(skew) < SMALL_SKEW, SMALL_SKEW, skew)
    z = k * u
    inside = np.minimum(z, STEEP)
    return np.asarray((np.expm1(inside) - inside + (z - inside) * math.expm1(STEEP)) / k**2)


def minimum(layout: Layout, p: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Return the loss at the optimum at scales s (n, 2) as (m, n), without the deviations of the cells."""
    level, reducible, of_tokens, alpha, beta = (part[:, None] for part in layout.parts(p)["minimum"].T)
    at = s - layout.middle
    amount = np.abs(level) / (1 + np.exp(-reducible))
    share = 1 / (1 + np.exp(-of_tokens))
    powers = share * np.exp(-alpha * at[:, 0]) + (1 - share) * np.exp(-beta * at[:, 1])
    return np.asarray(level + amount * (powers - 1))


def loss(layout: Layout, p: np.ndarray, runs: Runs) -> np.ndarray:
    """Return the loss of n runs by the model, as (m, n)."""
    deviations = layout.parts(p)["deviations"]
    return np.asarray(minimum(layout, p, runs.s) + deviations[:, runs.cell] + excess(layout, p, runs.x, runs.s))
