"""Opening a storage: what is refused, how it is set up, and how many connections it takes."""

import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from hpo.errors import StorageError
from hpo.queue.budget import fill_slots
from hpo.queue.heartbeat import LeaseRenewer
from hpo.queue.slots import Slots
from hpo.storage.connections import check_connections, read_connections
from hpo.storage.engine import open_readonly
from hpo.storage.store import Store, open_store
from hpo.storage.trials import read_trials
from tests.support.postgres import MISSING, Postgres, binaries
from tests.support.race import N_PROCESSES, Race

pytestmark = pytest.mark.usefixtures("created_tables")

SECRET = "s3cr3t"


def test_a_missing_file_is_named_and_not_made(tmp_path: Path) -> None:
    for opening in (open_store, open_readonly):
        with pytest.raises(StorageError, match=r"no storage at .*none\.db; `hpo launch` creates it"):
            opening(f"{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_tables_is_refused(empty_url: str, tmp_path: Path) -> None:
    if empty_url.startswith("sqlite"):
        (tmp_path / "hpo.db").touch()
    with pytest.raises(StorageError, match=r"no study in .*`hpo launch` creates the tables"):
        open_store(empty_url)


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path, create: bool) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database " * 100)
    with pytest.raises(StorageError, match=r"notes\.db: file is not a database"):
        open_store(str(file), create=create)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as `nobody` where the tests run as root, whom no mode of a file stops."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_written_is_named_at_the_start(what: str) -> None:
    # Not pytest's own folder, which `nobody` may not enter.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        if what == "file":
            open_store(f"{folder}/hpo.db", create=True).close()
        for path in [*folder.iterdir(), folder]:
            path.chmod(0o755 if path == folder else 0o444)
        if what == "folder" or os.geteuid() != 0:
            folder.chmod(0o555)
        with unprivileged(), pytest.raises(StorageError, match=name):
            open_store(f"{folder}/hpo.db", create=True)
        if what == "file":
            with unprivileged(), pytest.raises(StorageError, match=name):
                open_store(f"{folder}/hpo.db")
        folder.chmod(0o755)


def test_sqlite_is_set_up_for_many_processes(tmp_path: Path) -> None:
    with open_store(f"{tmp_path}/hpo.db", create=True) as store, store.engine.begin() as connection:
        pragmas = ("journal_mode", "synchronous", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
        assert values == ["wal", 1, 60000]
        other = sqlite3.connect(tmp_path / "hpo.db", timeout=0)
        with pytest.raises(
            sqlite3.OperationalError, match="locked"
        ):  # a transaction holds the write lock from its begin
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_looking_neither_waits_for_a_writer_nor_writes(storage_url: str) -> None:
    with open_store(storage_url, create=True) as store:
        optuna.create_study(study_name="s", storage=store.optuna)
        fill_slots(Slots(store, 1), [("search", None)])
        with store.engine.begin() as writer, open_readonly(storage_url) as looking:
            writer.exec_driver_sql("UPDATE hpo_slot SET attempt = 7")
            assert read_trials(looking, 1) == []
            assert Slots(looking, 1).counts()["free"] == 1
        with open_readonly(storage_url) as looking, pytest.raises(StorageError, match=r"read-?only"):
            Slots(looking, 1).claim("me", 1)


def test_creating_twice_keeps_what_is_there(storage_url: str) -> None:
    for n in (1, 2):
        with open_store(storage_url, create=True) as store:
            study = optuna.create_study(study_name="s", storage=store.optuna, load_if_exists=True)
            study.tell(study.ask(), 1.0)
            assert len(study.trials) == n


def test_a_name_with_braces_and_blanks_stays_as_it_is(tmp_path: Path) -> None:
    with open_store(f"{tmp_path}/{{x}} 1%20.db", create=True):
        assert (tmp_path / "{x} 1%20.db").is_file()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server with few connections that requires a password on 127.0.0.1 and can be restarted."""
    if not binaries():
        pytest.skip(MISSING)
    server = Postgres(tcp=True, max_connections=30)
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def remote(server: Postgres) -> Iterator[Store]:
    with open_store(server.url(server.database(), tcp=True), create=True, patience=30) as store:
        yield store


def test_a_wrong_password_is_reported_at_once_and_not_shown(server: Postgres) -> None:
    with pytest.raises(StorageError, match=r"127\.0\.0\.1.*password authentication failed") as failure:
        open_store(server.url(tcp=True, password=SECRET), patience=1000)
    assert SECRET not in str(failure.value)


def test_a_database_that_does_not_exist_is_reported_at_once(server: Postgres) -> None:
    for create in (False, True):
        with pytest.raises(StorageError, match='database "nowhere" does not exist'):
            open_store(server.url("nowhere"), create=create, patience=1000)


def test_a_server_that_does_not_answer_is_named_without_the_password() -> None:
    with pytest.raises(StorageError, match=r'127\.0\.0\.1", port 1 failed: Connection refused') as failure:
        open_store(f"postgresql://u:{SECRET}@127.0.0.1:1/d", create=True, patience=0.3)
    assert SECRET not in str(failure.value)


def test_calls_go_on_after_a_restart_of_the_server(server: Postgres, remote: Store) -> None:
    study = optuna.create_study(study_name="s", storage=remote.optuna)
    slots = Slots(remote, study._study_id)
    fill_slots(slots, [("search", None)])
    server.stop()
    returns = threading.Timer(1.0, server.start)
    returns.start()
    claim = slots.claim("me", 60)
    study.tell(study.ask(), 1.0)
    returns.join()
    assert claim
    assert slots.done(claim, "me")
    assert len(study.trials) == 1


def test_more_workers_than_connections_are_refused_with_the_numbers(remote: Store, tmp_path: Path) -> None:
    check_connections(remote, 2)
    with pytest.raises(StorageError, match=r"64 workers need 64 x 2 \+ 10 = 138 connections.* allows 27 "):
        check_connections(remote, 64)
    assert read_connections(remote).allowed == 30 - 3, "the server reserves three connections for superusers"
    n_workers = read_connections(remote).n_workers
    check_connections(remote, n_workers)
    with pytest.raises(StorageError, match=f"start at most {n_workers} workers"):
        check_connections(remote, n_workers + 1)
    with open_store(f"{tmp_path}/hpo.db", create=True) as file:
        check_connections(file, 64)


def test_a_worker_holds_at_most_two_connections(server: Postgres, remote: Store) -> None:
    study = optuna.create_study(study_name="s", storage=remote.optuna)
    slots = Slots(remote, study._study_id)
    fill_slots(slots, [("search", None)])
    claim = slots.claim("me", 60)
    assert claim
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hpo'"
    with LeaseRenewer(slots, "me", lease_s=0.05) as renewer:
        renewer.hold(claim)
        for _ in range(10):
            study.tell(study.ask(), 1.0)
            assert server.sql(count)[0][0] <= 2


def launch(_: int, url: str) -> str:
    with open_store(url, create=True, patience=60) as store:
        study = optuna.create_study(study_name="s", storage=store.optuna, load_if_exists=True)
        fill_slots(Slots(store, study._study_id), [("search", None)] * 20)
        return study.study_name


@pytest.mark.parametrize("n", range(2))
def test_eight_launches_on_an_empty_database_make_one_study(race: Race, empty_url: str, n: int) -> None:
    assert race(launch, empty_url) == ["s"] * N_PROCESSES
    with open_store(empty_url) as store:
        assert [study.study_name for study in store.optuna.get_all_studies()] == ["s"]
        assert Slots(store, 1).n_unfinished() == 20
