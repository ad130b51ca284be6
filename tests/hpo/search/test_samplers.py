"""Samplers: what they see, what is stored, and that parallel workers neither repeat nor miss a point."""

import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
import scipy.stats
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from hpo.search.complement_log import ComplementLogSampler
from hpo.search.ranges import is_inside
from hpo.search.samplers import build_sampler
from hpo.search.space import params_in_range, space_problems, suggest_values, unconditional
from model.section import updated
from tests.support.sampling import BASE, BETA2, LR, TWO, loss, sampler, search, space

ADAPTIVE = ["auto", "tpe", "gp", "cmaes", "nsga2"]
DRAWING = [*ADAPTIVE, "random", "qmc"]


def quick(name: str) -> Any:
    """A sampler that leaves its random phase early."""
    if name == "nsga2":
        return sampler(name, population=4)
    return sampler(name, startup_trials=3) if name in ADAPTIVE else sampler(name)


JOINT_TPE = sampler("tpe", startup_trials=3, multivariate=True)
MIXED = space(
    optimizer__name={"choices": ["adamw", "sgd"]},
    optimizer__beta2=BETA2,
    optimizer__momentum={"low": 0.0, "high": 0.9},
    optimizer__lr=LR,
    run__batch_size={"low": 1, "high": 16},
    run__dropout={"low": 0.0, "high": 0.3, "step": 0.1},
    run__decay=BETA2,
)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return optuna.create_study(storage=f"sqlite:///{tmp_path}/hpo.db", study_name="s")


def test_random_draws_are_log_uniform_in_one_minus_x() -> None:
    study = optuna.create_study()
    kind = FloatDistribution(0.8, 0.9999)
    mirror = build_sampler(sampler("random"), BASE, TWO, seed=1, study_seed=0)
    trial = create_trial(state=TrialState.RUNNING)
    draws = [1 - mirror.sample_independent(study, trial, "optimizer.beta2", kind) for _ in range(2000)]
    exact = scipy.stats.loguniform(1 - 0.9999, 1 - 0.8)
    assert scipy.stats.kstest(draws, exact.cdf).pvalue > 0.05
    assert scipy.stats.kstest(draws, scipy.stats.uniform(1 - 0.9999, 0.9999 - 0.8).cdf).pvalue < 1e-9


@pytest.mark.parametrize("name", DRAWING)
def test_stored_value_is_the_plain_one_under_the_plain_range(study: optuna.Study, name: str) -> None:
    found = search(study, quick(name), MIXED, 7)
    assert space_problems(BASE, MIXED) == []
    for trial, values in zip(study.get_trials(), found, strict=True):
        assert trial.params == values
        assert trial.distributions["run.decay"] == FloatDistribution(0.8, 0.9999)
        assert all(is_inside(kind, trial.params[path]) for path, kind in trial.distributions.items())
        assert ("optimizer.beta2" in values) == (values["optimizer.name"] == "adamw")
        updated(BASE, values)
    assert len({v["run.decay"] for v in found[:4]}) == 4


def test_tpe_concentrates_near_the_planted_optimum(study: optuna.Study) -> None:
    found = search(study, sampler("tpe"), TWO, 40)
    last = [1 - v["optimizer.beta2"] for v in found[-20:]]
    assert 0.0015 < statistics.median(last) < 0.006


@pytest.mark.parametrize(("name", "n_trials"), [("tpe", 48), ("gp", 20), ("cmaes", 48), ("nsga2", 48)])
def test_adaptive_samplers_beat_random_draws_on_the_mirrored_scale(name: str, n_trials: int) -> None:
    def late_loss(kind: Any) -> float:
        found = search(optuna.create_study(), kind, TWO, n_trials)
        return statistics.median(loss(values) for values in found[-n_trials // 3 :])

    assert late_loss(quick(name)) < 0.5 * late_loss(sampler("random"))


def test_upper_end_is_reached_exactly_and_never_passed() -> None:
    mirror = ComplementLogSampler(Fixed(0.0009999999999), {}, frozenset({"x"}))
    kind = FloatDistribution(0.8, 0.999)
    found = mirror.sample_independent(optuna.create_study(), create_trial(state=TrialState.RUNNING), "x", kind)
    assert found == 0.999


class Fixed(optuna.samplers.RandomSampler):
    """Suggests one value for every parameter."""

    def __init__(self, value: float) -> None:
        super().__init__(seed=0)
        self.value = value

    def sample_independent(self, *asked: Any, **named: Any) -> float:
        return self.value


@pytest.mark.parametrize("kind", [JOINT_TPE, quick("gp"), quick("auto")], ids=lambda kind: kind.name)
def test_running_trials_are_seen_before_their_parameters_are_stored(study: optuna.Study, kind: Any) -> None:
    search(study, kind, TWO, 12)
    opened = []
    for slot in range(6):  # six workers that have drawn jointly and stored nothing yet
        study.sampler = build_sampler(kind, BASE, TWO, seed=slot, study_seed=0)
        opened.append(study.ask())
        assert opened[-1].relative_params.keys() == TWO.keys()
    assert not any(trial.params for trial in opened)

    def next_draw() -> dict[str, Any]:
        study.sampler = build_sampler(kind, BASE, TWO, seed=99, study_seed=0)
        trial = study.ask()
        drawn = dict(trial.relative_params)
        study.tell(trial, state=TrialState.FAIL)
        return drawn

    with_liars = next_draw()
    for trial in opened:
        study.tell(trial, state=TrialState.FAIL)
    assert with_liars != next_draw()


def test_baseline_that_carries_less_leaves_the_others_sampled_jointly(study: optuna.Study) -> None:
    partial = params_in_range(updated(BASE, {"optimizer.beta2": 0.5, "optimizer.lr": 0.01}), TWO)
    assert partial.keys() == {"optimizer.lr"}
    study.add_trial(
        create_trial(
            params={path: value for path, (value, _) in partial.items()},
            distributions={path: kind for path, (_, kind) in partial.items()},
            value=0.1,
        )
    )
    search(study, JOINT_TPE, TWO, 8)
    for ours in build_sampler(JOINT_TPE, BASE, TWO, 1, 1), optuna.samplers.TPESampler(seed=1, n_startup_trials=3):
        study.sampler = ours
        trial = study.ask()
        joint = trial.relative_params.keys()
        assert joint == (TWO.keys() if isinstance(ours, ComplementLogSampler) else {"optimizer.lr"})
        study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize("name", DRAWING)
def test_baseline_outside_the_space_does_not_stop_a_sampler(study: optuna.Study, name: str) -> None:
    odd = create_trial(
        params={"optimizer.lr": 0.5}, distributions={"optimizer.lr": FloatDistribution(1e-4, 1.0, log=True)}, value=0.0
    )
    study.add_trial(odd)
    assert len(search(study, quick(name), TWO, 6)) == 6


def test_trials_opened_and_ended_without_ask_and_tell_see_what_has_finished(study: optuna.Study) -> None:
    for slot in range(5):
        study.sampler = build_sampler(JOINT_TPE, BASE, TWO, slot, 0)
        trial = optuna.Trial(study, study._storage.create_new_trial(study._study_id))
        assert bool(trial.relative_params) == (slot >= 3)
        values = suggest_values(trial, BASE, TWO)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [loss(values)])


def test_univariate_tpe_draws_nothing_jointly(study: optuna.Study) -> None:
    kind = sampler("tpe", startup_trials=2)
    search(study, kind, TWO, 4)
    study.sampler = build_sampler(kind, BASE, TWO, 1, 0)
    assert study.ask().relative_params == {}


@pytest.mark.parametrize("name", DRAWING)
def test_four_workers_started_together_draw_distinct_first_points(study: optuna.Study, name: str) -> None:
    found = []
    for slot in range(4):
        study.sampler = build_sampler(sampler(name), BASE, TWO, seed=slot, study_seed=5)
        found.append(tuple(suggest_values(study.ask(), BASE, TWO).values()))
    assert len({beta2 for beta2, _ in found}) == len({lr for _, lr in found}) == 4


@pytest.mark.parametrize("name", DRAWING)
def test_equal_seeds_and_one_worker_repeat_the_sequence(name: str) -> None:
    first, again, other = (
        search(optuna.create_study(study_name="s"), quick(name), TWO, 6, study_seed) for study_seed in (3, 3, 4)
    )
    assert first == again != other


def test_qmc_points_are_those_of_one_scrambled_sobol_sequence(study: optuna.Study) -> None:
    found = search(study, sampler("qmc"), TWO, 8, study_seed=11)
    with_scipy = scipy.stats.qmc.Sobol(2, scramble=True, seed=11).random(8)
    names = list(unconditional(BASE, TWO))
    for values, row in zip(found, with_scipy, strict=True):
        t = dict(zip(names, row, strict=True))
        mirrored = math.log(1e-4) + t["optimizer.beta2"] * (math.log(0.2) - math.log(1e-4))
        assert math.log(1 - values["optimizer.beta2"]) == pytest.approx(mirrored)
        assert math.log10(values["optimizer.lr"]) == pytest.approx(-4 + 3 * t["optimizer.lr"])


def test_cmaes_refuses_a_space_without_numbers() -> None:
    words = space(optimizer__name={"choices": ["adamw", "sgd"]}, optimizer__beta2=BETA2)
    assert len(sampler("cmaes").problems(BASE, words)) == 1
    assert sampler("cmaes").problems(BASE, TWO) == []


def test_cmaes_searches_a_single_parameter() -> None:
    one = space(optimizer__lr=LR)
    assert len(search(optuna.create_study(), sampler("cmaes"), one, 8)) == 8


def seen_by(kind: Any, study: optuna.Study, from_deepest: bool) -> list[int]:
    view = build_sampler(kind, BASE, TWO, 1, 0, from_deepest=from_deepest).view(study, {})
    return [trial.number for trial in view.get_trials()]


def add_ended(study: optuna.Study, curve: list[float], n: int, lr: float | None = None, **fields: Any) -> list[int]:
    """Add n trials with the same curve and return their numbers: complete at four rungs, otherwise pruned.

    lr: of all of them; each has another one by default.
    """
    first, values = len(study.get_trials()), dict(enumerate(curve, 1))
    ended = {"value": curve[-1]} if len(curve) == 4 else {"state": TrialState.PRUNED}
    numbers = list(range(first, first + n))
    kinds = {"lr": FloatDistribution(0.0, 1e6)}
    for number in numbers:
        params = {"lr": number if lr is None else lr}
        study.add_trial(create_trial(params=params, distributions=kinds, intermediate_values=values, **ended, **fields))
    return numbers


@pytest.mark.parametrize("name", ["auto", "tpe", "gp"])
def test_models_may_learn_only_from_trials_at_the_deepest_rung_that_enough_trials_reached(
    study: optuna.Study, name: str
) -> None:
    kind = sampler(name, startup_trials=4)
    early = add_ended(study, [3.0], 7)
    assert seen_by(kind, study, True) == early  # seven trials are fewer than two times four
    kept = [
        *add_ended(study, [3.0, 2.0], 5),
        *add_ended(study, [3.0, 2.0, 1.5, 1.2], 3),
        *add_ended(study, [math.inf], 1),
        *add_ended(study, [3.0], 1, constraints={"memory": 1.0}),
    ]
    study.add_trials([create_trial(value=2.5), create_trial(state=TrialState.PRUNED)])  # imported; invalid
    running = study.ask().number
    kept += [running - 2, running - 1]
    assert seen_by(kind, study, True) == [*kept, running]
    assert seen_by(kind, study, False) == [*early, *kept, running]


def test_repeated_baselines_count_once_among_the_trials_that_must_have_reached_a_rung(study: optuna.Study) -> None:
    kind, whole = sampler("tpe", startup_trials=2), [3.0, 2.0, 1.5, 1.2]
    baselines = add_ended(study, whole, 6, lr=0.5)
    early = add_ended(study, [3.0], 4)
    assert seen_by(kind, study, True) == baselines + early
    others = add_ended(study, whole, 3)
    assert seen_by(kind, study, True) == baselines + others


@pytest.mark.parametrize("name", ["random", "cmaes", "nsga2", "qmc"])
def test_other_samplers_see_all_trials(study: optuna.Study, name: str) -> None:
    numbers = add_ended(study, [3.0], 30) + add_ended(study, [3.0, 2.0, 1.5, 1.2], 30)
    assert seen_by(sampler(name), study, True) == numbers
