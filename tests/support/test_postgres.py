import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.storage.store import open_store
from tests.support.postgres import MISSING, Postgres, binaries


@pytest.fixture
def server() -> Iterator[Postgres]:
    if not binaries():
        pytest.skip(MISSING)
    server = Postgres()
    try:
        yield server.start()
    finally:
        if server.folder.exists():
            server.remove()


def system() -> tuple[object, ...]:
    """Return the users, and the owners and modes of the folders that a server could change."""
    users = subprocess.run(["getent", "passwd"], capture_output=True, text=True, check=True).stdout
    folder = binaries()
    assert folder
    folders = [Path("/"), Path("/tmp"), Path.home(), folder, *folder.parents]
    return users, [(path, os.stat(path).st_mode, os.stat(path).st_uid) for path in folders]


def processes() -> dict[int, str]:
    """Return the command line of every running process."""
    lines = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
    return lines


@pytest.mark.skipif(not binaries(), reason=MISSING)
def test_server_leaves_the_system_unchanged() -> None:
    before = system()
    server = Postgres().start()
    open_store(server.url(), create=True).close()
    assert any(str(server.folder) in line for line in processes().values())
    server.remove()
    assert system() == before
    assert not server.folder.exists()
    assert not any(str(server.folder) in line for line in processes().values())


def test_a_server_listens_on_its_socket_only(server: Postgres) -> None:
    assert server.sql("SHOW listen_addresses") == [("",)]
    assert server.sql("SHOW timezone") == [("UTC",)]
    assert len(bytes(server.folder / f".s.PGSQL.{server.port}")) < 108


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_keeps_its_data_over_a_restart(server: Postgres, signal_: signal.Signals) -> None:
    name = server.database()
    server.stop(signal_)
    server.start()
    assert server.sql(f"SELECT datname FROM pg_database WHERE datname = '{name}'") == [(name,)]


def test_environment_variable_selects_the_binaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "initdb").touch(mode=0o755)
    monkeypatch.setenv("HPO_PG_BINDIR", str(tmp_path))
    assert binaries() == tmp_path


@pytest.mark.exhaustive
def test_a_server_starts_from_binaries_that_nobody_may_not_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = binaries()
    if os.geteuid() != 0 or not folder or "pgserver" not in str(folder):
        pytest.skip("needs root and the wheel's binaries")
    package = tmp_path / folder.parents[1].name
    package.mkdir()
    (package / folder.parent.name).symlink_to(folder.parent)
    libraries = folder.parents[1].with_name(f"{folder.parents[1].name}.libs")
    (tmp_path / libraries.name).symlink_to(libraries)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("HPO_PG_BINDIR", str(package / folder.parent.name / "bin"))
    server = Postgres()
    try:
        assert server.start().sql("SELECT 1") == [(1,)]
        assert (server.folder / "wheel").is_dir()
    finally:
        server.remove()
