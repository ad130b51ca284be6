import numpy as np
import pytest
from scipy.optimize import check_grad

from hpo.replay import gaussian
from hpo.replay.gaussian import GaussianProcess, fit, matern


def test_kernel_is_the_matern_kernel_of_its_closed_form() -> None:
    from scipy.special import gamma, kv

    distances = np.array([0.1, 0.5, 1.0, 3.0])
    scaled = np.sqrt(2 * 2.5) * distances
    expected = 2**-1.5 / gamma(2.5) * scaled**2.5 * kv(2.5, scaled)
    assert matern(distances) == pytest.approx(expected, rel=1e-9)
    assert matern(np.zeros(1)) == pytest.approx([1.0])


def test_gradient_is_that_of_the_marginal_likelihood() -> None:
    rng = np.random.default_rng(0)
    x, z = rng.random((12, 3)), rng.normal(size=12)
    theta = np.array([0.3, -0.5, 1.0, 0.2, -2.0])
    error = check_grad(lambda t: gaussian._loss(t, x, z)[0], lambda t: gaussian._loss(t, x, z)[1], theta)
    assert error < 1e-4


def test_prediction_is_the_conditional_mean_of_a_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    x, new, scales = rng.random((6, 2)), rng.random((3, 2)), np.array([0.1, -0.4])
    y = rng.normal(size=6)
    everything = np.concatenate([x, new]) / np.exp(scales)
    joint = 2.0 * matern(np.linalg.norm(everything[:, None] - everything[None, :], axis=2))
    noisy = joint[:6, :6] + 0.1 * np.eye(6)
    expected = 1.5 + joint[6:, :6] @ np.linalg.solve(noisy, y - 1.5)
    weights = np.linalg.solve(noisy, y - 1.5)
    process = GaussianProcess(x, weights, 1.5, scales, float(np.log(2.0)), float(np.log(0.1)))
    assert process.predict(new) == pytest.approx(expected)


def test_fit_finds_the_axis_that_matters_and_the_noise() -> None:
    rng = np.random.default_rng(2)
    x = rng.random((80, 3))
    y = 10 + 3 * np.sin(5 * x[:, 0]) + rng.normal(scale=0.3, size=80)
    process = fit(x, y)
    new = rng.random((50, 3))
    assert np.abs(process.predict(new) - (10 + 3 * np.sin(5 * new[:, 0]))).mean() < 0.2
    assert process.log_scales[0] + 1 < min(process.log_scales[1:])
    assert 0.2 < np.exp(process.log_noise / 2) < 0.4
