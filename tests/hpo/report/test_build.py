"""hpo report: what the page says of studies of all kinds, what the files hold, and what the dashboard is given."""

import csv
import html
import json
import math
import os
import re
import stat
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna_dashboard import get_note, save_note

from hpo.analysis.noise import expected_minimum
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.errors import NothingFeasible, Problem, WorkFailed
from hpo.queue.registry import register_study
from hpo.report import curve_figures, timeline
from hpo.report.build import ReportFiles, write_report
from hpo.report.build import read_report as read_report
from hpo.report.html import html_table, paragraph
from hpo.report.pdf import browser, write_pdf
from hpo.report.style import empty_figure, zoom
from hpo.report.verdict import verdict
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from tests.support.cases import sparse
from tests.support.command import hpo
from tests.support.dashboard import dashboard
from tests.support.reported_studies import LR, STUDIES, run_reported_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all the studies in one storage; the current one of every test of this module."""
    path = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        (path / "runs").mkdir()
        with open_store("sqlite:///runs/hpo.db", create=True) as store:
            for name in STUDIES:
                run_reported_study(store, path, name)
        yield path
    sys.modules.pop("shown", None)


URL = "sqlite:///runs/hpo.db"


def page(name: str, **files: Path) -> str:
    """Write the report of a study; return the page."""
    where = Path(f"{name}.html")
    write_report(URL, name, Path("runs"), ReportFiles(html=where, **files), publish=False)
    return where.read_text()


def of(name: str) -> Snapshot:
    store = open_store(URL)
    return read_snapshot(store, name)


def words(found: str) -> str:
    """Return the text of a page: no scripts, no tags."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", found, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.usefixtures("folder")
def test_page_of_every_kind_of_study_is_whole_and_asks_nothing_of_a_network(name: str) -> None:
    found = page(name)
    assert found.startswith("<!DOCTYPE html>")
    assert found.rstrip().endswith("</html>")
    assert found.count("plotly.js v") == 1
    rest = re.sub(r"<script>/\*\*\n\* plotly\.js.*?</script>", "", found, flags=re.S)
    assert len(rest) < 600_000
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)[a-z]""", rest)
    assert "@import" not in rest
    assert "default-src 'none'" in rest
    assert "Reproduce these results" in words(found)


@pytest.mark.usefixtures("folder")
def test_page_opens_with_the_verdict() -> None:
    study, found = of("search"), words(page("search"))
    best, floor = study.best(), study.noise
    assert best
    assert floor
    gain = floor.mean - best.values[0]
    opening = found[: found.index("Learning curves")]
    assert f"trial {best.number} with val_loss" in opening
    assert f"The gain is {gain / floor.sigma:.1f} σ" in opening
    searched = len(study.in_state(State.COMPLETE, State.PRUNED)) - 4  # without the four runs of the baseline
    luck = (floor.mean - expected_minimum(searched, floor.mean, floor.sigma)) / gain
    assert f"chance may explain up to {luck:.0%} of the gain" in opening
    assert "The result is not confirmed" in opening
    assert "Pruning stopped" in opening
    assert "target good <1 (1.3)" in html.unescape(opening)


@pytest.mark.usefixtures("folder")
def test_names_and_errors_of_the_user_are_shown_and_never_run() -> None:
    found = page("search")
    assert "a<b>" not in found
    assert "a&lt;b&gt;&amp;" in found
    failed = page("failing")
    assert "<script>alert" not in failed
    assert "&lt;script&gt;alert" in failed
    assert "low <lr>" not in page("arms")


def test_back_ticks_and_markup_of_the_user_stay_text() -> None:
    assert paragraph("a ` <b>") == "<p>a ` &lt;b&gt;</p>\n"
    assert "<i>" not in html_table([{"<i>": "<i>", "b": "`x` <i>"}])
    assert "`x` \\u202e" in html_table([{"a": "`x` \u202e"}])  # a cell is a text of the user


@pytest.mark.usefixtures("folder")
def test_study_of_failures_says_so_and_why() -> None:
    found = words(page("failing"))
    assert "No trial of failing is complete: 2 failed." in found
    assert "alert(&#x27;failed&#x27;)" in found


@pytest.mark.usefixtures("folder")
def test_study_of_arms_is_described_by_arms() -> None:
    found = page("arms")
    assert "Compared with low &lt;lr&gt; on 3 seeds each: better: high." in found
    assert 'id="arms"' in found
    assert "Slice plots" not in words(found)
    assert "Best value so far" not in words(found)


@pytest.mark.usefixtures("folder")
def test_study_without_trials_enough_says_how_many_are_needed() -> None:
    found = words(page("one"))
    assert "Too few trials to estimate importance: 1 reached the last rung, 10 are needed." in found
    assert "No searched trial ended complete or pruned. The best baseline is trial 0 with val_loss" in found


@pytest.mark.usefixtures("folder")
def test_study_that_nobody_worked_on_is_refused() -> None:
    with open_store(URL) as store:
        tree = {"train": "shown:train", "config": "shown:Config", "rungs": 4, "space": {"opt.lr": LR}}
        Path("empty.yaml").write_text(dump_yaml(tree))
        register_study(store, load_study("empty.yaml"), None, {})
        with pytest.raises(NothingFeasible, match="study empty: no trial is complete yet") as error:
            read_report(store, "empty")
        assert error.value.status == 3
    assert hpo("report", "--study", "empty", cwd=Path.cwd(), status=3).stdout == ""


def test_confirmed_and_ablated_studies_are_named_in_the_verdict(folder: Path) -> None:
    asked = ("--study", "search", "--workers", "1", "--seeds", "3", "--quiet")
    hpo("confirm", *asked, "--top", "1", cwd=folder)
    hpo("ablate", *asked, cwd=folder)
    found = words(page("search"))
    assert "Re-run on new seeds (search-confirm): trial" in found
    assert "Confirmation: search-confirm" in found
    assert "Ablation: search-" in found
    assert "hpo confirm --study search" in found
    assert "Confirmation of study search." in words(page("search-confirm"))


@pytest.mark.parametrize("name", sparse(STUDIES, 2))
@pytest.mark.usefixtures("folder")
def test_study_file_of_the_page_is_the_study_again(name: str, tmp_path: Path) -> None:
    found = re.search(r'<pre class="long">(.*?)</pre>', page(name), re.S)
    assert found
    (tmp_path / f"{name}.yaml").write_text(html.unescape(found[1]))
    assert load_study(str(tmp_path / f"{name}.yaml")).spec() == of(name).spec


@pytest.mark.usefixtures("folder")
def test_tables_hold_every_trial_and_every_point_of_every_curve(tmp_path: Path) -> None:
    study = of("search")
    page("search", csv=tmp_path / "all.csv", json=tmp_path / "all.json")
    with open(tmp_path / "all.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    with open(tmp_path / "all-curves.csv", newline="") as file:
        curves = list(csv.DictReader(file))
    assert [int(row["number"]) for row in trials] == [t.number for t in study.trials]
    # of a parameter with the name of a column, both are kept
    assert [row["kind"] for row in trials] == [study.kind(t) for t in study.trials]
    assert [row["params.kind"] or None for row in trials] == [t.params.get("kind") for t in study.trials]
    told = {(int(r["number"]), int(r["rung"])): float(r["val_loss"] or "nan") for r in curves}
    known = {(t.number, rung): v for t in study.trials for rung, v in t.intermediate_values.items()}
    assert told.keys() == known.keys()
    assert all(v == known[k] or math.isnan(v) == math.isnan(known[k]) for k, v in told.items())
    assert curves[0]["tokens"] == "1000"
    tree = json.loads((tmp_path / "all.json").read_text())
    assert tree["spec"]["space"] == study.spec["space"]
    assert tree["verdict"]["headline"] == verdict(study).headline or tree["confirmed"]
    assert tree["noise"]["n"] == 4
    assert (len(tree["trials"]), len(tree["curves"])) == (len(trials), len(curves))


def test_report_without_a_file_goes_beside_the_runs_and_says_where(folder: Path) -> None:
    told = hpo("report", "--study", "one", "--no-publish", cwd=folder)
    assert told.stderr == "runs/one/report.html: written\n"
    assert (folder / "runs/one/report.html").is_file()


def test_file_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "taken").write_text("")
    told = hpo("report", "--study", "one", "--html", "taken/page.html", "--no-publish", cwd=folder, status=1)
    assert told.stderr.startswith("hpo: cannot write taken/page.html: ")


def test_machine_without_chromium_names_the_package_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPO_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkFailed, match="install the Debian package chromium"):
        browser()
    monkeypatch.setenv("HPO_CHROMIUM", "nowhere")
    with pytest.raises(Problem, match="HPO_CHROMIUM: must be the path of Chromium, got nowhere"):
        browser()


def test_chromium_that_prints_nothing_is_an_error_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho out of paper >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("HPO_CHROMIUM", str(broken))
    with pytest.raises(WorkFailed, match="wrote no file: out of paper"):
        write_pdf("<p>text</p>", tmp_path / "page.pdf")
    assert os.listdir(tmp_path) == ["broken"]


def test_report_is_shown_on_both_kinds_of_storage(here: Path, store: Store) -> None:
    run_reported_study(store, here, "one")
    sys.modules.pop("shown")
    write_report(store.url, None, Path("runs"), ReportFiles(html=here / "page.html"), publish=True)
    study = optuna.load_study(study_name="one", storage=store.optuna)
    assert "No searched trial ended complete or pruned." in get_note(study)
    assert len(list((here / "runs/artifacts").iterdir())) == 3


def shown(url: str) -> tuple[str, dict[str, Any]]:
    """Return the note and all that the dashboard has of the study `search`."""
    with open_store(url) as store:
        study = optuna.load_study(study_name="search", storage=store.optuna)
        return get_note(study), store.optuna.get_study_system_attrs(study._study_id)


def test_what_is_shown_twice_is_there_once_and_the_users_own_note_stays(folder: Path) -> None:
    with open_store(URL) as store:
        save_note(optuna.load_study(study_name="search", storage=store.optuna), "My own *note*.")
    hpo("report", "--study", "search", cwd=folder)
    note, attrs = shown(URL)
    assert note.startswith("My own *note*.\n\n# Report by `hpo report`\n")
    hpo("report", "--study", "search", cwd=folder)
    again, same = shown(URL)
    assert again == note
    assert same == attrs
    names = {key.split(":")[2] for key in attrs if key.startswith("dashboard:plot_data:")}
    assert names == {"hpo-curves", "hpo-history", "hpo-importance"}
    files = [json.loads(v)["filename"] for k, v in attrs.items() if "artifacts:" in k]
    assert sorted(files) == ["config.yaml"] * 3 + ["metrics.jsonl"] * 3 + ["report.html"]
    assert len(list((folder / "runs/artifacts").iterdir())) == 7
    with open_store(URL) as store:
        old = note.replace("# Report by `hpo report`", "# What `hpo report` says")
        save_note(optuna.load_study(study_name="search", storage=store.optuna), old)
    hpo("report", "--study", "search", cwd=folder)
    again, _ = shown(URL)
    assert again == note, "the report of an older version is replaced"


def test_dashboard_serves_the_attached_files(folder: Path) -> None:
    hpo("report", "--study", "search", cwd=folder)
    _, attrs = shown(URL)
    best = of("search").best()
    assert best
    url = f"sqlite:///{folder}/runs/hpo.db"
    with dashboard(url, "--out", f"{folder}/runs") as address, open_store(URL) as store:
        study_id = store.optuna.get_study_id_from_name("search")
        prefix = f"dashboard:artifacts:{best.user_attrs.trial_id}:"
        key = next(k for k, v in attrs.items() if k.startswith(prefix) and "metrics.jsonl" in v)
        path = f"/artifacts/{study_id}/{best.user_attrs.trial_id}/{key.rpartition(':')[2]}"
        with urllib.request.urlopen(address + path, timeout=50) as answer:
            served = answer.read()
    assert served == (folder / f"runs/search/trials/{best.number:04d}/metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("folder")
def test_of_many_curves_the_best_and_an_even_choice_are_drawn() -> None:
    study = of("search")
    begun = [t for t in study.trials if t.last_step]
    kept = curve_figures.thinned(study, begun, 12)
    best = study.best()
    assert len(kept) <= 12
    assert best in kept
    assert study.baseline() in kept
    assert curve_figures.thinned(study, begun, 300) == begun
    figure, told = curve_figures.curves_figure(study, 12)
    assert f"{len(kept)} of {len(begun)} curves" in told[0]
    assert figure.layout.width == 680


@pytest.mark.usefixtures("folder")
def test_values_that_are_no_numbers_are_gaps() -> None:
    lines = [
        trace for trace in curve_figures.curves_figure(of("diverging"))[0].data if trace.mode in ("lines", "markers")
    ]
    assert lines
    assert all(y is None or math.isfinite(y) for trace in lines for y in trace.y)


def test_what_diverged_does_not_hide_the_rest() -> None:
    figure = empty_figure("x", "y")
    told = zoom(figure, [1.0 + i / 100 for i in range(40)] + [900.0], also=[0.5])
    low, high = figure.layout.yaxis.range
    assert told == ["One value is above the figure."]
    assert low < 0.5
    assert 1.38 < high < 2
    assert zoom(figure, [1.0, 2.0, 3.0]) == []


@pytest.mark.usefixtures("folder")
def test_the_best_so_far_falls_and_ends_at_the_best() -> None:
    study = of("search")
    steps = list(curve_figures.study_progress(study))
    best = [s.best for s in steps if s.best is not None]
    assert best == sorted(best, reverse=True)
    found = study.best()
    assert found
    assert best[-1] == found.values[0]
    assert steps[-1].trained == 1000 * sum(t.last_step or 0 for t in study.own)
    assert [s.trained for s in curve_figures.study_progress(study)] == sorted(s.trained for s in steps)


@pytest.mark.usefixtures("folder")
def test_worker_is_shown_to_work_as_long_as_its_trials_took() -> None:
    study = of("search")
    (work,) = timeline.worker_times(study)
    assert len(work.trials) == 36
    total = sum(t.duration.total_seconds() for t in study.trials if t.duration)
    assert math.isclose(work.seconds, total, rel_tol=0.05)
    assert 0 < work.share <= 1
    assert math.isclose(work.share, work.seconds / timeline.duration_s(study))
