"""Hyperparameters without a measurable effect: tested on planted results."""

import math
import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest

from hpo.analysis.effects import no_effect_p_value

pytestmark = pytest.mark.usefixtures("here")


def drawn(draw: random.Random, effect: float, shape: str, n: int) -> tuple[list[Any], list[float]]:
    """Return values of a knob that explains such a share of the variance, and results; half of them pruned."""
    shapes: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
        "trend": (draw.random, lambda x: (x - 0.5) * math.sqrt(12)),
        "inside": (draw.random, lambda x: ((x - 0.5) ** 2 - 1 / 12) * math.sqrt(180)),
        "integer": (lambda: draw.randrange(4), lambda x: (x - 1.5) / math.sqrt(1.25)),
        "choice": (lambda: draw.choice("abc"), lambda x: ("abc".index(x) - 1) * math.sqrt(1.5)),
    }
    value, score = shapes[shape]
    xs = [value() for _ in range(n)]
    ys = [math.sqrt(effect) * score(x) + math.sqrt(1 - effect) * draw.gauss(0, 1) for x in xs]
    middle = [sorted(ys[:i])[i // 2] if i > 4 else math.inf for i in range(n)]
    return xs, [math.inf if y > m else y for y, m in zip(ys, middle, strict=True)]


def passing(effect: float, shape: str, n: int) -> int:
    """Return in how many of 100 searches a knob shows no effect."""
    draw = random.Random(f"{shape} {n}")
    return sum(no_effect_p_value(*drawn(draw, effect, shape, n)) is not None for _ in range(100))


@pytest.mark.parametrize("shape", ["trend", "inside", "integer", "choice"])
def test_a_dead_knob_shows_no_effect_in_half_of_all_searches_and_a_strong_one_in_next_to_none(shape: str) -> None:
    assert passing(0.0, shape, 24) >= 50
    assert passing(0.5, shape, 24) <= 5
    assert passing(1 / 3, shape, 50) <= 2


def test_a_sampler_that_learns_makes_no_live_knob_look_dead() -> None:
    dead = live = 0
    for seed in range(20):
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
        noise = random.Random(seed)
        for _ in range(30):
            trial = study.ask()
            x, _ = trial.suggest_float("live", 0, 1), trial.suggest_float("dead", 0, 1)
            study.tell(trial, (x - 0.3) ** 2 * 4 + noise.gauss(0, 0.15))
        values = [t.values[0] for t in study.trials]
        live += no_effect_p_value([t.params["live"] for t in study.trials], values) is not None
        dead += no_effect_p_value([t.params["dead"] for t in study.trials], values) is not None
    assert live <= 2
    assert dead >= 5


@pytest.mark.parametrize(
    ("x", "results"),
    [
        ([0.1] * 30, list(range(30))),
        (list(range(19)), [1.0, 2.0] * 9 + [3.0]),
        (list(range(30)), [1.0] * 30),
        (list(range(30)), [1.0] * 9 + [math.inf] * 21),
    ],
)
def test_a_knob_that_cannot_be_tested_is_not_accused(x: list[Any], results: list[float]) -> None:
    assert no_effect_p_value(x, results) is None
