"""The report in headless Chromium, without a network, on screen and on paper; and what the dashboard shows of it."""

import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.report.pdf import write_pdf
from hpo.storage.store import open_store
from tests.support.chromium import CHROMIUM, MISSING, Browser
from tests.support.command import hpo
from tests.support.dashboard import dashboard
from tests.support.reported_studies import run_reported_study

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

DRAWN = (
    "[...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.querySelector('.main-svg')).map(p => p.id)"
)
MARKS = (
    "[...document.querySelectorAll('.js-plotly-plot')].filter(p => !p.querySelector('.trace, .bars, .contour')).length"
)
SEARCH = ["curves", "history", "saved", "importance", "importance-by-rung", "slices-0", "contour-0", "lr", "timeline"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a search and a study of arms, each with its report, shown in the dashboard too."""
    path = tmp_path_factory.mktemp("browsed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        (path / "runs").mkdir()
        with open_store(f"sqlite:///{path}/runs/hpo.db", create=True) as store:
            run_reported_study(store, path, "search")
            run_reported_study(store, path, "arms")
        for name in ("search", "arms"):
            hpo("report", "--study", name, cwd=path)
        yield path
    sys.modules.pop("shown", None)


@pytest.mark.parametrize(("name", "figures"), [("search", SEARCH), ("arms", ["arms", "timeline"])])
def test_page_draws_all_its_figures_and_asks_for_nothing(
    folder: Path, tmp_path: Path, name: str, figures: list[str]
) -> None:
    page = (folder / f"runs/{name}/report.html").as_uri()
    with Browser(tmp_path) as browser:
        browser.open(page)
        browser.wait(f"({DRAWN}).length == document.querySelectorAll('figure').length")
        drawn = browser.evaluate(DRAWN)
        empty = browser.evaluate(MARKS)
        wide = browser.evaluate(
            "[...document.querySelectorAll('table, pre, figure')].filter(e => e.scrollWidth > 680).length"
        )
        canvases = browser.evaluate("document.querySelectorAll('canvas').length")
        titles = browser.evaluate("[...document.querySelectorAll('.xtick text, .ytick text')].map(t => t.textContent)")
        browser.screenshot(tmp_path / "report.png")
    assert set(figures) <= set(drawn)
    assert (empty, canvases, wide) == (0, 0, 0)
    assert browser.errors == []
    assert [url for url in browser.requests if url != page and not url.startswith("data:")] == []
    assert not [title for title in titles if "&" in title and "&'c'" not in title]  # names are not escaped twice


def test_printed_report_has_pages_and_text(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.pdf"
    write_pdf((folder / "runs/search/report.html").read_text(), target)
    found = target.read_bytes()
    assert found.startswith(b"%PDF-")
    assert found.rstrip().endswith(b"%%EOF")
    assert len(re.findall(rb"/Type\s*/Page\b", found)) >= 4
    boxes = {tuple(round(float(n)) for n in box.split()) for box in re.findall(rb"/MediaBox\s*\[([^]]+)\]", found)}
    assert boxes <= {(0, 0, 595, 842), (0, 0, 596, 842), (0, 0, 594, 842)}  # A4
    streams = [
        zlib.decompressobj().decompress(part)
        for part in re.findall(rb"stream\r?\n(.*?)endstream", found, re.S)
        if part[:1] == b"x"
    ]
    assert sum(stream.count(b" Tj") + stream.count(b" TJ") for stream in streams) > 100
    if shutil.which("pdftotext"):
        told = subprocess.run(
            ["pdftotext", "-layout", str(target), "-"], capture_output=True, text=True, check=True
        ).stdout
        assert "below the mean of 4" in re.sub(r"\s+", " ", told)
        assert "Figure 1." in told
        assert "Reproduce these results" in told
    assert list(tmp_path.iterdir()) == [target]


def test_dashboard_shows_the_note_and_the_figures(folder: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{folder}/runs/hpo.db"
    with open_store(url) as store:
        study_id = store.optuna.get_study_id_from_name("search")
        attrs = store.optuna.get_study_system_attrs(study_id)
    names = sorted({key.split(":")[2] for key in attrs if key.startswith("dashboard:plot_data:")})
    with dashboard(url, "--out", str(folder / "runs")) as address, Browser(tmp_path) as browser:
        browser.open(f"{address}/dashboard/studies/{study_id}")
        for title in ("Learning curves and noise of the baseline", "Best value so far", "Importance at each rung"):
            browser.wait(f"[...document.querySelectorAll('.gtitle')].some(text => text.textContent == '{title}')")
        browser.screenshot(tmp_path / "figures.png")
        browser.open(f"{address}/dashboard/studies/{study_id}/note")
        browser.wait("document.body.innerText.includes('below the mean of 4 runs of the baseline')")
        browser.screenshot(tmp_path / "note.png")
        artifact = next(json.loads(v) for k, v in attrs.items() if k.startswith("artifacts:"))
        browser.open(f"{address}/artifacts/{study_id}/{artifact['artifact_id']}")
        browser.wait("document.body.innerText.includes('Reproduce these results')")
        advised = browser.evaluate("document.body.innerText.includes('Save the page and open')")
    assert names == ["hpo-curves", "hpo-history", "hpo-importance"]
    assert artifact["filename"] == "report.html"
    assert advised  # where the dashboard lets no script run, the page says so
    assert [error for error in browser.errors if "sandbox" not in error and "Content Security" not in error] == []
    assert [asked for asked in browser.requests if not asked.startswith((address, "data:", "blob:"))] == []
