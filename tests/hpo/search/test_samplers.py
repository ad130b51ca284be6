"""Samplers: what they see, what is stored, and that parallel workers neither repeat nor miss a point."""

import itertools
import math
import pickle
import statistics
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import pytest
import scipy.stats
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import Field, TypeAdapter

from hpo.errors import Problem
from hpo.search.complement_log import ComplementLogSampler
from hpo.search.optuna_samplers import _as_complete
from hpo.search.ranges import Space, is_inside
from hpo.search.sampler_config import Seeds
from hpo.search.samplers import Sampler, build_sampler
from hpo.search.space import params_in_range, space_problems, suggest_values, unconditional
from model.section import Count, Decay, Fraction, Positive, Section, updated


class AdamW(Section):
    name: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    beta2: Decay = 0.95


class SGD(Section):
    name: Literal["sgd"] = "sgd"
    lr: Positive = 0.1
    momentum: Decay = 0.9


class Run(Section):
    batch_size: Count = 8
    dropout: Fraction = 0.0
    decay: Decay = 0.99


class Config(Section):
    optimizer: Annotated[AdamW | SGD, Field(discriminator="name")] = AdamW()
    run: Run = Run()


BASE = Config()
BETA2 = {"low": 0.8, "high": 0.9999, "complement_log": True}
LR = {"low": 1e-4, "high": 1e-1, "log": True}
ADAPTIVE = ["auto", "tpe", "gp", "cmaes", "nsga2"]
DRAWING = [*ADAPTIVE, "random", "qmc"]


def space(**entries: Any) -> Space:
    return TypeAdapter(Space).validate_python({k.replace("__", "."): v for k, v in entries.items()})


def sampler(name: str, **fields: Any) -> Any:
    return TypeAdapter(Sampler).validate_python({"name": name, **fields})


def quick(name: str) -> Any:
    """A sampler that leaves its random phase early."""
    if name == "nsga2":
        return sampler(name, population=4)
    return sampler(name, startup_trials=3) if name in ADAPTIVE else sampler(name)


JOINT_TPE = sampler("tpe", startup_trials=3, multivariate=True)
TWO = space(optimizer__beta2=BETA2, optimizer__lr=LR)
MIXED = space(
    optimizer__name={"choices": ["adamw", "sgd"]},
    optimizer__beta2=BETA2,
    optimizer__momentum={"low": 0.0, "high": 0.9},
    optimizer__lr=LR,
    run__batch_size={"low": 1, "high": 16},
    run__dropout={"low": 0.0, "high": 0.3, "step": 0.1},
    run__decay=BETA2,
)


def loss(values: dict[str, Any]) -> float:
    """Least at 1 - beta2 = 0.003 and lr = 0.003, a bowl in the logarithms."""
    fields = {"optimizer.beta2": 0.9, "run.decay": 0.997} | values
    return sum(
        (math.log10(x) - math.log10(0.003)) ** 2
        for x in (1 - fields["optimizer.beta2"], 1 - fields["run.decay"], fields["optimizer.lr"])
    )


def search(study: optuna.Study, kind: Any, varied: Space, n_trials: int, study_seed: int = 7) -> list[dict[str, Any]]:
    """What a worker does, without the training."""
    found = []
    for slot in range(n_trials):
        study.sampler = build_sampler(kind, BASE, varied, seed=1000 * study_seed + slot, study_seed=study_seed)
        trial = study.ask()
        found.append(suggest_values(trial, BASE, varied))
        study.tell(trial, loss(found[-1]))
    return found


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


def test_cmaes_refuses_a_space_without_numbers() -> None:
    words = space(optimizer__name={"choices": ["adamw", "sgd"]}, optimizer__beta2=BETA2)
    assert len(sampler("cmaes").problems(BASE, words)) == 1
    assert sampler("cmaes").problems(BASE, TWO) == []


def test_cmaes_searches_a_single_parameter() -> None:
    one = space(optimizer__lr=LR)
    assert len(search(optuna.create_study(), sampler("cmaes"), one, 8)) == 8


class _Opens:
    """An object whose pickle runs code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_cmaes_runs_no_code_that_another_program_put_into_its_stored_state(tmp_path: Path) -> None:
    study = optuna.create_study()
    search(study, sampler("cmaes", population=4), TWO, 12)
    stored = [t for t in study.get_trials() if any(":optimizer:" in key for key in t.system_attrs)]
    assert len(stored) >= 2, "the state is stored after each generation, and read again by the next one"
    planted = pickle.dumps(_Opens(tmp_path / "ran")).hex()
    for key in stored[-1].system_attrs:  # the state is split into several attributes
        if ":optimizer:" in key:
            stored[-1].system_attrs[key] = planted if key.endswith(":0") else ""
    with pytest.raises(Problem, match=r"cannot be used \(it must not contain (io|_io).open\)"):
        sampler("cmaes").build(Seeds(0, 0))._restore_optimizer(stored)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "cmaes", "qmc", "nsga2"])
def test_only_listing_samplers_have_combinations(name: str) -> None:
    assert sampler(name).combinations(BASE, TWO) is None


def crowd(n: int) -> optuna.Study:
    """Complete and pruned trials of all qualities, in no order."""
    study = optuna.create_study()
    kind = FloatDistribution(0.0, 1.0)
    for i in range(n):
        x = (i * 0.618034) % 1
        state = TrialState.PRUNED if i % 2 else TrialState.COMPLETE
        value = {"value": x} if state == TrialState.COMPLETE else {"intermediate_values": {1 + i % 3: x}}
        study.add_trial(create_trial(state=state, params={"x": x}, distributions={"x": kind}, **value))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.ask()
    return study


def shown(study: optuna.Study, history: int | None) -> list[FrozenTrial]:
    mirror = ComplementLogSampler(optuna.samplers.TPESampler(seed=0), {}, frozenset(), history)
    return mirror.view(study, {"x": FloatDistribution(0.0, 1.0)}).get_trials(deepcopy=False)


def test_history_shows_the_best_and_the_latest_and_all_that_run() -> None:
    study = crowd(400)
    found = shown(study, 100)
    numbers = [t.number for t in found]
    assert numbers == sorted(numbers)
    assert [t.number for t in found if t.state == TrialState.RUNNING] == [401]
    assert len(found) == 100 + 1
    complete = sorted((t for t in study.trials if t.state == TrialState.COMPLETE), key=lambda t: t.values[0])
    assert {t.number for t in complete[:50]} <= set(numbers)
    assert set(range(400 - 25, 400)) <= set(numbers)
    assert len(shown(study, None)) == len(shown(study, 400)) == 400 + 1


@pytest.mark.parametrize("n_complete", [400, 0])
def test_history_leaves_the_trials_that_tpe_takes_for_good_as_they_are(n_complete: int) -> None:
    study = crowd(400)
    keep = [t for t in study.trials if n_complete or t.state == TrialState.PRUNED]
    study = optuna.create_study()
    study.add_trials(keep)
    whole, part = shown(study, None), shown(study, 100)
    n_good = default_gamma(len(whole))
    good, _ = _split_trials(study, [t for t in whole if t.state != TrialState.FAIL], n_good)
    still, rest = _split_trials(study, part, n_good)
    assert {t.number for t in good} == {t.number for t in still}
    assert rest


def test_cmaes_draws_the_same_whether_it_is_shown_all_trials_or_the_last_ones() -> None:
    def drawn(history: int | None) -> list[dict[str, Any]]:
        study, found, opened = optuna.create_study(study_name="s"), [], []
        for slot in range(150):
            mirror = build_sampler(sampler("cmaes"), BASE, TWO, slot, 0)
            assert isinstance(mirror, ComplementLogSampler)
            mirror.history = history
            study.sampler = mirror
            opened.append(study.ask())
            found.append(suggest_values(opened[-1], BASE, TWO))
            if len(opened) > 4:
                study.tell(trial := opened.pop(slot % 3), loss(trial.params))
        return found

    assert drawn(None) == drawn(60)
    assert sampler("cmaes", population=80).recall() == 800


@pytest.mark.parametrize(("ours", "stays"), [(True, False), (False, True)], ids=["ours", "optuna's own"])
def test_process_goes_away_from_where_a_trial_was_pruned(ours: bool, stays: bool) -> None:
    study = optuna.create_study()
    kind = {"x": FloatDistribution(0.0, 1.0)}
    for x in (0.1, 0.3, 0.5):
        study.add_trial(create_trial(value=-x, params={"x": x}, distributions=kind))
    found = []
    for seed in range(4):
        inner = sampler("gp", startup_trials=2).build(Seeds(seed, 0))
        if not ours:
            inner = optuna.samplers.GPSampler(seed=seed, n_startup_trials=2)
        study.sampler = ComplementLogSampler(inner, kind, frozenset())
        trial = study.ask()
        found.append(trial.suggest_float("x", 0.0, 1.0))
        trial.report(1.0, 1)
        study.tell(trial, state=TrialState.PRUNED)
    assert all(abs(x - found[0]) < 1e-3 for x in found[1:]) == stays


def test_process_is_told_the_worst_value_of_a_trial_pruned_without_one() -> None:
    study = optuna.create_study()
    for values in (1.0, 3.0):
        study.add_trial(create_trial(value=values))
    study.add_trial(create_trial(state=TrialState.PRUNED, value=2.0))
    study.add_trial(create_trial(state=TrialState.PRUNED))
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.ask()
    told = _as_complete(study.get_trials())
    assert [t.values and t.values[0] for t in told] == [1.0, 3.0, 2.0, 3.0, None, None]
    assert [t.state for t in told] == [TrialState.COMPLETE] * 4 + [TrialState.FAIL, TrialState.RUNNING]
    assert [t.state for t in study.trials][2:4] == [TrialState.PRUNED] * 2
