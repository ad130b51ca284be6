"""`hpo transfer`: ladders of a planted law, run by real workers on a real storage."""

import json
from pathlib import Path

import pytest

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import parse_yaml
from hpo.storage.attributes import FIXED_VALUES
from hpo.storage.engine import open_readonly
from hpo.storage.trials import State
from hpo.transfer.fitted import fitted_prediction
from tests.support.command import hpo
from tests.support.ladders import ladder_search

TARGET = {"run.tokens": 64_000}
TO = "run.tokens=64_000"
BEST_LR, BEST_BATCH = 0.01 * 64**0.2, 8 * 64**0.5
FLOOR = 2.0 + 1.5 * 64**-0.3


def snapshot_of(folder: Path, name: str) -> Snapshot:
    with open_readonly(f"sqlite:///{folder}/runs/hpo.db") as store:
        return read_snapshot(store, name)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    hpo("launch", "--study", str(ladder_search(folder)), "--quiet", cwd=folder)
    hpo("transfer", "--study", "small", "--to", TO, "--quiet", "--allow-train", "laws:train", cwd=folder)
    return folder


def test_the_ladder_is_a_study_of_cells_below_the_target_around_the_best_trial(searched: Path) -> None:
    search, ladder = snapshot_of(searched, "small"), snapshot_of(searched, "small-transfer")
    assert {t.state for t in ladder.trials} == {State.COMPLETE}
    best = search.best()
    assert best is not None
    values = [t.user_attrs[FIXED_VALUES] for t in ladder.trials]
    assert sorted({v["run.tokens"] for v in values}) == [1_000, 2_520, 6_350, 16_000]
    copied = {path: best.params[path] for path in ("optimizer.lr", "run.batch_size")}
    for tokens in {v["run.tokens"] for v in values}:
        of_cell = [v for v in values if v["run.tokens"] == tokens]
        assert sum(all(v[path] == copied[path] for path in copied) for v in of_cell) == 1
    assert len({v["run.seed"] for v in values}) == len(values)
    assert "kind" not in ladder.spec["space"]
    assert ladder.spec["base"]["kind"] == best.params["kind"]
    counts = [sum(v["run.tokens"] == tokens for v in values) for tokens in (1_000, 16_000)]
    assert counts[0] > counts[1]


def test_the_prediction_is_near_the_planted_optimum_and_its_file_trains(searched: Path) -> None:
    done = hpo(
        "transfer", "--study", "small", "--quiet", "--format", "json", "--allow-train", "laws:train", cwd=searched
    )
    record = json.loads(done.stdout)
    assert record["target"] == TARGET
    assert record["tokens_beyond_ladder"] == 4
    predicted = {field["field"]: field for field in record["fields"]}
    assert BEST_LR / 1.6 < predicted["optimizer.lr"]["predicted"] < BEST_LR * 1.6
    assert BEST_BATCH / 1.6 < predicted["run.batch_size"]["predicted"] < BEST_BATCH * 1.6
    lr = predicted["optimizer.lr"]
    assert lr["low"] / 1.2 < BEST_LR < lr["high"] * 1.2  # a 90 % interval
    assert record["loss"]["low"] < FLOOR < record["loss"]["high"]
    assert record["regret_of_copying"]["mean"] > 0
    tree = parse_yaml((searched / "runs" / "small-transfer" / "fitted.yaml").read_text())
    assert tree["provenance"]["rule"] == "fitted"
    assert tree["optimizer"]["lr"] == predicted["optimizer.lr"]["predicted"]
    assert tree["run"]["tokens"] == 64_000
    fitted = str(searched / "runs" / "small-transfer" / "fitted.yaml")
    hpo("train", fitted, "--set", "run.tokens=1_000", cwd=searched, status=None)


def test_next_commands_are_quoted_for_the_shell(searched: Path) -> None:
    (searched / "my runs").symlink_to("runs")
    allow = ("--allow-train", "laws:train")
    done = hpo("transfer", "--study", "small", "--quiet", "--out", "my runs", *allow, cwd=searched)
    path = searched / "my runs" / "small-transfer" / "fitted.yaml"
    assert f"\n  hpo train '{path}'\n  hpo transfer --study small --verify 8\n" in done.stderr


def test_a_far_target_is_said_aloud_and_needs_no_new_runs(searched: Path) -> None:
    before = len(snapshot_of(searched, "small-transfer").trials)
    allow = ("--allow-train", "laws:train")
    done = hpo("transfer", "--study", "small", "--to", "run.tokens=512_000", "--quiet", *allow, cwd=searched)
    assert "warning: the prediction extrapolates more than 16 times in tokens" in done.stderr
    assert "\n  hpo transfer --study small --to run.tokens=512000 --verify 8\n" in done.stderr
    assert len(snapshot_of(searched, "small-transfer").trials) == before


def test_a_verification_trains_prediction_and_copy_in_pairs_and_prints_the_words_of_confirm(searched: Path) -> None:
    allow = ("--allow-train", "laws:train")
    done = hpo("transfer", "--study", "small", "--verify", "4", "--quiet", *allow, cwd=searched)
    assert "fitted: better: paired difference" in done.stderr
    assert "from the copied configuration (95 % confidence interval" in done.stderr
    assert "corrected for 2 comparisons (Holm)" in done.stderr
    assert "inside the interval" in done.stderr
    verified = snapshot_of(searched, "small-transfer-verify-64000")
    assert list(verified.spec["arms"]) == ["copied", "fitted", "nearest cell"]
    assert {v["run.tokens"] for v in verified.spec["arms"].values()} == {64_000}
    assert len(verified.spec["seeds"]) == 4
    refused = hpo("transfer", "--study", "small", "--verify", "5", "--quiet", *allow, cwd=searched, status=2)
    assert "--verify: must be 4" in refused.stderr


def test_the_rule_fitted_finds_the_ladder_by_the_name_of_the_search(searched: Path) -> None:
    from hpo.config.permission import permit

    with open_readonly(f"sqlite:///{searched}/runs/hpo.db") as store:
        permit(("laws:train", "laws:Config"))
        pytest.MonkeyPatch().syspath_prepend(str(searched))
        prediction = fitted_prediction(store, "small", {"run.tokens": 128_000})
        assert prediction is not None
        assert prediction.values["run.tokens"] == 128_000
        assert prediction.values["optimizer.lr"] > prediction.copied["optimizer.lr"] / 100
        assert fitted_prediction(store, "nothing", TARGET) is None


def test_the_report_has_bowls_laws_and_measured_against_predicted(searched: Path) -> None:
    allow = ("--allow-train", "laws:train")
    hpo("transfer", "--study", "small", "--verify", "4", "--quiet", *allow, cwd=searched)
    hpo("report", "--study", "small", "--html", "page.html", cwd=searched)
    page = (searched / "page.html").read_text()
    for words in (
        "Transfer to longer and larger runs: small-transfer",
        "small-transfer-bowls-0",
        "small-transfer-law-1",
        "Predicted against measured: small-transfer-verify-64000",
        "copying is expected to lose",
    ):
        assert words in page


def test_an_ablation_of_the_search_labels_its_changes(searched: Path) -> None:
    allow = ("--allow-train", "laws:train")
    design = ("--design", "add-one-in", "--seeds", "3")
    done = hpo("ablate", "--study", "small", *design, "--quiet", "--format", "json", *allow, cwd=searched)
    labels = {record["effect"]: record["at other scales"] for record in json.loads(done.stdout)}
    assert labels["optimizer.lr"] == "scale-stable"  # from 0.09, far above the optimum of all cells
    assert labels["all together"] is None
    hpo("report", "--study", "small", "--html", "page.html", cwd=searched)
    assert "Effect of each change at the cells of the ladder" in (searched / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as", "other"], "--to: required, because small has no ladder other yet"),
        (
            ["--as", "other", "--to", "run.tokens=500"],
            "--to run.tokens: must be at least 1,000, as in the search, got 500",
        ),
        (["--to", "run.tokens=9_000"], "--to run.tokens: must be at least 16,000, the longest runs of small-transfer"),
        (["--as", "other", "--to", TO, "--budget-tokens", "5000"], "--budget-tokens: must be at least "),
        (["--ladder", "3"], "--ladder: must be 4, with which study small-transfer was started, got 3"),
        (["--to", "run.token=64_000", "--as", "other"], "--to run.token: must be one of run.tokens"),
        (["--to", "run.tokens", "--as", "other"], "--to: must be PATH=VALUE,PATH=VALUE"),
    ],
)
def test_what_cannot_be_done_is_one_message(searched: Path, arguments: list[str], message: str) -> None:
    allow = ("--allow-train", "laws:train")
    done = hpo("transfer", "--study", "small", "--quiet", *arguments, *allow, cwd=searched, status=2)
    assert f"hpo: {message}" in done.stderr
    assert done.stderr.count("hpo: ") == 1


def test_a_second_ladder_has_seeds_of_its_own_and_names_itself_in_the_next_command(searched: Path) -> None:
    allow = ("--allow-train", "laws:train")
    again = ("--as", "again", "--to", TO, "--ladder", "2", "--quiet")
    done = hpo("transfer", "--study", "small", *again, *allow, cwd=searched)
    assert "\n  hpo transfer --study small --as again --verify 8\n" in done.stderr
    ladders = [snapshot_of(searched, name) for name in ("small-transfer", "again")]
    first, second = ({t.user_attrs[FIXED_VALUES]["run.seed"] for t in ladder.trials} for ladder in ladders)
    assert len(second) > 0
    assert not first & second


def test_a_search_without_a_learning_rate_is_refused(tmp_path: Path) -> None:
    space = {"run.batch_size": {"low": 1, "high": 128, "log": True}}
    hpo("launch", "--study", str(ladder_search(tmp_path, space=space, budget={"trials": 2})), "--quiet", cwd=tmp_path)
    done = hpo("transfer", "--to", TO, "--allow-train", "laws:train", cwd=tmp_path, status=2)
    assert "--study: must search a learning rate" in done.stderr
