"""`hpo claims` on the command line, and how it presents results: order, digits, files, the page."""

import json
from collections import Counter
from pathlib import Path

import pytest

from hpo.errors import Problem, WorkFailed
from hpo.evidence.claims.command import run_order, select_claims
from hpo.evidence.claims.page import claims_page
from hpo.evidence.claims.results import ClaimResult, ClaimRun, effect_text, load_results, save_result, verdict_records
from hpo.evidence.claims.runner import best_level
from hpo.evidence.claims.schema import ArmsTest
from hpo.evidence.claims.verdict import ClaimVerdict, EffectUnit
from tests.support.command import ROOT, hpo, run_in_process
from tests.support.ledger import shipped, verdicts_of


def test_best_level_is_that_of_fewest_diverged_runs_then_of_the_best_mean() -> None:
    def runs(**arms: list[float | None]) -> list[ClaimRun]:
        return [
            ClaimRun(arm=arm, seed=100 + i, value=value, tokens=1, seconds=1.0, study="s", trial=0)
            for arm, scores in arms.items()
            for i, value in enumerate(scores)
        ]

    test = shipped().claims["C002-08"].test
    assert isinstance(test, ArmsTest)
    tuning_runs = runs(a=[1.0, 1.0, None], b=[3.0, 3.0, 3.0], c=[2.0, 2.0, 3.0], d=[0.0, 0.0], e=[None, None, None])
    assert best_level(test, ["a", "b", "c", "d", "e"], tuning_runs) == "c"
    assert best_level(test, ["a", "d", "e"], tuning_runs) == "a"
    assert best_level(test.model_copy(update={"metric": "tokens_per_second"}), ["b", "c"], tuning_runs) == "b"
    with pytest.raises(WorkFailed, match="has all its runs"):
        best_level(test, ["d"], tuning_runs)


@pytest.mark.parametrize(("unit", "ends", "message"), [
    ("share", (-0.1, -0.124841, -0.075159), "-10.0 % (-12.5 to -7.5)"),
    ("share", (1e-7, -3e-7, 5e-7), "+0.000010 % (-0.000030 to +0.000050)"),
    ("share", (0.0, 0.0, 0.0), "+0.00 % (+0.00 to +0.00)"),
    ("level", (2.32, 2.270317, 2.369683), "2.320 (2.270 to 2.370)"),
    ("difference", (-12.0, -112.0, 88.0), "-12 (-112 to +88)"),
    ("finished", (1.0, 1.0, 1.0), "+1.00 runs finish (+1.00 to +1.00)"),
    ("share", (None, None, None), ""),
])  # fmt: skip
def test_effect_has_as_many_digits_as_its_interval_lets_one_know(
    unit: EffectUnit, ends: tuple[float | None, float | None, float | None], message: str
) -> None:
    assert effect_text(ClaimVerdict(*ends, n=3, unit=unit, verdict="holds")) == message


def test_largest_claimed_effects_come_first_and_sums_before_them() -> None:
    order = run_order(shipped().claims)
    assert sorted(order) == sorted(shipped().claims)
    assert {order.index(n) for n in ("C000-02", "C004-10")} < set(range(8))
    assert order[7:11] == ["C000-15", "C001-03", "C002-01", "C004-02"]  # 46, 30, 26.9 and 25.3 percent


def test_claims_are_picked_by_id_or_report() -> None:
    assert list(select_claims(shipped(), ["C002-02", "S001"])) == [f"C001-{i:02d}" for i in range(1, 13)] + ["C002-02"]
    assert len(select_claims(shipped(), [])) == 65


def test_findings_survive_the_file_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "new" / "claims.json"
    run = ClaimRun(arm="a", seed=0, value=None, tokens=64, seconds=0.5, study="s", trial=3)
    one = ClaimResult(test={"arms": {"a": {}}}, command="x", runs=(run,), machines=({"versions": {"torch": "2"}},))
    save_result(path, shipped(), "C001-01", one)
    save_result(path, shipped(), "C000-01", ClaimResult(test={}, command="y", passed=True))
    save_result(path, shipped(), "C001-01", one.model_copy(update={"command": "z"}))
    held = load_results(path).claims
    assert {name: result.command for name, result in held.items()} == {"C000-01": "y", "C001-01": "z"}
    assert held["C001-01"].runs == (run,)
    assert json.loads(path.read_text())["C001-01"]["runs"][0]["trial"] == 3
    (line,) = [line for line in path.read_text().splitlines() if '"seed"' in line]
    assert json.loads(line.strip()) == run.model_dump()


@pytest.mark.parametrize(("words", "message"), [
    (["C01-02"], "IDS: no claim or report 'C01-02'; did you mean C001-02? (reports are S000, "),
    (["c001-02"], "did you mean C001-02?"),
    (["S009", "x"], "IDS: no claim or report 'S009'; did you mean S00"),
    (["--ledger", "claim"], "--ledger: no ledger 'claim'; did you mean claims?"),
    (["--ledger", "quickstart"], "must be a ledger of claims, a file with the key `claims`"),
    (["--ledger", "none.yaml"], "--ledger: no such file: none.yaml"),
    (["--data", "notes.json"], "--data: must be a file of claim results, got notes.json: "),
    (["--data", "."], "--data: must be a file of claim results, got .: "),
    (["C000-01", "--write", "x.md"], "--write: writes all claims, so IDS must be left out, got C000-01"),
    (["C000-14", "--gpus", "99"], "--gpus"),
])  # fmt: skip
def test_mistake_on_the_command_line_is_named(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"C000-01": {"runs": 3}}')
    with pytest.raises(Problem) as caught:
        run_in_process("claims", *words, cwd=tmp_path)
    assert caught.value.status == 2
    assert message in str(caught.value)


def test_fewer_seeds_than_the_rule_judges_by_are_refused(tmp_path: Path) -> None:
    assert "'--seeds'" in hpo("claims", "--seeds", "2", cwd=tmp_path, status=2).stderr


def test_list_and_dry_run_print_what_is_needed_and_run_nothing(tmp_path: Path) -> None:
    listed = json.loads(run_in_process("claims", "S001", "--list", "--format", "json", cwd=tmp_path))
    assert [line["id"] for line in listed] == [f"C001-{i:02d}" for i in range(1, 13)]
    assert (listed[8]["runs"], listed[8]["tokens"], listed[8]["hours"]) == (9, 9 * 32_000, None)
    assert json.loads(run_in_process("claims", "S001", "--dry-run", "--format", "json", cwd=tmp_path)) == listed
    assert list(tmp_path.iterdir()) == []


def test_calculation_that_passes_gives_the_verdict_it_shows(tmp_path: Path) -> None:
    done = run_in_process("claims", "C000-08", "--format", "json", cwd=tmp_path)
    assert json.loads(done)[0]["verdict"] == "refuted by arithmetic"
    assert load_results(tmp_path / "runs" / "claims.json").claims["C000-08"].passed is True


def test_page_of_the_documents_is_what_their_data_give() -> None:
    held = load_results(ROOT / "docs" / "claims.json")
    written = (ROOT / "docs" / "claims.md").read_text("utf-8")
    assert written == claims_page(shipped(), held)
    assert [line.split(" | ")[0].removeprefix("| ") for line in verdicts_of(written)] == list(shipped().claims)
    n = Counter(line["verdict"] for line in verdict_records(shipped().claims, held))
    assert sum(n.values()) == 65
    counts = (
        f"{n['holds'] + n['holds by arithmetic']} hold, {n['holds in part']} hold in part, "
        f"{n['refuted'] + n['refuted by arithmetic']} are refuted and {n['not shown']} are not shown."
    )
    assert counts in " ".join((ROOT / "README.md").read_text("utf-8").split())
