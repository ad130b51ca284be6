"""Grid search and brute force: every combination of a space, each once."""

import itertools

import pytest

from tests.support.sampling import BASE, BETA2, LR, TWO, sampler, space


def test_grid_is_the_product_of_evenly_spaced_values() -> None:
    varied = space(optimizer__beta2=BETA2, optimizer__lr=LR, run__batch_size={"choices": [1, 4]})
    points = sampler("grid", points=3).combinations(BASE, varied)
    axes = [sorted({p[path] for p in points}) for path in varied]
    assert [len(axis) for axis in axes] == [3, 3, 2]
    assert axes[1] == pytest.approx([1e-4, 10**-2.5, 1e-1])
    assert [tuple(p.values()) for p in points] == list(itertools.product(*axes))


def test_combinations_hold_only_fields_that_exist_and_each_once() -> None:
    varied = space(
        optimizer__momentum={"choices": [0.0, 0.5, 0.9]},
        optimizer__beta2={"choices": [0.9, 0.99]},
        optimizer__name={"choices": ["adamw", "sgd"]},
        run__batch_size={"low": 1, "high": 2},
    )
    points = sampler("brute-force").combinations(BASE, varied)
    found = {tuple(sorted(p.items())) for p in points}
    assert len(points) == len(found) == 2 * 2 + 3 * 2
    assert all(("optimizer.beta2" in p) == (p["optimizer.name"] == "adamw") for p in points)
    assert points[-1] == points[9]
    assert points[2:4] == [points[2], points[3]]
    with pytest.raises(IndexError):
        points[10]


def test_huge_grid_is_counted_not_listed() -> None:
    wide = space(run__batch_size={"low": 1, "high": 10**9}, run__dropout={"low": 0.0, "high": 1.0, "step": 0.001})
    points = sampler("brute-force").combinations(BASE, wide)
    assert len(points) == 10**9 * 1001
    assert points[len(points) - 1] == {"run.batch_size": 10**9, "run.dropout": 1.0}


def test_brute_force_refuses_a_continuous_range() -> None:
    mixed = space(optimizer__lr=LR, run__batch_size={"low": 1, "high": 2})
    assert sampler("brute-force").problems(BASE, mixed) == [
        "space.optimizer.lr: must be choices or have a step, because sampler brute-force tries every value"
    ]
    assert sampler("grid").problems(BASE, mixed) == []


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "cmaes", "qmc", "nsga2"])
def test_only_listing_samplers_have_combinations(name: str) -> None:
    assert sampler(name).combinations(BASE, TWO) is None


def test_a_list_is_run_in_its_order_and_may_set_fields_outside_the_space() -> None:
    values = ({"optimizer.lr": 1e-2, "run.batch_size": 2}, {"optimizer.lr": 1e-3})
    listed = sampler("list", values=values)
    assert listed.problems(BASE, space(optimizer__lr=LR)) == []
    assert list(listed.combinations(BASE, space(optimizer__lr=LR))) == list(values)
    wrong = sampler("list", values=({"optimizer.lr": 1e-2}, {"optimizer.lrr": 1}))
    (problem,) = wrong.problems(BASE, space(optimizer__lr=LR))
    assert problem.startswith("sampler.values.1.optimizer.lrr: ")
