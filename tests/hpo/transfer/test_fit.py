"""Fits of planted ladders: the law is recovered, and intervals contain it as often as they say."""

import numpy as np
import pytest

from hpo.transfer.fields import Axis
from hpo.transfer.fit import converged, estimate, fit_surface
from hpo.transfer.laws import Runs, layout_of

AXES = [Axis("optimizer.lr", "log", 1e-4, 1e-1, False), Axis("run.batch_size", "log", 2, 512, False)]
# log tokens and log size of the cells, and of a target of 8 times the tokens and 4 times the size of the largest
CELLS = np.log([[1e5, 1e4], [4e5, 1e4], [1e5, 4e4], [4e5, 4e4]])
TARGET = np.log([3.2e6, 1.6e5])


def best(s: np.ndarray) -> np.ndarray:
    """Return the planted optimum: lr as D^0.25 N^-0.5, batch as D^0.55. Neither is the mean of the priors."""
    d, n = (s - CELLS[0]).T
    return np.column_stack([np.log(5e-3) + 0.25 * d - 0.5 * n, np.log(8) + 0.55 * d])


def floor(s: np.ndarray) -> np.ndarray:
    d, n = (s - CELLS[0]).T
    return 2.0 + 1.2 * np.exp(-0.3 * d) + 0.8 * np.exp(-0.35 * n)


def loss(x: np.ndarray, s: np.ndarray) -> np.ndarray:
    u, v = (x - best(s)).T
    u = u - 0.3 * v
    return floor(s) + 0.05 * (np.exp(u) - 1 - u) + 0.03 * v**2


def planted(seed: int, n: int = 12, noise: float | np.ndarray = 0.004) -> Runs:
    """Return a ladder. noise: of all runs, or of the runs of each cell."""
    rng = np.random.default_rng(seed)
    cell = np.repeat(np.arange(4), n)
    s = CELLS[cell]
    x = np.log([5e-3, 8]) + rng.normal(size=(len(s), 2)) * [1.0, 0.9]
    return Runs(x, s, loss(x, s) + np.broadcast_to(noise, 4)[cell] * rng.normal(size=len(s)), cell)


def test_a_planted_law_is_recovered_and_predicts_far_better_than_a_copy() -> None:
    excess, copied = [], []
    for seed in range(3):
        runs = planted(seed)
        at = estimate(fit_surface(layout_of(AXES, runs), runs, 20), TARGET)
        excess.append(float((loss(at.x[None, :], TARGET[None, :]) - floor(TARGET[None, :]))[0]))
        own = runs.x[runs.cell == 0][np.argmin(runs.y[runs.cell == 0])]
        copied.append(float((loss(own[None, :], TARGET[None, :]) - floor(TARGET[None, :]))[0]))
    assert np.mean(excess) < 0.25 * np.mean(copied)
    assert np.mean(excess) < 0.02


def test_intervals_contain_the_optimum_and_the_loss() -> None:
    inside, of_loss, n = 0, 0, 6
    for seed in range(n):
        runs = planted(100 + seed)
        at = estimate(fit_surface(layout_of(AXES, runs), runs, 20), TARGET)
        inside += int(np.sum((at.low <= best(TARGET[None, :])[0]) & (best(TARGET[None, :])[0] <= at.high)))
        measured = float(loss(at.x[None, :], TARGET[None, :])[0])
        of_loss += at.loss_low <= measured <= at.loss_high
    assert inside >= 2 * n - 4  # nine of ten, less two standard deviations
    assert of_loss >= n - 2


def test_a_bound_moves_the_other_fields_and_the_predicted_loss_too() -> None:
    runs = planted(8, 30, noise=0.001)
    surface = fit_surface(layout_of(AXES, runs), runs, 20)
    free, most = estimate(surface, TARGET), np.log(8)
    bound = estimate(surface, TARGET, bounds=np.array([[-np.inf, np.inf], [-np.inf, most]]))
    assert bound.x[1] == most < free.x[1]
    assert bound.x[0] < free.x[0] - 0.2  # the planted best rate falls with the batch, by 0.3
    measured = [float(loss(at.x[None, :], TARGET[None, :])[0]) for at in (free, bound)]
    assert bound.loss - free.loss == pytest.approx(measured[1] - measured[0], rel=0.3)


def test_more_runs_narrow_the_intervals() -> None:
    few, many = (planted(7, n) for n in (8, 40))
    widths = []
    for runs in (few, many):
        at = estimate(fit_surface(layout_of(AXES, runs), runs, 20), TARGET)
        widths.append(at.high - at.low)
    assert (widths[1] < widths[0]).all()


def test_each_cell_has_a_noise_of_its_own() -> None:
    # The last cell is the largest one, whose noise a surface keeps for its prediction.
    quiet, loud = 0.003, 0.1
    for noise in (np.array([loud, quiet, loud, quiet]), np.array([quiet, loud, quiet, loud])):
        runs = planted(5, 24, noise)
        found = fit_surface(layout_of(AXES, runs), runs, 1).noise
        assert noise[-1] / 4 < found < noise[-1] * 4


def test_diverged_runs_do_not_count() -> None:
    runs = planted(3)
    runs.y[[1, 15]] = 11.0, 1e3
    assert not {11.0, 1e3} & set(converged(runs).y)
    at = estimate(fit_surface(layout_of(AXES, runs), runs, 20), TARGET)
    assert loss(at.x[None, :], TARGET[None, :])[0] - floor(TARGET[None, :])[0] < 0.05
