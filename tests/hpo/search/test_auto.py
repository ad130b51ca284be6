"""The sampler `auto`: what it takes for which trial, and that workers neither share a point nor stop at a limit."""

import copy
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import scipy.stats
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from pydantic import BaseModel, TypeAdapter

from bench.ask import count_repeated
from bench.crowd import SPACE as CROWD_SPACE
from bench.crowd import study as crowd_study
from hpo.analysis.snapshot import read_snapshot
from hpo.config.permission import permit
from hpo.queue.registry import register_study
from hpo.search.auto import MAX_CHOICES, MAX_FIELDS, choose_sampler
from hpo.search.ranges import Space
from hpo.search.samplers import GP, Auto, build_sampler
from hpo.search.space import suggest_values
from hpo.storage.attributes import SUGGESTED_BY
from hpo.storage.store import open_store

NUMBER = FloatDistribution(0.0, 1.0)


class Config(BaseModel):
    x: float = 0.5
    y: float = 0.5
    c: str = "a"


SPACE: Space = TypeAdapter(Space).validate_python(
    {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 1e-4, "high": 1.0, "log": True}, "c": {"choices": ["a", "b"]}}
)


def choices(n: int) -> CategoricalDistribution:
    return CategoricalDistribution(list(range(n)))


def loss(values: dict[str, Any]) -> float:
    return float((values["x"] - 0.3) ** 2 + (values["y"] - 0.1) ** 2 + (values["c"] == "b"))


@pytest.mark.parametrize(
    ("joint", "finished", "taken"),
    [
        ({"x": NUMBER}, 9, "sobol"),
        ({"x": NUMBER}, 10, "gp"),
        ({"x": NUMBER}, 200, "gp"),
        ({"x": NUMBER}, 201, "tpe"),
        ({"x": NUMBER, "c": choices(MAX_CHOICES)}, 50, "gp"),
        ({"x": NUMBER, "c": choices(MAX_CHOICES + 1)}, 50, "tpe"),
        ({"c": choices(2)}, 50, "tpe"),
        ({str(i): NUMBER for i in range(MAX_FIELDS)}, 50, "gp"),
        ({str(i): NUMBER for i in range(MAX_FIELDS + 1)}, 50, "tpe"),
        ({}, 0, "tpe"),
    ],
)
def test_space_and_history_decide_what_proposes(joint: dict[str, BaseDistribution], finished: int, taken: str) -> None:
    assert choose_sampler(joint, finished, startup_trials=10, gp_trials=200)[0] == taken


def test_64_workers_start_with_distinct_points_of_one_sobol_design() -> None:
    study, found = optuna.create_study(), []
    for point in range(64):  # no trial has finished when the last worker asks
        study.sampler = build_sampler(Auto(), Config(), SPACE, seed=1000 + point, study_seed=5, point=point)
        found.append(suggest_values(study.ask(), Config(), SPACE))
    exact = scipy.stats.qmc.Sobol(3, scramble=True, seed=5).random(64)
    assert [values["x"] for values in found] == pytest.approx(list(exact[:, 0]))
    assert len({values["x"] for values in found}) == len({values["y"] for values in found}) == 64
    for interval in range(64):  # one point in each interval of each axis, which random points do not have
        assert sum(interval <= 64 * values["x"] < interval + 1 for values in found) == 1
    assert sum(values["c"] == "a" for values in found) == 32


def searched(n_trials: int) -> optuna.Study:
    study = optuna.create_study()
    for point in range(n_trials):
        study.sampler = build_sampler(Auto(startup_trials=5), Config(), SPACE, point, 0, point)
        trial = study.ask()
        study.tell(trial, loss(suggest_values(trial, Config(), SPACE)))
    return study


def smallest_gap(found: list[dict[str, Any]]) -> float:
    pairs = itertools.combinations(found, 2)
    return min(abs(a["x"] - b["x"]) + abs(a["y"] - b["y"]) + (a["c"] != b["c"]) for a, b in pairs)


def test_process_proposes_another_point_while_earlier_ones_run() -> None:
    study, found = searched(12), []
    for point in range(12, 20):
        study.sampler = build_sampler(Auto(startup_trials=5), Config(), SPACE, 7, 0, point)  # equal seeds
        found.append(suggest_values(study.ask(), Config(), SPACE))
    assert smallest_gap(found) > 1e-3


def test_process_proposes_another_point_to_each_of_the_workers_that_ask_at_the_same_time() -> None:
    study, found = searched(12), []
    started = [study._storage.create_new_trial(study._study_id) for _ in range(8)]
    for point, trial_id in enumerate(started, 12):
        alone = copy.deepcopy(study)  # no worker sees what another one is proposed
        alone.sampler = build_sampler(Auto(startup_trials=5), Config(), SPACE, point, 0, point)
        found.append(suggest_values(optuna.Trial(alone, trial_id), Config(), SPACE))
    assert smallest_gap(found) > 1e-3


@pytest.mark.parametrize("kind", ["auto", "gp"])
def test_process_learns_from_a_trial_that_exceeded_a_limit(kind: str) -> None:
    """A worker stores a constraint only with the trial that exceeded it, and no value if it did so at once."""
    rule: Any = Auto(startup_trials=5) if kind == "auto" else GP(startup_trials=5)
    study = optuna.create_study()
    kinds = {path: entry.distribution(float) for path, entry in SPACE.items()}
    for i in range(12):
        x = i / 11
        params, oom = {"x": x, "y": 0.1, "c": "a"}, x > 0.6
        state = TrialState.PRUNED if oom else TrialState.COMPLETE
        given: dict[str, Any] = {"constraints": {"memory": 1.0}} if oom else {"value": 1 - x}
        study.add_trial(create_trial(state=state, params=params, distributions=kinds, **given))
    found = []
    for point in range(12, 20):
        study.sampler = build_sampler(rule, Config(), SPACE, point, 0, point)
        trial = study.ask()
        found.append(suggest_values(trial, Config(), SPACE)["x"])
        study.tell(trial, state=TrialState.FAIL)
    assert sum(x < 0.75 for x in found) >= 6, "the loss falls with x, the memory ends before 0.64"


@pytest.mark.exhaustive
def test_eight_workers_that_train_nothing_repeat_no_trial(storage_url: str, tmp_path: Path) -> None:
    """The same with 64 workers: `python bench/ask.py`."""
    permit(["bench.crowd:train"])
    with open_store(storage_url, create=True) as store:
        register_study(store, crowd_study(80, {"name": "auto"}), None, {})
    command = [sys.executable, "-m", "hpo", "worker", "--study", "crowd", "--allow-train", "bench.crowd:train"]
    env = {**os.environ, "HPO_STORAGE": storage_url, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*command, "--out", str(tmp_path)], env=env, stdout=subprocess.DEVNULL) for _ in range(8)
    ]
    assert [worker.wait(300) for worker in workers] == [0] * 8
    with open_store(storage_url) as store:
        trials = [t for t in read_snapshot(store, "crowd").trials if t.user_attrs["kind"] == "search"]
        assert {t.user_attrs[SUGGESTED_BY]["by"] for t in trials} == {"sobol", "gp"}
        params = [t.params for t in trials]
    assert len(params) == 79
    space = TypeAdapter(Space).validate_python(CROWD_SPACE)
    assert count_repeated(params, space, near=0.001) == 0
