"""`hpo confirm --sequential` and `hpo launch --confirm`: when they stop, what they record, and what they refuse."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.progress import has_ended, trial_counts
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.errors import Problem
from hpo.evidence.comparison import first_new_seed
from hpo.evidence.confirm import ConfirmRequest, plan_confirmation
from hpo.evidence.confirm_verdicts import confirmation_table, confirmation_verdicts
from hpo.evidence.preferred import trial_to_export
from hpo.report.verdict import related_studies, verdict
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from tests.support.command import hpo, run_in_process, until
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
    given = {"study": None, "top": None, "seeds": None, "tokens": None, "name": None, "test": None, "sequential": True}
    return ConfirmRequest(**{**given, **keys})


def confirmed(store: Store, snapshot: Snapshot, **keys: Any) -> Snapshot:
    plan = plan_confirmation(snapshot, f"{snapshot.name}-confirm", request(**keys), first_new_seed(store, snapshot))
    return run_study(store, plan)


def looks(snapshot: Snapshot) -> list[str]:
    return [event.text or "" for event in snapshot.events if event.event_type == "look"][::-1]


def test_pairs_are_added_until_the_best_trial_is_better(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {"noise": 0.1})
    confirmation = confirmed(store, snapshot)
    arm = list(confirmation.spec["arms"])[1]
    _, record = confirmation_table(confirmation)
    n = record["pairs"]
    assert 3 <= n < 12
    assert [(t.user_attrs["arm"], t.user_attrs["seed"]) for t in confirmation.trials] == [
        (name, 1000 + i) for i in range(n) for name in ("baseline", arm)
    ]
    assert (record["verdict"], record["at_most"]) == ("better", 12)
    assert record["p"] < 0.05
    assert record["high"] < 0
    assert has_ended(confirmation)
    assert trial_counts(confirmation)["waiting"] == 0
    assert [text.split(":")[0] for text in looks(confirmation)] == [
        f"after {k} of at most 12 pairs" for k in range(3, n + 1)
    ], "each look is recorded once"
    (sentence,) = confirmation_verdicts(confirmation)
    assert sentence.startswith(f"{arm}: better after {n} of at most 12 pairs: paired difference -0.")
    assert "95 % repeated confidence interval" in sentence
    again = run_study(store, plan_confirmation(snapshot, confirmation.name, request(), 1000))
    assert len(again.trials) == 2 * n, "another launch runs no pair that is not needed"
    assert "confirmed better than the baseline" in trial_to_export(store, snapshot)[1]
    grounds = " ".join(verdict(snapshot, related_studies(store, snapshot.names, "confirms")).grounds)
    assert f"{arm} is better by " in grounds
    assert f" after {n} of at most 12 pairs." in grounds


def test_a_lucky_trial_shows_no_gain_and_ends_early(here: Path, store: Store) -> None:
    """The space has no effect."""
    path = planted(here, base={"noise": 0.1}, pruner={"name": "none"})
    edit(here, "1.0 + config.x", "1.0")
    snapshot = run_study(store, load_study(str(path)))
    confirmation = confirmed(store, snapshot)
    _, record = confirmation_table(confirmation)
    assert record["verdict"] == "no gain shown"
    assert record["pairs"] < 12
    assert record["p"] >= 0.05
    assert trial_to_export(store, snapshot)[1].startswith("not confirmed")


def test_an_arm_that_is_decided_runs_no_more_while_others_go_on(here: Path, store: Store) -> None:
    space = {"x": {"choices": [0.5, 0.1, 0.499]}}  # one large gain, and one that cannot be told from none
    snapshot = run_search(store, here, {"noise": 0.02}, space=space, sampler={"name": "grid"}, budget={"trials": 4})
    confirmation = confirmed(store, snapshot, top=2)
    _, first, second = confirmation_table(confirmation)
    assert (first["verdict"], second["verdict"]) == ("better", "no gain shown")
    runs = {arm: sum(t.user_attrs["arm"] == arm for t in confirmation.trials) for arm in confirmation.spec["arms"]}
    assert runs[first["arm"]] == first["pairs"]
    assert runs["baseline"] == max(first["pairs"], second["pairs"])
    assert sum(confirmation.slots.values()) == len(confirmation.trials)


def test_an_arm_that_diverges_is_worse_at_once(here: Path, store: Store) -> None:
    snapshot = run_search(store, here, {})
    edit(here, "for rung in", "if config.seed == 1000 and config.x != 0.5:\n        1 / 0\n    for rung in")
    confirmation = confirmed(store, snapshot)
    _, record = confirmation_table(confirmation)
    assert (record["verdict"], len(confirmation.trials)) == ("worse: runs lost", 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test": "wilcoxon"}, "--test: must be t with --sequential, because the bounds are those of t tests, got wil"),
        ({"seeds": 2}, "--seeds: must be at least 3, "),
        ({"seeds": 101}, "--seeds: must be at most 100 with --sequential, got 101"),
    ],
)
def test_what_has_no_bounds_is_refused(here: Path, store: Store, keys: dict[str, Any], message: str) -> None:
    snapshot = run_search(store, here, {}, budget={"trials": 3})
    with pytest.raises(Problem, match=message):
        plan_confirmation(snapshot, "c", request(**keys), 1000)


def test_an_interrupted_confirmation_keeps_its_looks_and_its_bounds(here: Path, postgres: Postgres) -> None:
    """After SIGINT it resumes with two workers, and ends like one that was never interrupted."""
    common = ["--storage", postgres.url(postgres.database("with_tables"))]
    path = planted(here, base={"noise": 0.2, "pause": 0.03}, budget={"trials": 5}, baseline_seeds=2)
    hpo("launch", "--study", str(path), "--quiet", *common, cwd=here)
    confirm = ["confirm", "--study", "planted", "--sequential", *common]
    words = [sys.executable, "-m", "hpo", *confirm, "--plain"]
    process = subprocess.Popen(words, cwd=here, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with open_store(common[1]) as store:
        assert until(lambda: _n_looks(store) >= 1, 60)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        first = looks(read_snapshot(store, "planted-confirm"))
    refused = hpo(*confirm, "--seeds", "24", cwd=here, status=2).stderr
    assert (
        "--seeds: must be 12, because the bounds of study planted-confirm share the error among at most 12" in refused
    )
    done = hpo("launch", "--study", "planted-confirm", "--workers", "2", *common, cwd=here)
    assert "of at most 12 pairs: paired difference" in done.stderr
    whole = hpo(*confirm, "--as", "whole", "--quiet", cwd=here)
    assert "note: planted-confirm has already re-run trial" in whole.stderr
    with open_store(common[1]) as store:
        interrupted, other = (read_snapshot(store, name) for name in ("planted-confirm", "whole"))
        assert looks(interrupted)[: len(first)] == first
        assert len(set(looks(interrupted))) == len(looks(interrupted))
        assert has_ended(interrupted)
        assert interrupted.spec["about"]["sequential"] == other.spec["about"]["sequential"]
        assert set(interrupted.spec["seeds"]).isdisjoint(other.spec["seeds"])
        status = json.loads(run_in_process("status", "--study", "whole", *common, "--format", "json", cwd=here))
        (arm,) = status["sequential"]["arms"].values()
        assert arm["outcome"] in ("better", "no gain")
        number = other.trials[-1].number
    why = run_in_process("why", str(number), "--study", "whole", *common, cwd=here)
    assert "after " in why
    assert "is undecided (t = " in why
    assert "sequential: after " in run_in_process("status", "--study", "whole", *common, cwd=here)


def _n_looks(store: Store) -> int:
    try:
        return len(looks(read_snapshot(store, "planted-confirm")))
    except Problem:  # the study does not exist yet
        return 0


def test_launch_confirm_continues_to_the_confirmation_also_after_an_interruption(here: Path) -> None:
    path = planted(here, base={"noise": 0.02, "pause": 0.05}, budget={"trials": 5}, baseline_seeds=2)
    words = [sys.executable, "-m", "hpo", "launch", "--study", str(path), "--confirm", "--plain"]
    process = subprocess.Popen(words, cwd=here, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: Path("runs/hpo.db").exists(), 60)
    with open_store("sqlite:///runs/hpo.db", create=True) as store:
        assert until(lambda: _n_looks(store) >= 1, 60)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "best: trial" in stdout
    done = hpo("launch", "--study", str(path), "--confirm", "--workers", "2", cwd=here)
    assert ": better after " in done.stderr
    assert "of at most 12 pairs" in done.stderr
    again = hpo("launch", "--study", str(path), "--confirm", cwd=here)
    assert again.stdout.splitlines()[-3:] == done.stdout.splitlines()[-3:]
    fixed = hpo("confirm", "--study", "planted", "--as", "fixed", "--top", "1", "--seeds", "3", "--quiet", cwd=here)
    assert "at_most" not in fixed.stdout
    refused = hpo("confirm", "--study", "planted", "--as", "fixed", "--sequential", cwd=here, status=2).stderr
    assert "--sequential: must be omitted, because study fixed was started with a fixed number of 3 pairs" in refused
    with open_store("sqlite:///runs/hpo.db") as store:
        states = {t.state for t in read_snapshot(store, "planted-confirm").trials}
    assert states == {State.COMPLETE}


def test_launch_confirm_says_what_it_cannot_confirm(here: Path) -> None:
    path = planted(here, budget={"trials": 1})
    done = hpo("launch", "--study", str(path), "--confirm", "--quiet", cwd=here)
    assert "no trial is better than the baseline, so there is nothing to confirm" in done.stderr
    edit(here, "    seed: int = 0\n", "")
    edit(here, "config.seed, ", "")
    refused = hpo("launch", "--study", str(planted_without_seed(here)), "--confirm", cwd=here, status=2).stderr
    assert "--confirm: must be omitted, because the config of unseeded has no field run.seed or seed" in refused


def planted_without_seed(folder: Path) -> Path:
    """Write a study whose configuration has no seed; return its path."""
    (folder / "unseeded.yaml").write_text((folder / "planted.yaml").read_text())
    return folder / "unseeded.yaml"
