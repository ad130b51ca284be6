"""`hpo compare A B` shows how two studies or two trials differ, and tests the difference where both have seeds."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.evidence.two_sided import welch
from hpo.storage.store import open_store
from hpo.study.load import load_study
from tests.support.command import run_in_process
from tests.support.comparisons import run_study
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


def compared(folder: Path, *arguments: str) -> Any:
    return json.loads(run_in_process("compare", *arguments, "--format", "json", cwd=folder))


def test_trials_of_arms_are_compared_by_the_runs_of_their_seeds(here: Path) -> None:
    arms = {"low": {"x": 0.1}, "high": {"x": 0.4}}
    tree = {"train": "curves:train", "config": "curves:Config", "rungs": 4, "arms": arms, "seeds": [1, 2, 3, 4]}
    path = planted(here)
    path.write_text(dump_yaml({**tree, "base": {"noise": 0.05}}))
    with open_store("runs/hpo.db", create=True) as store:
        snapshot = run_study(store, load_study(str(path)))
        runs = sorted(snapshot.trials, key=lambda t: t.user_attrs["seed"])
        by_arm = {arm: [t.values[0] for t in runs if t.user_attrs["arm"] == arm] for arm in arms}
        a, b = (next(t.number for t in snapshot.trials if t.user_attrs["arm"] == arm) for arm in arms)
        curves = [snapshot.trials[n].intermediate_values for n in (a, b)]
    record = compared(here, str(a), str(b))
    assert record["differences"] == [{"field": "x", "A": 0.1, "B": 0.4}]
    assert [row["B - A"] for row in record["curves"]] == pytest.approx(
        [curves[1][r] - curves[0][r] for r in (1, 2, 3, 4)]
    )
    p = stats.ttest_rel(by_arm["high"], by_arm["low"]).pvalue
    assert f"p {p:.2g}, paired t test, 4 pairs" in record["verdict"]
    assert record["verdict"].startswith("B is worse: B - A +0.")
    assert compared(here, str(b), f"planted:{a}")["verdict"].startswith("B is better: B - A -0.")


def test_studies_are_compared_by_their_files_best_trials_and_baselines(here: Path) -> None:
    with open_store("runs/hpo.db", create=True) as store:
        for name, x, n in (("one", 0.5, 5), ("two", 0.9, 4)):
            keys: dict[str, Any] = {"base": {"x": x, "noise": 0.01}, "baseline_seeds": 3, "budget": {"trials": n}}
            run_study(store, load_study(str(planted(here, name, **keys))))
    record = compared(here, "one", "two")
    assert {"field": "base.x", "A": 0.5, "B": 0.9} in record["differences"]
    assert {"field": "budget.trials", "A": 5, "B": 4} in record["differences"]
    assert record["baselines"].startswith("B is worse: B - A +0.")
    assert "paired t test, 3 pairs" in record["baselines"]
    text = run_in_process("compare", "one", "two", cwd=here)
    assert "A: study one, best trial" in text
    assert len([line for line in text.splitlines() if line.startswith(("A  ", "B  "))]) == 2, "sparklines"


def test_study_is_not_compared_with_a_trial(here: Path) -> None:
    with open_store("runs/hpo.db", create=True) as store:
        run_study(store, load_study(str(planted(here, budget={"trials": 1}))))
    with pytest.raises(Problem, match="must be two studies or two trials, got planted and 0"):
        run_in_process("compare", "planted", "0", cwd=here)
    with pytest.raises(Problem, match="has no trial 7"):
        run_in_process("compare", "0", "planted:7", cwd=here)
    assert "both need runs of at least two seeds" in compared(here, "0", "0")["verdict"]


def test_welch_test_equals_that_of_statsmodels() -> None:
    a, b = [1.0, 1.2, 0.9], [1.5, 1.3, 1.7, 1.9]
    reference = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    found = welch(a, b)
    assert found.p == pytest.approx(reference.ttest_ind(usevar="unequal")[1])
    assert (found.low, found.high) == pytest.approx(reference.tconfint_diff(usevar="unequal"))
