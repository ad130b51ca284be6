"""`hpo compare A B` shows how two studies or two trials differ, and tests the difference where both have seeds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.evidence.two_sided import welch
from hpo.storage.store import Store, open_store
from hpo.study.load import load_study
from tests.support.command import run_in_process
from tests.support.comparisons import run_study
from tests.support.planted import edit
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


def search(store: Store, folder: Path, name: str = "planted", **keys: Any) -> Snapshot:
    """Search a function whose loss decreases with the length of a run; the length is 1,000 tokens."""
    path = planted(folder, name, baseline_seeds=3, base={"noise": 0.01}, budget={"trials": 5}, **keys)
    lines = "class Run(BaseModel):\n    tokens: int = 1000\n    align: int = 1\n\n\nclass Config(BaseModel):\n"
    edit(folder, "class Config(BaseModel):\n", f"{lines}    run: Run = Run()\n")
    edit(folder, "yield rung, 1.0 + config.x", "yield rung, 1000 / config.run.tokens + config.x")
    return run_study(store, load_study(str(path)))


def confirm(store: Store, snapshot: Snapshot, tokens: int | None, **about: Any) -> Snapshot:
    request = ConfirmRequest(
        study=None, top=1, seeds=4, tokens=tokens, name=None, test=None, sequential="sequential" in about
    )
    study = plan_confirmation(snapshot, f"{snapshot.name}-confirm", request, 1000)
    rule = {"rule": about["rule"]} if "rule" in about else {}
    file = study.file.model_copy(update={"about": {**study.file.about, **rule}})
    return run_study(store, replace(study, file=file))


def paired_p(confirmation: Snapshot) -> float:
    arms = confirmation.spec["arms"]
    a, b = ([t.values[0] for t in confirmation.trials if t.user_attrs["arm"] == arm] for arm in arms)
    return float(stats.ttest_rel(b, a).pvalue)


@pytest.mark.parametrize("tokens", [None, 10_000])
def test_a_confirmed_trial_and_the_baseline_are_compared_by_the_pairs_of_the_confirmation(
    here: Path, tokens: int | None
) -> None:
    with open_store("runs/hpo.db", create=True) as store:
        snapshot = search(store, here)
        confirmation = confirm(store, snapshot, tokens)
        (number,) = confirmation.spec["about"]["trials"].values()
        baseline = snapshot.baseline_runs[0].number
    text = compared(here, str(baseline), f"planted:{number}", "--study", "planted")["verdict"]
    length = f"{tokens or 1000:,} tokens"
    assert text.startswith("B is better: B - A -0.")
    assert text.endswith(f"p {paired_p(confirmation):.2g}, paired t test, 4 pairs (planted-confirm, {length})")


def test_runs_of_different_lengths_are_not_compared(here: Path) -> None:
    """Study two has no runs at the length of the confirmation of study one."""
    with open_store("runs/hpo.db", create=True) as store:
        one = search(store, here, "one")
        search(store, here, "two")
        confirmation = confirm(store, one, 10_000)
        (number,) = confirmation.spec["about"]["trials"].values()
        repeat = one.baseline_runs[1].number
        arm = next(t.number for t in confirmation.trials if t.user_attrs["arm"] != "baseline")
    record = compared(here, "one", "two")
    assert record["best trials"] == (
        "no verdict: A has 4 complete runs and B has 1 complete run, and both need runs of at least two seeds"
    )
    assert "p 1, paired t test, 3 pairs" in record["baselines"], "the runs of the confirmation are ignored"
    assert compared(here, f"one-confirm:{arm}", "two:0")["verdict"] == (
        "no verdict: A has 4 complete runs of 10,000 tokens in one-confirm; B has 3 complete runs of 1,000 tokens in "
        "two. Only runs of the same length can be compared, and only with the values of the trials"
    )
    assert "4 pairs (one-confirm, 10,000 tokens)" in compared(here, f"one:{number}", f"one:{repeat}")["verdict"]
    with open_store("runs/hpo.db") as store:
        confirm(store, read_snapshot(store, "two"), 10_000)
    both = compared(here, "one", "two")
    assert "(one-confirm and two-confirm, 10,000 tokens)" in both["best trials"]


def test_values_that_a_rule_has_changed_are_not_compared(here: Path) -> None:
    with open_store("runs/hpo.db", create=True) as store:
        snapshot = search(store, here)
        confirmation = confirm(store, snapshot, 10_000, rule="nanochat")
        (number,) = confirmation.spec["about"]["trials"].values()
    text = compared(here, "0", str(number), "--study", "planted")["verdict"]
    assert text.startswith("no verdict: A has 4 complete runs of 10,000 tokens in planted-confirm, with values of the ")
    assert "rule nanochat" in text


def test_a_test_of_runs_that_stopped_early_is_noted(here: Path) -> None:
    with open_store("runs/hpo.db", create=True) as store:
        snapshot = search(store, here)
        confirmation = confirm(store, snapshot, None, sequential=True)
        (number,) = confirmation.spec["about"]["trials"].values()
    text = compared(here, "0", str(number), "--study", "planted")["verdict"]
    assert "; planted-confirm stopped as soon as its results decided, so p is too small: `hpo status --study " in text


def test_welch_test_equals_that_of_statsmodels() -> None:
    a, b = [1.0, 1.2, 0.9], [1.5, 1.3, 1.7, 1.9]
    reference = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    found = welch(a, b)
    assert found.p == pytest.approx(reference.ttest_ind(usevar="unequal")[1])
    assert (found.low, found.high) == pytest.approx(reference.tconfint_diff(usevar="unequal"))
