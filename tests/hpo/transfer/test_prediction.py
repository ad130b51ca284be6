"""What a ladder predicts: allowed values, in either direction, whatever the order of the space."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.analysis.export import select_trial
from hpo.search.ranges import Range
from hpo.storage.store import open_store
from hpo.study.load import load_study
from hpo.transfer.fields import Axis, axes_of
from hpo.transfer.fit import estimate
from hpo.transfer.ladder import Ladder, read_ladder
from hpo.transfer.lines import cell_table, prediction_lines
from hpo.transfer.plan import LadderRequest, plan_ladder
from hpo.transfer.prediction import Prediction, fit_ladder, predict
from model.config import TrainConfig
from tests.support.comparisons import run_study
from tests.support.ladders import ladder_search

SPACE = {
    "optimizer.beta2": {"choices": [0.9, 0.95, 0.99]},
    "dropout": {"low": 0.0, "high": 0.4},
    "run.batch_size": {"low": 1, "high": 128, "log": True},
    "optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
}
FAR = {"run.tokens": 256_000}
FLOOR = 2.0 + 1.5 * 256**-0.3  # of the planted law at FAR


def ladder_of(folder: Path, **keys: Any) -> Ladder:
    """Run a search and its ladder."""
    with open_store(f"sqlite:///{folder}/hpo.db", create=True) as store:
        search = run_study(store, load_study(str(ladder_search(folder, budget={"trials": 24}, space=SPACE, **keys))))
        request = LadderRequest("ladder", {"run.tokens": 64_000}, 4, None)
        return read_ladder(run_study(store, plan_ladder(search, select_trial(search, None), request)))


def predicted(ladder: Ladder) -> Prediction:
    return predict(ladder, fit_ladder(ladder), FAR)


def test_predicted_values_are_allowed_and_the_predicted_loss_is_theirs(here: Path) -> None:
    ladder = ladder_of(here)
    prediction = predicted(ladder)
    assert prediction.values["optimizer.beta2"] in (0.9, 0.95, 0.99)
    assert prediction.values["dropout"] == pytest.approx(0.0, abs=0.03)  # the loss grows from there
    ladder.study.configured(prediction.values)
    free = estimate(fit_ladder(ladder), np.array([np.log(FAR["run.tokens"]), 0.0]))
    assert free.x[-1] < 0  # no dropout: the fitted optimum lies outside the range
    assert prediction.value > free.loss
    true = FLOOR + 0.2 * prediction.values["dropout"]
    assert prediction.low < true < prediction.high


def test_a_ladder_that_maximizes_mirrors_its_negative(here: Path) -> None:
    found = []
    for name, sign in (("minimize", 1), ("maximize", -1)):
        (here / name).mkdir()
        base = {"optimizer": {"lr": 0.09}, "sign": sign}
        objective = {"objective": "score", "direction": name}
        ladder = ladder_of(here / name, base=base, **objective)
        found.append((predicted(ladder), cell_table(ladder, fit_ladder(ladder))))
    (least, cells), (most, mirrored) = found
    assert most.value == pytest.approx(-least.value)
    assert (most.low, most.high) == pytest.approx((-least.high, -least.low))
    assert most.regret == pytest.approx(least.regret)
    assert [cell["best"] for cell in mirrored] == pytest.approx([-cell["best"] for cell in cells])
    assert f"predicted score {most.value:.4f} (90 % interval {most.low:.4f} to " in prediction_lines("score", most)[0]


def test_the_order_of_the_space_does_not_decide() -> None:
    ranges = {"optimizer.weight_decay": (1e-3, 1.0), "run.batch_size": (2, 64), "optimizer.lr": (1e-4, 1e-1)}
    space = {path: Range(low=low, high=high, log=True) for path, (low, high) in ranges.items()}
    reverse = dict(reversed(space.items()))
    roles = [[axis.role for axis in axes_of(TrainConfig(), each, {})] for each in (space, reverse)]
    assert roles == [["lr", "batch", "decay"], ["lr", "batch", "decay"]]


def test_values_without_a_place_on_a_scale() -> None:
    log, linear = (Axis("x", scale, 0.1, 4, True) for scale in ("log", "linear"))  # type: ignore[arg-type]
    near_one = Axis("x", "complement_log", 0.9, 0.99, False)
    assert [log.holds(v) for v in (None, 0, -1.0, True, "a", float("nan"), 2)] == [False] * 6 + [True]
    assert linear.holds(0)
    assert [near_one.holds(v) for v in (1.0, 0.0, 0.999)] == [False, True, True]
    assert linear.value(0.2) == 0
    assert log.value(-5.0) == 1
