"""The dashboard as a process, with real studies: its addresses, its use of the storage, its errors."""

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import wsgiref.simple_server
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from hpo.dashboard import http_server
from hpo.dashboard.server import build_app
from hpo.storage.store import open_dashboard, open_store
from tests.support.dashboard import dashboard, get_status
from tests.support.postgres import MISSING, Postgres, binaries
from tests.support.wsgi import Answer


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage with the study `study`."""
    made = f"sqlite:///{tmp_path}/hpo.db"
    with open_store(made, create=True) as store:
        optuna.create_study(study_name="study", storage=store.optuna)
    return made


def refused(url: str, *arguments: str, password: str = "") -> tuple[int, str]:
    """Return status and message of a dashboard that does not start."""
    asked = [sys.executable, "-m", "hpo", "dashboard", "--storage", url, *arguments]
    env = {**os.environ, "HPO_DASHBOARD_PASSWORD": password}
    found = subprocess.run(asked, capture_output=True, text=True, timeout=60, env=env, check=False)
    return found.returncode, found.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
@pytest.mark.parametrize("password", ["", " \t"])
def test_address_that_other_machines_reach_requires_a_password(url: str, host: str, password: str) -> None:
    status, message = refused(url, "--host", host, password=password)
    assert status == 2
    assert message.startswith("hpo: --host: requires a password if other machines can reach the address")
    assert "HPO_DASHBOARD_PASSWORD" in message


def test_port_in_use_is_named(url: str) -> None:
    with dashboard(url) as address:
        port = address.rpartition(":")[2]
        status, message = refused(url, "--port", port)
    assert (status, message) == (
        1,
        f"hpo: --port: cannot listen on 127.0.0.1:{port}: Address already in use; choose another port\n",
    )


def test_missing_storage_is_an_error(tmp_path: Path) -> None:
    status, message = refused(f"sqlite:///{tmp_path}/none.db")
    assert (status, message.startswith("hpo: no storage at ")) == (4, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "password", "changes"),
    [
        ([], "", 204),
        (["--read-only"], "", 403),
        ([], "secret", 204),
        (["--host", "0.0.0.0"], "secret", 403),
        (["--host", "0.0.0.0", "--allow-edit"], "secret", 204),
    ],
)
def test_pages_change_studies_if_the_dashboard_is_local_or_allows_it(
    url: str, arguments: list[str], password: str, changes: int
) -> None:
    with dashboard(url, *arguments, password=password) as address:
        assert get_status(f"{address}/api/studies/1", "GET") == (401 if password else 200)
        assert get_status(f"{address}/api/studies/1", "DELETE") == (401 if password else changes)
        if password:
            assert get_status(f"{address}/api/studies/1", "DELETE", "wrong") == 401
            assert get_status(f"{address}/api/studies/1", "DELETE", password) == changes
        assert get_status(f"{address}/api/studies/1", password=password) == (404 if changes == 204 else 200)


def test_ipv6_address_is_served(url: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with dashboard(url, "--host", "::1") as address:
        assert address.startswith("http://[::1]:")
        assert get_status(f"{address}/api/studies") == 200


@pytest.fixture
def writing(url: str) -> Iterator[None]:
    """Hold SQLite's write lock."""
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        yield
        writer.execute("ROLLBACK")


def test_pages_are_shown_while_another_process_writes(url: str, request: pytest.FixtureRequest) -> None:
    with dashboard(url) as address:
        request.getfixturevalue("writing")
        # a page that took the write lock would wait for 60 s, longer than the timeout of the request
        for path in ("/api/studies", "/api/studies/1", "/csv/1", "/api/studies/1/plot/contour"):
            assert get_status(address + path) == 200


def test_read_only_dashboard_starts_while_another_process_writes(url: str, writing: None) -> None:
    with dashboard(url, "--read-only") as address:
        assert get_status(f"{address}/api/studies/1") == 200


def test_workers_write_while_a_page_reads(url: str) -> None:
    with open_dashboard(url) as look, look.engine.begin() as reading:
        assert reading.exec_driver_sql("SELECT count(*) FROM studies").scalar_one() == 1
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=0)) as writer:
            writer.execute("UPDATE studies SET study_name = 'written'")
            writer.commit()
    with open_store(url) as store:
        assert store.optuna.get_study_name_from_id(1) == "written"


def test_server_waits_for_minutes_while_a_large_study_is_read(postgres: Postgres) -> None:
    with open_dashboard(postgres.url("with_tables")) as look, look.engine.begin() as reading:
        limits = [f"SHOW {name}" for name in ("idle_in_transaction_session_timeout", "transaction_read_only")]
        assert [reading.exec_driver_sql(limit).scalar_one() for limit in limits] == ["5min", "on"]


@pytest.mark.skipif(not binaries(), reason=MISSING)
def test_restart_of_the_database_server_does_not_end_the_dashboard(capfd: pytest.CaptureFixture[str]) -> None:
    server = Postgres().start()
    try:
        with open_store(server.url(), create=True) as store:
            optuna.create_study(study_name="study", storage=store.optuna)
        with open_dashboard(server.url(), patience=0.2) as look:
            pages = build_app(look, None, None, local=True)
            paths = ("/api/studies", "/api/studies/1", "/api/studies/1/plot/contour", "/csv/1")
            assert [Answer(pages, path).status for path in paths] == [200] * 4
            server.stop()
            unreachable = [Answer(pages, path) for path in paths]
            assert [answer.status for answer in unreachable] == [503] * 4
            assert [answer.reason[:8] for answer in unreachable[:3]] == ["storage "] * 3
            server.start()
            assert [Answer(pages, path).status for path in paths] == [200] * 4
    finally:
        server.remove()
    assert "Traceback" not in capfd.readouterr().err


def test_client_that_closes_its_connection_is_no_error(url: str) -> None:
    with dashboard(url) as address:  # which checks that no traceback was printed
        host, _, port = address.removeprefix("http://").partition(":")
        for sent in (b"", b"GET /api/stu", b"GET /static/bundle.js HTTP/1.0\r\nHost: localhost\r\n\r\n"):
            with socket.create_connection((host, int(port))) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
                connection.sendall(sent)
        with urllib.request.urlopen(f"{address}/dashboard", timeout=50) as page:
            assert b"Optuna Dashboard" in page.read()


def test_other_users_of_this_machine_need_the_token_of_the_printed_link(url: str) -> None:
    with dashboard(url, token=True) as link:
        address, _, token = link.partition("/dashboard?token=")
        assert len(token) >= 32
        assert [get_status(f"{address}{path}") for path in ("/dashboard", "/api/studies", "/csv/1")] == [401] * 3
        assert get_status(f"{address}/api/studies/1", "DELETE") == 401
        assert get_status(f"{address}/api/studies/1?token={token[:-1]}", "DELETE") == 401
        with pytest.raises(urllib.error.HTTPError, match="303"):
            urllib.request.build_opener(NoRedirect).open(link)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())  # as a browser
        with opener.open(link) as page:
            assert (page.url, page.status) == (f"{address}/dashboard", 200)
        with opener.open(urllib.request.Request(f"{address}/api/studies/1", method="DELETE")) as deleted:
            assert deleted.status == 204


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def test_slow_connections_do_not_stop_the_dashboard(url: str) -> None:
    with dashboard(url, files=256) as address, contextlib.ExitStack() as stack:
        host, _, port = address.removeprefix("http://").partition(":")
        for i in range(300):
            slow = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            slow.sendall(b"GET / HTTP/1.1\r\nHost: local" if i % 2 else b"")
        assert [get_status(f"{address}/api/studies") for _ in range(5)] == [200] * 5


def test_client_that_sends_no_request_is_disconnected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_S", 0.2)
    with wsgiref.simple_server.make_server(
        "127.0.0.1", 0, lambda *_: [], http_server.ThreadingServer, http_server.QuietRequestHandler
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        with socket.create_connection(server.server_address, timeout=10) as client:  # type: ignore[arg-type]
            client.sendall(b"GET / HT")
            assert client.recv(100) == b""
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("new_interpreters")  # the dashboard is then a child of this process
def test_body_of_100_megabytes_does_not_take_memory(url: str) -> None:
    with dashboard(url) as address:
        get_status(f"{address}/api/studies")
        (child,) = (
            int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()[-1:]
        )
        assert b"dashboard" in Path(f"/proc/{child}/cmdline").read_bytes()
        before = peak_mb(child)
        for path in ("/api/studies/1/note", "/api/artifacts/1"):
            request = urllib.request.Request(address + path, data=bytes(100 * 2**20), method="POST")
            with pytest.raises(urllib.error.HTTPError, match="413"):
                urllib.request.urlopen(request, timeout=50)
        assert peak_mb(child) - before < 20


def peak_mb(process: int) -> float:
    """Return the largest memory that a process had so far."""
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
