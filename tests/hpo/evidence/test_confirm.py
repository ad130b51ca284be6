"""`hpo confirm`: which configurations it re-runs, on which seeds, and what it concludes."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import parse_yaml
from hpo.errors import NothingFeasible, Problem
from hpo.evidence.comparison import existing_study, first_new_seed
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation, ranked_trials
from hpo.evidence.confirm_verdicts import confirmation_table, confirmation_verdicts
from hpo.evidence.paired import compare_arms
from hpo.evidence.preferred import trial_to_export
from hpo.storage.attributes import SPEC
from hpo.storage.store import Store, open_store
from hpo.storage.studies import resolve_study_name
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.study.stored import study_from_spec
from tests.support.command import hpo, until
from tests.support.comparisons import run_search, run_study
from tests.support.planted import edit
from tests.support.planted import planted_study as planted
from tests.support.postgres import Postgres

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """One kind of storage is enough for snapshots."""
    return f"sqlite:///{tmp_path}/hpo.db"


def request(**keys: Any) -> ConfirmRequest:
    return ConfirmRequest(
        **{"study": None, "top": None, "seeds": None, "tokens": None, "name": None, "test": None, **keys}
    )


def confirmed(store: Store, snapshot: Snapshot, **keys: Any) -> Snapshot:
    name = f"{snapshot.name}-confirm"
    return run_study(store, plan_confirmation(snapshot, name, request(**keys), first_new_seed(store, snapshot)))


def test_the_best_and_the_baseline_are_run_again_with_equal_seeds_that_the_search_never_had(
    here: Path, store: Store
) -> None:
    snapshot = run_search(store, here, {}, baseline_seeds=3)
    confirmation = confirmed(store, snapshot, top=2, seeds=4)
    best = sorted((t for t in snapshot.trials if t.user_attrs["kind"] == "search"), key=lambda t: t.values[0])[:2]
    assert confirmation.spec["arms"] == {"baseline": {}} | {f"trial {t.number}": t.params for t in best}
    assert confirmation.spec["seeds"] == [1000, 1001, 1002, 1003]
    used = {t.user_attrs["hpo:set"]["seed"] for t in snapshot.trials if t.user_attrs["kind"] == "seed"}
    assert used == {1, 2}
    assert [(t.user_attrs["arm"], t.user_attrs["seed"]) for t in confirmation.trials[:3]] == [
        (arm, 1000) for arm in confirmation.spec["arms"]
    ]
    assert {t.state for t in confirmation.trials} == {State.COMPLETE}


def test_a_second_confirmation_has_seeds_of_its_own(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {})
    confirmed(store, snapshot, top=1, seeds=3)
    assert first_new_seed(store, snapshot) == 1003


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        ({"base": {"noise": 0.05, "seed": 1000}, "baseline_seeds": 2}, 1002),
        ({"base": {"noise": 0.05}, "baseline": [{"seed": 2000}]}, 2001),
        ({"base": {"noise": 0.05}, "space": {"x": {"low": 0.0, "high": 1.0}, "seed": {"choices": [5, 3000]}}}, 3001),
    ],
    ids=["noise floor", "baseline", "searched"],
)
def test_no_seed_of_the_search_is_fresh(here: Path, store: Store, keys: dict[str, Any], first: int) -> None:
    path = planted(here, pruner={"name": "none"}, **keys)
    study = replace(load_study(str(path)), objections=())  # as a study of version 0.1, which may search a seed
    snapshot = run_study(store, study)
    assert first_new_seed(store, snapshot) == first


def test_an_arm_of_which_too_few_runs_are_left_is_never_better(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {})
    failing = "if config.seed > 1001 and config.x != 0.5:\n        1 / 0\n    for rung in"
    edit(here, "for rung in", failing)
    confirmation = confirmed(store, snapshot, top=1, seeds=8)
    baseline, arm = compare_arms(confirmation)
    assert (baseline.lost, arm.n, arm.lost, arm.verdict) == (0, 2, 6, "worse: runs lost")
    assert "not find better" in trial_to_export(store, snapshot)[1]


def test_a_baseline_that_loses_its_runs_is_reported(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {})
    failing = "if config.seed > 1001 and config.x == 0.5:\n        yield 1, float('nan')\n    for rung in"
    edit(here, "for rung in", failing)
    baseline, arm = compare_arms(confirmed(store, snapshot, top=1, seeds=4))
    assert (baseline.lost, arm.lost, arm.verdict) == (2, 0, "better: the reference lost runs")


def test_a_longer_run_does_not_meet_the_time_limit_of_the_search(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {}, limits={"seconds": 100, "memory_gb": 3})
    limits = plan_confirmation(snapshot, "c", request(), 1000).file.limits
    assert (limits.seconds, limits.memory_gb) == (None, 3)


def test_a_name_that_is_none_is_refused_before_anything_is_made(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {}, budget={"trials": 1})
    for name in ("a/b", "../esc", "..", " ", "x" * 200, "c.yaml"):
        with pytest.raises(Problem, match="--as: must be a name"):
            existing_study(store, name, "confirms", snapshot)


def test_what_was_suggested_twice_and_the_baseline_itself_are_confirmed_once(here: Path, store: Store) -> None:
    space = {"x": {"choices": [0.5, 0.2]}}
    snapshot = run_search(store, here, {"noise": 0.0}, space=space, sampler={"name": "random"})
    assert [t.params for t in ranked_trials(snapshot, study_from_spec(snapshot.spec))] == [{"x": 0.2}]


def test_verdicts_give_the_difference_on_fresh_seeds_beside_what_the_search_saw(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {"noise": 0.05})
    confirmation = confirmed(store, snapshot, top=1, seeds=6)
    arm = list(confirmation.spec["arms"])[1]
    value = {(t.user_attrs["arm"], t.user_attrs["seed"]): t.values[0] for t in confirmation.trials}
    pairs = [value[arm, s] - value["baseline", s] for s in confirmation.spec["seeds"]]
    (row,) = compare_arms(confirmation)[1:]
    assert row.difference is not None
    assert row.difference.mean == pytest.approx(np.mean(pairs))
    best, baseline = snapshot.best(), snapshot.baseline()
    assert best is not None
    assert baseline is not None
    gain = best.values[0] - baseline.values[0]
    (sentence,) = confirmation_verdicts(confirmation)
    assert sentence.startswith(f"{arm}: better: paired difference {np.mean(pairs):.4f} from the baseline (95 % ")
    assert f"the difference in the search was {gain:.4f}, of which {np.mean(pairs) / gain:.0%} remains" in sentence
    assert [record["search"] for record in confirmation_table(confirmation)] == [baseline.values[0], best.values[0]]
    assert "test split" not in sentence, "the training function reports no result on a test split"
    assert not any("loss" in record for record in confirmation_table(confirmation))


def test_configuration_that_was_lucky_is_not_called_better(here: Path, store: Store) -> None:
    """The space has no effect, so the best trial of the search is only lucky."""
    path = planted(here, base={"noise": 0.1}, pruner={"name": "none"})
    edit(here, "1.0 + config.x", "1.0")
    snapshot = run_study(store, load_study(str(path)))
    confirmation = confirmed(store, snapshot, top=3, seeds=5)
    assert {row.verdict for row in compare_arms(confirmation)[1:]} == {"no difference shown"}
    luckiest = confirmation_table(confirmation)[1]
    assert luckiest["search"] < luckiest["mean"], "the minimum of noisy values is biased"


def test_nothing_to_confirm_is_status_3(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {}, budget={"trials": 1})
    with pytest.raises(NothingFeasible, match="no trial is complete except the baseline"):
        plan_confirmation(snapshot, "c", request(), 1000)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seeds": 2}, "--seeds: must be at least 3, or no difference between 2 configurations"),
        ({"seeds": 6, "test": "wilcoxon"}, "--seeds: must be at least 7, .* significant in a wilcoxon test; got 6"),
        ({"tokens": 5000}, "--tokens: must be left out, since the config has no field run.tokens"),
    ],
    ids=["t", "wilcoxon", "tokens"],
)
def test_what_cannot_be_shown_is_refused_with_what_is_needed(
    here: Path, store: Store, keys: dict[str, Any], message: str
) -> None:
    snapshot = run_search(store, here, {})
    with pytest.raises(Problem, match=message):
        plan_confirmation(snapshot, "c", request(top=2, **keys), 1000)


def test_a_comparison_is_no_search_to_confirm(here: Path, store: Store) -> None:
    confirmation = confirmed(store, run_search(store, here, {}), top=1, seeds=3)
    with pytest.raises(
        Problem, match="--study: must be a search, got planted-confirm, whose arms are already compared"
    ):
        plan_confirmation(confirmation, "c", request(), 1000)


def test_a_name_that_is_taken_by_another_study_is_refused(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {})
    with pytest.raises(Problem, match="--as: must not be the name of another study in the storage, got 'planted'"):
        existing_study(store, "planted", "confirms", snapshot)


def test_confirm_is_run_by_workers_continues_after_an_interruption_and_keeps_its_plan(
    here: Path, postgres: Postgres
) -> None:
    storage_url = postgres.url(postgres.database("with_tables"))
    path = planted(here, base={"noise": 0.05, "pause": 0.05}, budget={"trials": 6})
    common = ["--storage", storage_url]
    hpo("launch", "--study", str(path), "--quiet", *common, cwd=here)
    words = [sys.executable, "-m", "hpo", "confirm", "--study", "planted", "--top", "1", "--seeds", "8", *common]
    process = subprocess.Popen([*words, "--plain"], cwd=here, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with open_store(storage_url) as store:
        assert until(lambda: _complete(store, "planted-confirm") >= 2, 60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "hpo launch --study planted-confirm" in stderr
    page = hpo("report", "--study", "planted", "--json", "r.json", "--no-publish", *common, cwd=here)
    assert "not finished, " in (here / "r.json").read_text(), page.stderr
    other = hpo("confirm", "--study", "planted", "--seeds", "9", *common, cwd=here, status=2)
    assert (
        "--seeds: must be 8, with which study planted-confirm was started, got 9; `--as NAME` starts another"
        in other.stderr
    )
    done = hpo("confirm", "--study", "planted", "--format", "json", "--workers", "2", *common, cwd=here)
    records = json.loads(done.stdout)
    assert [record["runs"] for record in records] == [8, 8]
    assert "from the baseline (95 % confidence interval" in done.stderr
    with open_store(storage_url) as store:
        snapshot = read_snapshot(store, "planted-confirm")
        assert len(snapshot.trials) == 16
        assert store.optuna.get_study_user_attrs(1)[SPEC]["name"] == "planted"
    hpo("enqueue", "--set", "x=0.0", "--study", "planted", *common, cwd=here)
    hpo("worker", "--study", "planted", *common, cwd=here)
    again = hpo("confirm", "--study", "planted", "--format", "json", *common, cwd=here)
    assert json.loads(again.stdout) == records
    assert "note: trial 6 is among the best only since planted-confirm was started" in again.stderr
    assert "note: trial" not in done.stderr


def test_gpt_is_confirmed_at_full_length_on_both_splits(here: Path) -> None:
    from tests.support.planted import gpt_study

    path = gpt_study(here / "g.yaml", budget={"trials": 2})
    hpo("launch", "--study", str(path), "--quiet", cwd=here)
    length = 2 * study_from_spec(_spec("g")).base.run.tokens  # type: ignore[attr-defined]
    done = hpo(
        "confirm", "--tokens", str(length), "--seeds", "3", "--top", "1", "--format", "json", "--study", "g", cwd=here
    )
    baseline, best = json.loads(done.stdout)
    assert baseline["test_loss"] != baseline["mean"]
    assert best["test_loss difference"] == pytest.approx(best["test_loss"] - baseline["test_loss"])
    assert "on the test split" in done.stderr
    assert re.search(
        r"p-values and intervals cover the seeds of the runs, not the choice of the validation data "
        r"\([\d,]+ tokens in [\d,]+ documents\)",
        done.stderr,
    )
    assert f"at {length // 2:,} tokens" in done.stderr or "the difference in the search" not in done.stderr
    assert _spec("g-confirm")["base"]["run"]["tokens"] == length


def _complete(store: Store, name: str) -> int:
    try:
        return len(read_snapshot(store, name).in_state(State.COMPLETE))
    except Problem:  # the study does not exist yet
        return 0


def _spec(name: str) -> dict[str, Any]:
    with open_store("sqlite:///runs/hpo.db") as store:
        return dict(read_snapshot(store, name).spec)


def test_export_prefers_what_was_confirmed_and_says_of_which_kind_it_is(here: Path) -> None:
    """The best trial of the search is lucky at x = 0.9; on other seeds x = 0.1 is better."""
    path = planted(here, base={"noise": 0.01}, space={"x": {"choices": [0.9, 0.1]}}, sampler={"name": "grid"})
    lucky = "offset = -2.0 if config.x == 0.9 and config.seed == 0 else "
    edit(here, "offset = ", lucky)
    hpo("launch", "--study", str(path), "--quiet", cwd=here)
    first = hpo("export", "-o", "best.yaml", "--study", "planted", cwd=here)
    assert "not confirmed: best of the search; `hpo confirm` tests whether it is better" in first.stderr
    assert parse_yaml((here / "best.yaml").read_text())["x"] == 0.9
    hpo("confirm", "--study", "planted", "--seeds", "3", "--quiet", cwd=here)
    again = hpo("export", "-o", "best.yaml", "--study", "planted", cwd=here)
    assert "confirmed better than the baseline by planted-confirm; next: hpo train best.yaml" in again.stderr
    exported = parse_yaml((here / "best.yaml").read_text())
    assert exported["x"] == 0.1
    assert exported["provenance"]["known"] == "confirmed better than the baseline by planted-confirm"
    assert "x: 0.9" in hpo("export", "--trial", "1", "--study", "planted", cwd=here).stdout


def test_search_is_meant_where_no_study_is_named_beside_its_confirmation(here: Path, store: Store) -> None:
    confirmed(store, run_search(store, here, {}), top=1, seeds=3)
    assert resolve_study_name(store, None) == "planted"
    assert resolve_study_name(store, "planted-confirm") == "planted-confirm"


def test_export_says_that_nothing_was_confirmed(here: Path) -> None:
    path = planted(here, base={"noise": 0.1}, space={"x": {"low": 0.499, "high": 0.501}}, budget={"trials": 6})
    hpo("launch", "--study", str(path), "--quiet", cwd=here)
    hpo("confirm", "--study", "planted", "--seeds", "6", "--top", "1", "--quiet", cwd=here)
    message = hpo("export", "-o", "best.yaml", "--study", "planted", cwd=here).stderr
    assert "not confirmed: best of the search, which planted-confirm did not find better than the baseline" in message
