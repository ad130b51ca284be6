"""`hpo claims` runs the tests of a ledger as studies, stores their results, and writes the page from these results."""

import contextlib
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.console import format_number
from hpo.errors import WorkFailed
from hpo.evidence.claims import results
from hpo.evidence.claims.command import claim_cost, listing_record
from hpo.evidence.claims.ledger import load_ledger
from hpo.evidence.claims.results import ClaimResults
from hpo.evidence.claims.schema import LedgerClaim
from hpo.evidence.claims.scoring import metrics_at_equal_seconds, run_score
from hpo.runs.metrics import append_metrics
from hpo.storage.engine import open_readonly
from hpo.storage.studies import study_ids
from hpo.storage.trials import read_trials
from tests.support.command import hpo, write_base
from tests.support.ledger import ARMS, BASE, claim, verdicts_of, without

RATE = {"optimizer.lr": 1e-2}
AVERAGED = {"regularization.ema": 0.9}
FINE = {"run.tokens": 4096, "run.rungs": 16}
WILD = {"optimizer.lr": 1e30, "clip.name": "none"}
HALF = {"text": "half", "value": -0.5, "unit": "share"}
NOWHERE = {"arithmetic": "tests/test_nowhere.py::test_it", "computation": "1", "shows": "holds"}
CLAIMS: dict[str, Any] = {
    "C009-01": claim({"arms": {"a": {}, "b": RATE, "c": WILD}}, effect=HALF),
    "C009-02": claim(
        without(ARMS, "arms") | {"arms": None, "tuned": ["optimizer.lr"], "factors": {
            "clip": {"norm": {}, "none": {"clip.name": "none"}, "small": {"clip.max_norm": 0.1}},
            "optimizer.lr": [1e-4, 1e-2],
        }}
    ),
    "C009-03": claim({"metric": {"a": "val_loss", "b": "ema_val_loss"}, "arms": {"a": AVERAGED, "b": AVERAGED}}),
    "C009-04": claim({"equal": "seconds", "arms": {"a": {**FINE, "run.tokens": 8192}, "b": {**FINE, **RATE}}}),
    "C009-05": claim() | {"test": NOWHERE},
    "C009-06": claim({"base": "away"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all these claims were run."""
    folder = tmp_path_factory.mktemp("claims")
    write_base(folder, "mine", BASE)
    gone = BASE | {"data": {"name": "text", "path": "gone.txt"}}
    (folder / "studies" / "bases" / "away.yaml").write_text(dump_yaml(gone))
    (folder / "mine.yaml").write_text(dump_yaml({"claims": CLAIMS}))
    done = hpo("claims", "--ledger", "mine.yaml", "--plain", cwd=folder, status=1)
    (folder / "stderr").write_text(done.stderr)
    (folder / "stdout").write_text(done.stdout)
    return folder


def stored_results(folder: Path) -> ClaimResults:
    return results.load_results(folder / "runs" / "claims.json")


def ledger_claims(folder: Path) -> dict[str, LedgerClaim]:
    with contextlib.chdir(folder):
        return load_ledger(Path("mine.yaml")).claims


def studies(folder: Path) -> dict[str, int]:
    """Return the number of trials of each study."""
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        return {name: len(read_trials(store, study_id)) for name, study_id in study_ids(store).items()}


def of(folder: Path, study: str) -> Snapshot:
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        snapshot = read_snapshot(store, study)
        for trial in snapshot.trials:  # read while the storage is open
            assert trial.user_attrs["slot"] is not None
            assert dict(trial.user_attrs)
        return snapshot


def test_each_arm_is_run_with_each_seed_and_what_is_tuned_before_on_seeds_of_its_own(ran: Path) -> None:
    assert studies(ran) == {
        "claim-C009-01": 6,
        "claim-C009-01-2": 3,  # the arm that does not enter the verdict
        "claim-C009-02-tune": 12,
        "claim-C009-02": 6,
        "claim-C009-02-tune-2": 6,
        "claim-C009-02-2": 3,
        "claim-C009-03": 3,
        "claim-C009-04": 6,
    }
    stored = stored_results(ran).claims
    assert list(stored) == [f"C009-0{i}" for i in (1, 2, 3, 4)]
    assert {(run.arm, run.seed) for run in stored["C009-01"].runs} == {
        (arm, seed) for arm in "abc" for seed in (0, 1, 2)
    }
    assert {run.seed for run in stored["C009-02"].tuning} == {100, 101, 102}
    assert {run.seed for run in stored["C009-02"].runs} == {0, 1, 2}


def test_finding_holds_what_the_runs_were_and_the_command_that_repeats_them(ran: Path) -> None:
    result = stored_results(ran).claims["C009-01"]
    trial = of(ran, "claim-C009-01").trials[0]
    first = result.runs[0]
    assert (first.arm, first.seed, first.study, first.trial) == ("a", 0, "claim-C009-01", 0)
    assert first.value == trial.values[0]
    assert first.tokens == 2048
    assert result.command == "hpo claims C009-01 --seeds 3"
    assert result.base == "mine"
    assert result.machines[0]["versions"]["torch"]
    width = 16  # embedding and head of 257 ids, positions, two norms and a last one, attention, mlp
    assert set(result.parameters) == {"a", "b"}
    assert result.parameters["a"] > 4 * width**2


def test_verdict_is_printed_with_effect_and_interval(ran: Path) -> None:
    stdout, stderr = (ran / "stdout").read_text(), (ran / "stderr").read_text()
    verdict = results.verdict_on(ledger_claims(ran)["C009-01"], stored_results(ran).claims["C009-01"])
    assert verdict.effect is not None
    assert verdict.effect < 0
    assert verdict.verdict == "holds in part"  # lower, and by less than half
    assert results.effect_text(verdict) in stdout
    assert f"C009-01: holds in part; {results.effect_text(verdict)}" in stderr


def test_level_that_serves_an_arm_best_continues(ran: Path) -> None:
    result = stored_results(ran).claims["C009-02"]
    assert result.chosen == {f"clip={c}": f"clip={c}, optimizer.lr=0.01" for c in ("norm", "none", "small")}
    spec = of(ran, "claim-C009-02").spec
    assert {arm["optimizer.lr"] for arm in spec["arms"].values()} == {0.01}


def test_run_that_is_scored_in_two_ways_is_trained_once(ran: Path) -> None:
    result = stored_results(ran).claims["C009-03"]
    assert {run.arm: run.trial for run in result.runs if run.seed == 1}["a"] == {
        run.arm: run.trial for run in result.runs if run.seed == 1
    }["b"]
    values = results.scores_by_arm(result.runs)
    assert values["a"][0] != values["b"][0]
    trial = of(ran, "claim-C009-03").trials[0]
    assert trial.user_attrs["hpo:metrics"]["ema_val_loss"] == values["b"][0]


def test_at_equal_seconds_the_longer_arm_is_read_where_the_shorter_one_ended(ran: Path) -> None:
    values = results.scores_by_arm(stored_results(ran).claims["C009-04"].runs)
    trials = of(ran, "claim-C009-04").trials
    last = {(t.user_attrs["arm"], t.user_attrs["seed"]): t.user_attrs["hpo:metrics"] for t in trials}
    for seed in (0, 1, 2):
        first, later = sorted("ab", key=lambda arm: last[arm, seed]["seconds"])
        assert values[first][seed] == pytest.approx(last[first, seed]["val_loss"])
        assert values[later][seed] != last[later, seed]["val_loss"]


def test_curve_is_read_between_rungs_and_not_before_the_first(ran: Path, tmp_path: Path) -> None:
    study = of(ran, "claim-C009-04")
    arms = {arm: {t.user_attrs["seed"]: t for t in study.trials if t.user_attrs["arm"] == arm} for arm in "ab"}
    curves = {  # arm and seed -> seconds and loss of each rung; b is the first to end
        ("a", 0): [(1, 5.0), (2, 4.0), (3, 3.0)], ("b", 0): [(1, 6.0), (2.5, 1.0)],
        ("a", 1): [(9, 5.0), (10, 4.0)], ("b", 1): [(1, 6.0), (2, 2.0)],
        ("a", 2): [(1, 5.0), (2, 4.0)], ("b", 2): [(1, 6.0), (2, 2.0)],
    }  # fmt: skip
    for (arm, seed), rungs in curves.items():
        for rung, (seconds, loss) in enumerate(rungs, 1):
            path = tmp_path / study.name / "trials" / f"{arms[arm][seed].number:04d}" / "metrics.jsonl"
            append_metrics(path, {"rung": rung, "seconds": seconds, "val_loss": loss, "ema_val_loss": None})
    read = metrics_at_equal_seconds(study, arms, tmp_path)
    found = {(arm, seed): read[arms[arm][seed].number] for arm, seed in curves}
    metrics = {at: row and {key: v for key, v in row.items() if key != "rung"} for at, row in found.items()}
    assert metrics["a", 0] == {"seconds": 2.5, "val_loss": pytest.approx(3.5)}
    assert metrics["b", 0] == {"seconds": 2.5, "val_loss": 1.0}
    assert metrics["a", 1] is None
    assert [metrics[arm, 2] for arm in "ab"] == [{"seconds": 2, "val_loss": 4.0}, {"seconds": 2, "val_loss": 2.0}]


def test_run_that_diverges_is_scored_by_nothing_but_that(ran: Path) -> None:
    values = results.scores_by_arm(stored_results(ran).claims["C009-01"].runs)
    assert values["c"] == {0: None, 1: None, 2: None}
    assert all(value is not None for value in values["a"].values())
    ended = [t for study in ("claim-C009-01", "claim-C009-01-2") for t in of(ran, study).trials]
    assert {t.user_attrs["arm"]: run_score(t, "finished") for t in ended} == {"a": 1, "b": 1, "c": 0}


def test_claim_that_cannot_be_tested_here_is_left_out_with_the_reason(ran: Path) -> None:
    stderr = (ran / "stderr").read_text()
    assert (
        "C009-05: skipped: needs tests/test_nowhere.py::test_it of the project's tests, which are not installed"
        in stderr
    )
    assert re.search("^C009-06: skipped: .*gone.txt", stderr, re.M)
    assert "no result: C009-05, C009-06" in stderr


def test_what_is_done_is_not_run_again_and_more_seeds_are_a_further_study(ran: Path) -> None:
    before = studies(ran)
    text = (ran / "runs" / "claims.json").read_text()
    hpo("claims", "C009-01", "--ledger", "mine.yaml", cwd=ran)
    assert studies(ran) == before
    assert (ran / "runs" / "claims.json").read_text() == text
    more = ["claims", "C009-01", "--seeds", "4", "--ledger", "mine.yaml", "--data", "more.json"]
    hpo(*more, "--verdict-arms-only", cwd=ran)
    assert studies(ran) == before | {"claim-C009-01-3": 2}
    more_runs, few = results.load_results(ran / "more.json").claims["C009-01"], stored_results(ran).claims["C009-01"]
    assert set(few.runs) < set(more_runs.runs)
    assert {(run.arm, run.seed) for run in set(more_runs.runs) - set(few.runs)} == {("a", 3), ("b", 3)}
    assert more_runs.command.endswith("--seeds 4")
    hpo(*more, cwd=ran)
    assert studies(ran) == before | {"claim-C009-01-3": 2, "claim-C009-01-4": 1}
    assert len(results.load_results(ran / "more.json").claims["C009-01"].runs) == 12


def test_study_of_other_arms_under_the_name_is_not_mixed_in(ran: Path) -> None:
    other = CLAIMS | {"C009-01": claim({"arms": {"a": {}, "b": {"optimizer.lr": 2e-2}}})}
    (ran / "other.yaml").write_text(dump_yaml({"claims": other}))
    done = hpo("claims", "C009-01", "--ledger", "other.yaml", "--data", "other.json", cwd=ran, status=1)
    assert "holds a study claim-C009-01 whose arms differ from the ledger's; use another --storage" in done.stderr
    assert not (ran / "other.json").exists()


def test_page_is_written_from_the_data_alone(ran: Path, tmp_path: Path) -> None:
    write_base(tmp_path, "mine", BASE)
    for name in ("mine.yaml", "studies/bases/away.yaml"):
        (tmp_path / name).write_text((ran / name).read_text())
    (tmp_path / "stored.json").write_text((ran / "runs" / "claims.json").read_text())
    hpo("claims", "--ledger", "mine.yaml", "--data", "stored.json", "--write", "page.md", cwd=tmp_path)
    written = (tmp_path / "page.md").read_text()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in verdicts_of(written)}
    assert list(lines) == list(CLAIMS)
    assert "| holds in part | `hpo claims C009-01 --seeds 3` |" in lines["C009-01"]
    assert "| 3 | 2,048 | mine, " in lines["C009-01"]
    assert "| 3 | 4,096 to 8,192 | mine, " in lines["C009-04"]
    assert lines["C009-05"].endswith("| not run yet | `hpo claims C009-05` |")
    assert "| not run yet | 2 |" in written
    scores = [
        run.value for run in stored_results(ran).claims["C009-01"].runs if run.arm == "b" and run.value is not None
    ]
    mean, sd = format_number(statistics.fmean(scores)), format_number(statistics.stdev(scores))
    assert f"| C009-01 | b * |  | 3 |  | val_loss | {mean} | {sd} |" in written
    assert "| C009-01 | c |  | 3 | 3 | val_loss |  |  |" in written
    assert "| C009-02 | clip=norm | optimizer.lr=0.01 | 3 |" in written


def test_finding_of_another_test_than_the_ledger_has_now_counts_as_none(ran: Path) -> None:
    claims, held = ledger_claims(ran), stored_results(ran)
    assert held.result_of("C009-01", claims["C009-01"]) is not None
    assert held.result_of("C009-02", claims["C009-01"]) is None
    more = claims["C009-01"].model_copy(update={"test": claims["C009-01"].test.model_copy(update={"seeds": 9})})
    assert held.result_of("C009-01", more) is not None  # more seeds are the same test


def test_arms_of_the_verdict_are_run_first_and_counted_apart(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran)
    stderr = (ran / "stderr").read_text()
    verdicts = [match.start() for match in re.finditer("^C009-0[1-4]: (holds|not shown|refuted)", stderr, re.M)]
    assert len(verdicts) == 4
    assert max(verdicts) < stderr.index("C009-01: the arms that do not enter the verdict")
    assert "C009-04: the arms that" not in stderr
    claims = ledger_claims(ran)
    assert claim_cost(claims["C009-02"], 5) == (3 * 2 * 3 + 3 * 5, 2048 * 33)
    assert claim_cost(claims["C009-02"], 5, verdict_arms_only=True) == (2 * 2 * 3 + 2 * 5, 2048 * 22)


def test_hours_are_estimated_from_runs_of_the_same_base(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ran)  # where the base is
    claims = ledger_claims(ran)
    record = listing_record("C009-02", claims["C009-02"], 5, stored_results(ran))
    assert record["runs"] == 6 * 3 + 3 * 5
    assert record["tokens"] == 2048 * 33
    assert record["hours"] is not None
    assert listing_record("C009-02", claims["C009-02"], 5, ClaimResults())["hours"] is None
    assert claim_cost(claims["C009-05"], 3) == (0, 0)


def test_curves_that_are_elsewhere_are_asked_for(ran: Path, tmp_path: Path) -> None:
    study = of(ran, "claim-C009-04")
    with pytest.raises(WorkFailed, match=r"no curve in .*trials/0000/metrics\.jsonl: .* --out"):
        metrics_at_equal_seconds(study, {"a": {0: study.trials[0]}}, tmp_path)
