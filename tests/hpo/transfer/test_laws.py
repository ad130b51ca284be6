"""The surface of a ladder against its formulas, written out for one point at a time."""

import math

import numpy as np

from hpo.transfer.fields import Axis
from hpo.transfer.laws import Layout, Runs, excess, layout_of, linex, loss, minimum, optimum

AXES = [Axis("optimizer.lr", "log", 1e-4, 1e-1, False), Axis("run.batch_size", "log", 2, 512, True)]


def layout() -> Layout:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2))
    s = np.repeat([[9.0, 11.0], [10.4, 11.0], [9.0, 12.4]], 4, 0)
    return layout_of(AXES, Runs(x, s, rng.normal(3, 0.1, 12), np.repeat([0, 1, 2], 4)))


def test_linex_is_the_loss_of_varian_and_a_parabola_without_skew() -> None:
    u = np.array([-1.3, 0.2, 0.9])
    by_definition = [(math.exp(1.2 * v) - 1 - 1.2 * v) / 1.2**2 for v in u]
    assert np.allclose(linex(u, np.array(1.2)), by_definition)
    assert np.allclose(linex(u, np.array(0.0)), u**2 / 2, rtol=1e-3)
    assert np.isfinite(linex(np.array([1e6]), np.array(3.0))).all()


def test_the_optimum_is_linear_in_log_tokens_and_log_size_with_a_product_term() -> None:
    shape = layout()
    p = np.random.default_rng(1).normal(size=len(shape.mean))
    parts, s = shape.parts(p[None, :]), np.array([11.0, 13.0])
    law, at = parts["exponents"][0].reshape(2, 3), s - shape.middle
    for j in range(2):
        place = parts["optimum"][0, j] + law[j, 0] * at[0] + law[j, 1] * at[1] + law[j, 2] * at[0] * at[1]
        assert math.isclose(optimum(shape, p[None, :], s[None, :])[0, 0, j], shape.center[j] + place)


def test_the_excess_is_a_skewed_bowl_whose_rate_moves_with_the_batch() -> None:
    shape = layout()
    p = shape.mean + 0.3 * np.random.default_rng(2).normal(size=len(shape.mean))
    parts, s = shape.parts(p[None, :]), np.array([[10.0, 12.0]])
    place = optimum(shape, p[None, :], s)[0, 0]
    x = place + np.array([0.4, -0.7])
    u = [0.4 + parts["couplings"][0, 0] * -0.7, -0.7]
    scale = math.exp(float((s[0] - shape.middle) @ parts["curvature_exponents"][0]))
    expected = 0.0
    for j in range(2):
        k = parts["skew"][0, j]
        expected += scale * math.exp(parts["log_curvature"][0, j]) * (math.exp(k * u[j]) - 1 - k * u[j]) / k**2
    assert math.isclose(excess(shape, p[None, :], x[None, :], s)[0, 0], expected, rel_tol=1e-9)
    assert excess(shape, p[None, :], place[None, :], s)[0, 0] == 0


def test_the_minimum_is_a_floor_and_two_powers() -> None:
    shape = layout()
    p = shape.mean.copy()
    level, share, half, alpha, beta = 3.0, -0.4, 0.5, 0.3, 0.2
    start = len(p) - shape.n_cells - 5
    p[start : start + 5] = level, share, half, alpha, beta
    s = shape.middle + np.array([math.log(4), math.log(9)])
    amount, of_tokens = level / (1 + math.exp(0.4)), 1 / (1 + math.exp(-0.5))
    expected = (level - amount) + amount * (of_tokens * 4**-alpha + (1 - of_tokens) * 9**-beta)
    assert math.isclose(minimum(shape, p[None, :], s[None, :])[0, 0], expected)
    p[-3:] = 0.01, 0.02, 0.03
    runs = Runs(np.zeros((1, 2)), s[None, :], np.zeros(1), np.array([2]))
    own = expected + 0.03 + excess(shape, p[None, :], runs.x, runs.s)[0, 0]
    assert math.isclose(loss(shape, p[None, :], runs)[0, 0], own)
