"""Importances and interactions against planted ones, and what is left out of them."""

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.analysis.snapshot import Snapshot
from hpo.report.axes import Axis, axes
from hpo.report.importance import (
    MIN_TRIALS,
    Point,
    final_importances,
    importances,
    importances_by_rung,
    interactions,
    interactions_at_rung,
    points_at_rung,
)
from hpo.search.ranges import Choices, Range
from hpo.storage.store import Store, open_store
from hpo.study.load import load_study
from tests.support.cases import exhaustive
from tests.support.comparisons import run_search, run_study
from tests.support.planted import planted_study

AXES = {path: Axis(path, Range(low=0.0, high=1.0)) for path in ("a", "b", "c")}
AXES["d"] = Axis("d", Choices(choices=("x", "y", "z")))


def planted(random: np.random.Generator, n: int, truth: Callable[[Mapping[str, float]], float]) -> list[Point]:
    places = [{"a": x, "b": y, "c": z} for x, y, z in random.random((n, 3))]
    at = [place | {"d": float(random.integers(3)) / 2} for place in places]
    return [Point(place, truth(place) + float(random.normal(0, 0.1))) for place in at]


def test_a_hyperparameter_that_matters_passes_what_chance_reaches() -> None:
    random, passed, best = np.random.default_rng(0), 0, 0
    for _ in range(20):
        found = importances(planted(random, 40, lambda at: (at["a"] - 0.3) ** 2 * 4), AXES, n_shuffles=19)
        passed += sum(w.path == "a" and w.chance is not None and w.share > w.chance for w in found)
        best += found[0].path == "a"
        assert math.isclose(sum(w.share for w in found), 1.0)
    assert (passed, best) >= (18, 18)


def test_hyperparameters_without_effect_seldom_pass_it() -> None:
    random = np.random.default_rng(1)
    found = [w for _ in range(20) for w in importances(planted(random, 40, lambda at: 0.0), AXES, n_shuffles=19)]
    passed = sum(w.chance is not None and w.share > w.chance for w in found)
    assert passed <= 0.05 * len(found) + 3 * math.sqrt(0.05 * 0.95 * len(found))


def test_an_interaction_is_found_and_named() -> None:
    random, found = np.random.default_rng(2), 0
    for _ in range(20):
        tested = interactions_at_rung(
            planted(random, 60, lambda at: at["a"] + 2 * (at["a"] - 0.5) * (at["b"] - 0.5)), AXES, 4
        )
        first = tested.pairs[0]
        found += {first.first, first.second} == {"a", "b"} and first.p < 0.05
    assert found >= 18
    assert (tested.n, tested.rung, len(tested.pairs)) == (60, 4, 6)


def test_an_interaction_with_a_choice_is_found() -> None:
    random = np.random.default_rng(3)
    first = interactions_at_rung(planted(random, 80, lambda at: 2 * at["a"] * (at["d"] == 1.0)), AXES, 1).pairs[0]
    assert {first.first, first.second} == {"a", "d"}
    assert first.p < 0.001
    assert 0.5 < first.explained < 1


@pytest.mark.parametrize("n", [12, exhaustive(40)])
def test_where_nothing_interacts_hardly_any_pair_is_called_so(n: int) -> None:
    random = np.random.default_rng(4)
    found = [
        interactions_at_rung(planted(random, 50, lambda at: at["a"] + at["b"] ** 2), AXES, 1).pairs[0].p < 0.05
        for _ in range(n)
    ]
    assert sum(found) <= 0.05 * n + 3 * math.sqrt(n * 0.05 * 0.95)


def test_one_run_that_went_wrong_hides_no_interaction() -> None:
    found = planted(np.random.default_rng(5), 60, lambda at: 3 * (at["a"] - 0.5) * (at["b"] - 0.5))
    first = interactions_at_rung([*found[:-1], Point(found[-1].position, 1e6)], AXES, 1).pairs[0]
    assert {first.first, first.second} == {"a", "b"}
    assert first.p < 0.01


def test_too_few_trials_are_shown_with_how_many_are_needed() -> None:
    found = planted(np.random.default_rng(6), 9, lambda at: at["a"])
    assert importances(found, AXES) == []
    tested = interactions_at_rung(found, AXES, 3)
    assert (tested.n, tested.pairs) == (9, ())
    # intercept, three slopes, three squares, two choices, the product of two columns, ten to spare
    assert tested.needed == 1 + 3 + 3 + 2 + 2 + 10


def test_hyperparameters_that_few_trials_have_are_no_part_of_the_model() -> None:
    found = planted(np.random.default_rng(7), 60, lambda at: at["a"])
    half = [Point({k: v for k, v in p.position.items() if k != "c" or i % 2}, p.loss) for i, p in enumerate(found)]
    assert {pair.first for pair in interactions_at_rung(half, AXES, 1).pairs} | {"d"} == {"a", "b", "d"}
    assert {w.path for w in importances(half, AXES)} == set(AXES)


@pytest.mark.parametrize(
    ("entry", "value", "unit"),
    [
        (Range(low=1e-4, high=1e-2, log=True), 1e-3, 0.5),
        (Range(low=0.9, high=0.999, complement_log=True), 0.99, 0.5),
        (Range(low=-1.0, high=3.0), 0.0, 0.25),
        (Choices(choices=("x", 2, None)), 2, 0.5),
    ],
)
def test_an_axis_is_as_long_as_its_range_on_its_own_scale(entry: Any, value: Any, unit: float) -> None:
    axis = Axis("x", entry)
    assert math.isclose(axis.unit(value), unit)
    at, text = axis.ticks()
    assert len(at) == len(text) >= 3
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in at)
    assert at == sorted(at)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study of which half is pruned."""
    folder = tmp_path_factory.mktemp("pruned")
    with pytest.MonkeyPatch.context() as patch, open_store(f"sqlite:///{folder}/hpo.db", create=True) as store:
        patch.chdir(folder)
        pruner = {"name": "median", "startup_trials": 3, "min_trials": 3, "warmup_rungs": 1}
        yield run_search(store, folder, {}, pruner=pruner, budget={"trials": 30}, baseline_seeds=3)


def test_curves_of_pruned_trials_count_up_to_where_they_came(pruned: Snapshot) -> None:
    n = [len(points_at_rung(pruned, rung)) for rung in range(1, 5)]
    assert n[0] == 28  # all but the two repeats of the baseline, which say nothing of x
    assert n[0] > n[-1]
    assert n == sorted(n, reverse=True)
    found = importances_by_rung(pruned)
    assert 1 in found
    assert all(len(points_at_rung(pruned, rung)) >= MIN_TRIALS for rung in found)
    assert final_importances(pruned)[0] == max(found)


def test_one_hyperparameter_has_none_to_interact_with(pruned: Snapshot) -> None:
    assert list(axes(pruned)) == ["x"]
    assert interactions(pruned).pairs == ()


def test_what_diverged_counts_as_the_worst(here: Path, store: Store) -> None:
    (here / "falls.py").write_text(DIVERGING)
    path = planted_study(
        here, train="falls:train", config="falls:Config", budget={"trials": 12}, pruner={"name": "none"}
    )
    snapshot = run_study(store, load_study(str(path)))
    sys.modules.pop("falls")
    lost = [t for t in snapshot.trials if t.user_attrs["hpo:ended"] == "diverged"]
    assert lost
    found = points_at_rung(snapshot, 4)
    worst = max(p.loss for p in found)
    places = {t.params["x"] for t in lost}
    assert {p.position["x"] for p in found if p.loss == worst} >= places


DIVERGING = """
import math
from pydantic import BaseModel


class Config(BaseModel):
    x: float = 0.5
    seed: int = 0


def train(config):
    for rung in range(1, 5):
        yield rung, math.nan if config.x > 0.7 and rung > 1 else 2.0 + config.x
"""
