"""The dashboard over real studies: who may reach it, and what a browser shows."""

import base64
import contextlib
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.checking import read
from hpo.dashboard import is_loopback
from hpo.register import register
from hpo.storage import connect
from hpo.worker import Worker
from tests.planted import study as planted

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Whatever is not this machine must not even be looked up.
QUIET += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A storage with a finished study of six trials."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/hpo.db"
    with connect(url, create=True) as store:
        at = register(store, read(str(planted(tmp_path, budget={"trials": 6}, pruner={"name": "none"}))), None, {})
        Worker(at, Path("runs"), 1, lambda event: None).work()
    yield url
    sys.modules.pop("curves", None)


@contextlib.contextmanager
def dashboard(url: str, *arguments: str, password: str = "") -> Iterator[str]:
    """A running dashboard; yields its address."""
    asked = [sys.executable, "-m", "hpo", "dashboard", "--storage", url, "--port", "0", *arguments]
    env = {**os.environ, "HPO_DASHBOARD_PASSWORD": password}
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None
            told = process.stderr.readline()
            found = re.search(r"http://[^/]+", told)
            assert found, told
            yield found[0].replace("0.0.0.0", "127.0.0.1")
        finally:
            process.terminate()
            process.communicate()


def answer(address: str, method: str = "GET", password: str = "") -> int:
    request = urllib.request.Request(address, method=method)
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"me:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; the Debian package is chromium")
def test_browser_shows_the_intermediate_values_of_every_trial(searched: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    with dashboard(searched) as address:
        asked = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path}/browser", "--virtual-time-budget=20000", "--dump-dom"]
        page = subprocess.run(
            [*asked, f"{address}/dashboard/studies/1"], capture_output=True, text=True, timeout=120, check=True
        ).stdout
    assert "Intermediate values" in page
    assert {int(number) for number in re.findall(r"trial #(\d+)", page)} == set(range(6))
    assert "val_loss" in page


def test_listens_on_this_machine_alone_unless_there_is_a_password(searched: str) -> None:
    asked = [sys.executable, "-m", "hpo", "dashboard", "--storage", searched, "--host", "0.0.0.0"]
    env = {**os.environ, "HPO_DASHBOARD_PASSWORD": ""}
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert found.returncode == 2
    assert "HPO_DASHBOARD_PASSWORD" in found.stderr
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.1.2.3", "host")] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip


def test_password_is_asked_of_every_request_and_only_looking_is_allowed(searched: str) -> None:
    with dashboard(searched, "--host", "0.0.0.0", password="secret") as address:
        for path in ("/dashboard", "/api/studies", "/api/studies/1", "/static/bundle.js"):
            assert answer(address + path) == 401
            assert answer(address + path, password="Secret") == 401
        assert answer(f"{address}/api/studies/1", method="DELETE") == 401
        assert answer(f"{address}/api/studies", password="secret") == 200
        assert answer(f"{address}/api/studies/1", method="DELETE", password="secret") == 403
        assert answer(f"{address}/api/studies/1", password="secret") == 200


def test_port_that_is_taken_is_named(searched: str) -> None:
    with dashboard(searched) as address:
        port = address.rpartition(":")[2]
        asked = [sys.executable, "-m", "hpo", "dashboard", "--storage", searched, "--port", port]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith(f"hpo: --port: cannot listen on 127.0.0.1:{port}")
