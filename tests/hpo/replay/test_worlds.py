import numpy as np
import pytest

from hpo.errors import Problem
from hpo.replay.curves import Curves, features, unit_positions
from hpo.replay.surrogate import fit_surrogate, held_out_error
from hpo.replay.worlds import Fitted, Nearest, Shuffled
from tests.support.curves import SPACE, crossing_curves


def smooth(n: int = 60, noise: float = 0.0) -> Curves:
    """Return curves without crossings, each configuration with two seeds."""
    curves = crossing_curves(n)
    finals = np.array([(p["lr"] - 0.3) ** 2 + 0.1 * (p["kind"] == "b") for p in curves.params])
    values = 1.0 + finals[:, None] + (1 - np.arange(1, 7) / 6) * (1 + finals[:, None])
    rng = np.random.default_rng(1)
    both = np.concatenate([values, values]) + noise * rng.normal(size=(2 * n, 1))
    return Curves("smooth", SPACE, curves.base, curves.params, np.tile(np.arange(n), 2), both)


def test_nearest_world_answers_with_a_recorded_run_of_the_nearest_configuration() -> None:
    curves = smooth(noise=0.1)
    world = Nearest(curves)
    asked = {"lr": 0.77, "kind": "b"}
    same = [i for i, p in enumerate(curves.params) if p["kind"] == "b"]
    config = min(same, key=lambda i: abs(curves.params[i]["lr"] - 0.77))
    found = {tuple(world.run(asked, seed).curve) for seed in range(20)}
    assert found == {tuple(curves.values[run]) for run in (config, config + 60)}
    assert world.run(asked, 0).truth == pytest.approx(curves.values[[config, config + 60], -1].mean())


def test_shuffled_world_gives_each_configuration_once() -> None:
    given = Shuffled(smooth()).given(4)
    assert given is not None
    assert sorted(run.params["lr"] for run in given) == sorted(p["lr"] for p in smooth().params)
    assert [run.params for run in given] != [run.params for run in Shuffled(smooth()).given(5) or ()]


def test_surrogate_predicts_held_out_configurations_and_says_how_well() -> None:
    curves = smooth()
    error = held_out_error(curves)
    assert (error.n, error.rank > 0.98, error.rmse < 0.2 * error.spread) == (60, True, True)
    noise = np.random.default_rng(0).permutation(60)
    shuffled = Curves("noise", SPACE, curves.base, [curves.params[i] for i in noise], curves.config, curves.values)
    assert abs(held_out_error(shuffled).rank) < 0.4


def test_surrogate_world_adds_the_noise_between_seeds_and_knows_the_best_point() -> None:
    curves = smooth(noise=0.05)
    world = Fitted(curves)
    runs = [world.run({"lr": 0.5, "kind": "a"}, seed) for seed in range(200)]
    assert {round(run.truth, 9) for run in runs} == {round(runs[0].truth, 9)}
    assert runs[0].truth == pytest.approx(1.04, abs=0.05)
    assert np.std([run.curve[-1] for run in runs]) == pytest.approx(0.05, rel=0.4)
    assert world.optimum == pytest.approx(1.0, abs=0.05)
    assert world.optimum <= min(fit_surrogate(curves).predict(curves.units)[:, -1])


def test_curves_of_diverged_runs_make_no_surrogate_infinite() -> None:
    curves = smooth()
    curves.values[:6, 2:] = np.inf
    curves.values[60:66, 2:] = np.inf
    assert np.isfinite(fit_surrogate(curves).predict(curves.units)).all()


def test_choices_that_are_no_numbers_differ_by_one() -> None:
    units = np.array([unit_positions(SPACE, {"lr": 0.5, "kind": kind}) for kind in ("a", "b")])
    a, b = features(SPACE, units)
    assert np.linalg.norm(a - b) == pytest.approx(1.0)


def test_world_for_samplers_needs_a_space_and_known_results() -> None:
    few = smooth(9)
    with pytest.raises(
        Problem, match="must have at least 10 configurations with a known result for world nearest, got 9"
    ):
        Nearest(few)
    bare = Curves("bare", {}, few.base, [{}] * 9, few.config, few.values)
    with pytest.raises(Problem, match="bare: must have a space for world surrogate; use --world shuffled"):
        Fitted(bare)


def test_noise_of_the_surrogate_world_is_that_of_configurations_with_a_similar_loss() -> None:
    curves = smooth()
    finals = curves.values[:60, -1]
    good = finals < np.median(finals)
    rng = np.random.default_rng(3)
    noise = np.where(good, 0.001, 0.1)[:, None] * rng.normal(size=(60, 1))
    curves.values[:60] += noise
    curves.values[60:] -= noise
    world = Fitted(curves)
    best, worst = ({"lr": 0.3, "kind": "a"}, {"lr": 1.0, "kind": "b"})
    spread = [np.std([world.run(params, seed).curve[-1] for seed in range(50)]) for params in (best, worst)]
    assert spread[0] < 0.01 < 0.05 < spread[1]
