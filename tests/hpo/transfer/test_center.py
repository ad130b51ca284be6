"""The point around which a ladder is designed: a fit to all trials of the search that can be compared."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.analysis.export import configuration, select_trial
from hpo.analysis.snapshot import Snapshot
from hpo.search.ranges import Range
from hpo.storage.store import Store
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.study.stored import study_from_spec
from hpo.transfer.cells import Cell
from hpo.transfer.center import MIN_TRIALS, fitted_center
from hpo.transfer.fields import axes_of
from hpo.transfer.plan import SPREAD, LadderRequest, design, ladder_base, plan_ladder
from model.config import TrainConfig
from model.section import flat
from tests.support.comparisons import run_study
from tests.support.ladders import ladder_search

BEST = {"optimizer.lr": 0.01, "run.batch_size": 8}  # of the law of ladder_search at 1,000 tokens
NOISE = {"optimizer": {"lr": 0.09}, "noise": 0.05}  # as much as a learning rate that is wrong by a factor of e
NUMBERS = {
    "optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
    "run.batch_size": {"low": 1, "high": 128, "log": True},
}


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """One kind of storage is enough for snapshots."""
    return f"sqlite:///{tmp_path}/hpo.db"


def search_of(store: Store, folder: Path, name: str, trials: int, **keys: Any) -> Snapshot:
    keys = {"base": NOISE, "space": NUMBERS, "budget": {"trials": trials}, **keys}
    return run_study(store, load_study(str(ladder_search(folder, name, **keys))))


def center_of(snapshot: Snapshot) -> tuple[dict[str, float], dict[str, float]]:
    """Return the center of a ladder and the values of the best trial."""
    search = study_from_spec(snapshot.spec, snapshot.name)
    copied = configuration(search, select_trial(snapshot, None))
    axes = ladder_base(search, copied)[1]
    values = flat(copied)
    return fitted_center(snapshot, search, copied, axes), {axis.path: values[axis.path] for axis in axes}


def excess(values: Mapping[str, float]) -> float:
    u, v = (math.log(values[path] / best) for path, best in BEST.items())
    return 0.05 * (u - 0.3 * v) ** 2 + 0.03 * v * v


def test_the_center_of_a_noisy_search_is_nearer_to_the_optimum_than_its_best_trial(store: Store, here: Path) -> None:
    found = [center_of(search_of(store, here, f"noisy{seed}", 24, seed=seed)) for seed in (1, 2, 3, 4)]
    centers, best = (float(np.mean([excess(values) for values in column])) for column in zip(*found, strict=True))
    assert centers < best / 2


def test_trials_that_differ_in_a_field_that_is_no_number_do_not_count(store: Store, here: Path) -> None:
    both = NUMBERS | {"kind": {"choices": ["plain", "wrong"]}}  # "wrong" adds 1.0 to each loss
    snapshot = search_of(store, here, "kinds", 40, space=both)
    center, _ = center_of(snapshot)
    assert excess(center) < 0.02
    few = search_of(store, here, "few", MIN_TRIALS + 2, space=both)
    same = sum(trial.params["kind"] == select_trial(few, None).params["kind"] for trial in few.trials)
    assert same < MIN_TRIALS
    center, best = center_of(few)
    assert center == best


def test_the_product_of_both_factors_of_the_batch_decides(store: Store, here: Path) -> None:
    both = NUMBERS | {"run.grad_accum": {"low": 1, "high": 8}}
    snapshot = search_of(store, here, "both", 40, space=both, base={**NOISE, "noise": 0.01})
    center = center_of(snapshot)[0]
    accumulated = select_trial(snapshot, None).params["run.grad_accum"]
    assert set(center) == {"optimizer.lr", "run.batch_size"}
    assert excess(center | {"run.batch_size": center["run.batch_size"] * accumulated}) < 0.02


def test_trials_whose_values_have_no_place_on_the_scale_do_not_count(store: Store, here: Path) -> None:
    space = NUMBERS | {"dropout": {"low": 0.01, "high": 0.4, "log": True}}
    baseline = {"optimizer.lr": 0.01, "run.batch_size": 8, "dropout": 0.0}  # the best of all
    snapshot = search_of(store, here, "zero", 12, space=space, baseline=[baseline], base={**NOISE, "noise": 0.0})
    best = select_trial(snapshot, None)
    assert best.number == 0
    ladder = plan_ladder(snapshot, best, LadderRequest("zero-transfer", {"run.tokens": 64_000}, 4, None))
    assert list(ladder.file.space) == ["optimizer.lr", "run.batch_size"]
    others = [trial for trial in snapshot.in_state(State.COMPLETE) if trial.number]
    search = study_from_spec(snapshot.spec, snapshot.name)
    copied = configuration(search, others[0])
    assert "dropout" in fitted_center(snapshot, search, copied, ladder_base(search, copied)[1])


def test_a_search_with_few_trials_keeps_the_copied_configuration(store: Store, here: Path) -> None:
    center, best = center_of(search_of(store, here, "short", MIN_TRIALS - 1))
    assert center == best
    center, best = center_of(search_of(store, here, "enough", MIN_TRIALS))
    assert center != best


def test_the_runs_of_a_planned_ladder_lie_around_the_center_and_start_with_the_copy(store: Store, here: Path) -> None:
    snapshot = search_of(store, here, "planned", 24)
    center, best = center_of(snapshot)
    request = LadderRequest("planned-transfer", {"run.tokens": 64_000}, 4, None)
    ladder = plan_ladder(snapshot, select_trial(snapshot, None), request)
    assert ladder.file.about["center"] == center
    assert ladder.file.about["copied"] == best
    runs = ladder.file.sampler.values  # type: ignore[union-attr]
    firsts = [run for run in runs if all(run[path] == best[path] for path in best)]
    assert len(firsts) == len(ladder.file.about["cells"])
    rates = np.log([run["optimizer.lr"] for run in runs if run not in firsts])
    spread = SPREAD * math.log(100) / math.sqrt(len(rates))
    assert abs(rates.mean() - math.log(center["optimizer.lr"])) < 2 * spread


def test_a_design_is_normal_around_its_center() -> None:
    space = {"optimizer.lr": Range(low=1e-4, high=1.0, log=True)}
    base = TrainConfig.model_validate({"optimizer": {"lr": 0.5}})
    axes = axes_of(base, space, {})
    runs = design(base, axes, space, Cell({"run.tokens": 1_000_000}, 65), {"optimizer.lr": 0.01}, 0)
    rates = np.log([run["optimizer.lr"] for run in runs])
    assert runs[0]["optimizer.lr"] == 0.5
    assert rates[1:].mean() == pytest.approx(math.log(0.01), abs=0.05)
    assert rates[1:].std() == pytest.approx(SPREAD * math.log(1e4), rel=0.15)
