"""The dashboard in headless Chromium, while a study runs."""

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import wsgiref.simple_server
from collections.abc import Iterator
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from hpo.dashboard.access import AccessControl
from hpo.dashboard.http_server import QuietRequestHandler, ThreadingServer
from hpo.dashboard.wsgi import WsgiApp
from hpo.storage.store import open_store
from tests.support.chromium import CHROMIUM, MISSING, Browser
from tests.support.command import environment
from tests.support.dashboard import dashboard
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

PASSWORD = "pä$s:wörd"
POINTS = """(plot => plot && plot.data ? plot.data.reduce((n, curve) => n + curve.y.length, 0) : 0)
(document.getElementById('graph-intermediate-values'))"""
PLOTS = "document.querySelectorAll('.js-plotly-plot').length"
READY = "document.querySelector('.optuna-loading-wrapper') == null && document.body.innerText.includes('planted')"


def count(url: str, what: str) -> int:
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


def has_values(url: str) -> bool:
    """Return whether a study has reported its first value."""
    if not Path(url.removeprefix("sqlite:///")).is_file():
        return False
    with contextlib.suppress(sqlite3.OperationalError):  # the tables do not exist yet
        return count(url, "trial_intermediate_values") > 0
    return False


@pytest.fixture
def running(tmp_path: Path) -> Iterator[str]:
    """The storage of a study that `hpo launch` runs in the background until the end of the test."""
    path = planted(tmp_path, base={"pause": 0.2}, budget={"trials": 500}, pruner={"name": "none"})
    url = f"sqlite:///{tmp_path}/hpo.db"
    command = [
        sys.executable,
        "-m",
        "hpo",
        "launch",
        "--study",
        str(path),
        "--storage",
        url,
        "--workers",
        "1",
        "--plain",
    ]
    log = tmp_path / "launch.log"
    with (
        open(log, "w") as stderr,
        subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=stderr) as launched,
    ):
        try:
            while not has_values(url):
                with pytest.raises(subprocess.TimeoutExpired):
                    launched.wait(0.2)
            yield url
            assert launched.poll() is None, log.read_text()
        finally:
            launched.send_signal(signal.SIGINT)
            launched.wait(60)
    assert "Traceback" not in log.read_text()


def test_browser_with_the_password_watches_the_curves_of_a_running_study_grow(running: str, tmp_path: Path) -> None:
    with dashboard(running, "--host", "0.0.0.0", password=PASSWORD) as address, Browser(tmp_path, PASSWORD) as browser:
        browser.open(f"{address}/dashboard/studies/1")
        first = browser.wait(POINTS)
        browser.wait(f"{PLOTS} >= 4")
        reported = count(running, "trial_intermediate_values")
        shown = browser.wait(f"({POINTS}) > {first} && ({POINTS})")
        browser.screenshot(tmp_path / "curves.png")
        assert count(running, "trial_intermediate_values") >= reported
        for page in ("analytics", "trials", "trialTable", "smartSelection", "note"):
            browser.open(f"{address}/dashboard/studies/1/{page}")
            browser.wait(READY)
        browser.open(f"{address}/dashboard")
        browser.wait(READY)
    assert shown > first
    assert browser.errors == []
    assert {status for status in browser.statuses.values() if status != 304} == {200}
    assert [url for url in browser.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert count(running, "trials WHERE state = 'FAIL'") == 0


def test_browser_without_the_password_is_shown_nothing(running: str, tmp_path: Path) -> None:
    with dashboard(running, "--host", "0.0.0.0", password=PASSWORD) as address:
        page = f"{address}/dashboard/studies/1"
        with Browser(tmp_path, PASSWORD) as known:  # the same user data, so that the browser has stored pages
            known.open(page)
            known.wait(POINTS)
        for password in None, "wrong":
            with Browser(tmp_path, password) as browser:
                browser.open(page)
                browser.screenshot(tmp_path / "refused.png")
                assert browser.statuses.pop(page) == 401
                assert set(browser.statuses.values()) <= {401}  # the icon
                assert "password is required" in browser.evaluate("document.body.innerText")
                assert browser.evaluate(PLOTS) == 0


def test_browser_that_opens_the_printed_link_may_use_the_pages_and_no_other_browser_may(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    with open_store(url, create=True) as store:
        optuna.create_study(study_name="planted", storage=store.optuna)
    with dashboard(url, token=True) as link:
        address, _, token = link.partition("/dashboard?token=")
        with Browser(tmp_path) as browser:
            browser.open(link)
            browser.wait(READY)
            assert token not in browser.evaluate("location.href")
            assert browser.evaluate("document.cookie") == ""  # no script can read the cookie
            browser.open(f"{address}/dashboard/studies/1")
            browser.wait(READY)
            delete = f"fetch('{address}/api/studies/1', {{method: 'DELETE', body: '{{}}'}})"
            browser.evaluate(f"{delete}.then(answer => window.deleted = answer.status)")
            assert browser.wait("window.deleted") == 204
            assert [request for request in browser.requests if token in request] == [link]
            assert browser.errors == []
        (tmp_path / "other").mkdir()
        with Browser(tmp_path / "other") as browser:
            browser.open(f"{address}/dashboard")
            assert browser.statuses[f"{address}/dashboard"] == 401
            assert "a token is required" in browser.evaluate("document.body.innerText")


@contextlib.contextmanager
def listening(app: WsgiApp) -> Iterator[str]:
    with wsgiref.simple_server.make_server("127.0.0.1", 0, app, ThreadingServer, QuietRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_page_among_the_files_of_a_run_runs_no_script(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    files = FileSystemArtifactStore(tmp_path / "files")
    page = tmp_path / "page.html"
    page.write_text("<title>as it was</title><script>document.title = 'ran'</script><p>text</p>")
    with open_store(f"sqlite:///{tmp_path}/hpo.db", create=True) as store:
        study = optuna.create_study(study_name="study", storage=store.optuna)
        made = upload_artifact(artifact_store=files, file_path=str(page), study_or_trial=study)
        bare: WsgiApp = optuna_dashboard.wsgi(store.optuna, artifact_store=files)
        titles = {}
        for name, app in (("bare", bare), ("protected", AccessControl(bare, None, None, True, lambda _: 0))):
            with listening(app) as address, Browser(tmp_path) as browser:
                browser.open(f"{address}/artifacts/1/{made}")
                browser.wait("document.body.innerText.includes('text')")
                titles[name] = browser.evaluate("document.title")
    assert titles == {"bare": "ran", "protected": "as it was"}, json.dumps(titles)


def test_page_of_another_site_can_neither_read_nor_change_a_study(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/hpo.db", create=True) as store:
        optuna.create_study(study_name="study", storage=store.optuna)

    def other(environ: object, start: object) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/html")])  # type: ignore[operator]
        return [b"<p>another site</p>"]

    url = f"sqlite:///{tmp_path}/hpo.db"
    with dashboard(url) as address, listening(other) as site, Browser(tmp_path) as browser:
        browser.open(site)
        browser.evaluate(f"fetch('{address}/api/studies/1').then(() => window.got = 1, () => window.got = 2)")
        assert browser.wait("window.got") == 2
        # requests that a browser sends without a preflight request
        for path, method in (("/api/studies", "GET"), ("/api/studies/1/rename", "POST")):
            command = f"fetch('{address}{path}', {{method: '{method}', mode: 'no-cors'}})"
            browser.evaluate(f"{command}.then(() => window.sent = '{path}')")
            browser.wait(f"window.sent == '{path}'")
            assert browser.statuses[address + path] == 403
    assert count(url, "studies WHERE study_name = 'study'") == 1
