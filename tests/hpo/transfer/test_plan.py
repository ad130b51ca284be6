"""The runs of a ladder: a design around the copied configuration, in the fields that a law can extrapolate."""

import math
from pathlib import Path

import numpy as np
import pytest

from hpo.analysis.export import select_trial
from hpo.search.ranges import Range
from hpo.storage.store import Store
from hpo.study.load import load_study
from hpo.transfer.cells import Cell
from hpo.transfer.fields import axes_of
from hpo.transfer.plan import SPREAD, LadderRequest, design, plan_ladder
from model.config import TrainConfig
from tests.support.comparisons import run_study
from tests.support.ladders import ladder_search


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """One kind of storage is enough for snapshots."""
    return f"sqlite:///{tmp_path}/hpo.db"


def test_a_design_is_normal_around_the_copied_configuration_and_starts_with_it() -> None:
    space = {"optimizer.lr": Range(low=1e-4, high=1.0, log=True)}
    base = TrainConfig.model_validate({"optimizer": {"lr": 0.01}})
    runs = design(base, axes_of(base, space, {}), space, Cell({"run.tokens": 1_000_000}, 65), 0)
    rates = np.log([run["optimizer.lr"] for run in runs])
    assert runs[0]["optimizer.lr"] == 0.01
    assert rates[1:].mean() == pytest.approx(math.log(0.01), abs=0.05)
    assert rates[1:].std() == pytest.approx(SPREAD * math.log(1e4), rel=0.15)


def test_a_field_whose_copied_value_has_no_place_on_its_scale_keeps_it(store: Store, here: Path) -> None:
    log = {"log": True}
    space = {
        "optimizer.lr": {"low": 1e-3, "high": 1e-1, **log},
        "run.batch_size": {"low": 1, "high": 128, **log},
        "dropout": {"low": 0.01, "high": 0.4, **log},
    }
    baseline = {"optimizer.lr": 0.01, "run.batch_size": 8, "dropout": 0.0}  # the best of all
    keys = {"space": space, "baseline": [baseline], "base": {"optimizer": {"lr": 0.09}, "noise": 0.0}}
    snapshot = run_study(store, load_study(str(ladder_search(here, **keys))))
    best = select_trial(snapshot, None)
    assert best.number == 0
    ladder = plan_ladder(snapshot, best, LadderRequest("zero", {"run.tokens": 64_000}, 4, None))
    assert list(ladder.file.space) == ["optimizer.lr", "run.batch_size"]
    assert ladder.base.dropout == 0.0  # type: ignore[attr-defined]
