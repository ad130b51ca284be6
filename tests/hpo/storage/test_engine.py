"""A storage that cannot be written can be read, and a database of another program is never changed."""

import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.engine import open_readonly
from hpo.storage.store import open_store
from hpo.storage.url import normalise_url
from tests.support.command import MODULE, environment, finished_study, hpo, run_in_process, trivial
from tests.support.disk import read_only
from tests.support.postgres import Postgres

pytestmark = pytest.mark.usefixtures("created_tables")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that has ended."""
    return finished_study(tmp_path_factory.mktemp("done"))


def test_finished_results_can_be_read_on_a_read_only_mount(done: Path, tmp_path: Path) -> None:
    with read_only(done, tmp_path / "mount") as here:
        for command in ("status", "studies", "trials", "show 1", "why 1", "logs 1", "best", "export"):
            assert run_in_process(*command.split(), cwd=here)
        report = hpo("report", "--html", f"{tmp_path}/report.html", cwd=here)
        assert "report.html: written" in report.stderr
        assert "the dashboard does not show the report" in report.stderr
        for command in ("pause", "launch --study trivial.yaml", "retry --failed"):
            failed = hpo(*command.split(), cwd=here, status=4)
            assert "cannot be written: Read-only file system" in failed.stderr
        assert "study_summaries" in first_page(here)
    assert (done / "runs" / "hpo.db").is_file()


def first_page(folder: Path) -> str:
    """Start the dashboard in a folder; return what it says about the studies."""
    command = [sys.executable, "-m", "hpo", "dashboard", "--port", "0", "--no-token"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        try:
            assert "read-only" in line
            address = line.split()[1].partition("/dashboard")[0]
            with urllib.request.urlopen(f"{address}/api/studies") as answer:
                return str(answer.read())
        finally:
            server.terminate()


def test_changes_that_a_writer_left_beside_a_read_only_file_are_not_left_out(done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    writer = sqlite3.connect(done / "runs" / "hpo.db")
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("UPDATE studies SET study_name = study_name")
    writer.commit()
    for name in ("hpo.db", "hpo.db-wal"):
        (copy / name).write_bytes((done / "runs" / name).read_bytes())
    writer.close()
    with (
        read_only(copy, tmp_path / "mount") as here,
        pytest.raises(StorageError, match="copy both files"),
    ):
        open_readonly(f"sqlite:///{here}/hpo.db")


@pytest.mark.parametrize("command", ["status", "doctor --fix", "pause", "launch --study trivial.yaml", "worker"])
def test_database_of_optuna_is_named_and_never_changed(command: str, tmp_path: Path) -> None:
    trivial(tmp_path)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/theirs.db", study_name="their study")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    before = dump(tmp_path / "theirs.db")
    failed = hpo(*command.split(), "--storage", "theirs.db", cwd=tmp_path, status=4)
    said = failed.stdout + failed.stderr
    assert "got a database of Optuna with 1 studies, such as 'their study'; hpo does not change it" in said
    assert "hpo_slot" not in said
    assert dump(tmp_path / "theirs.db") == before


@pytest.mark.parametrize(
    ("command", "sql"),
    [
        ("launch --study trivial.yaml", "CREATE TABLE bookmarks (url)"),
        ("doctor --fix", "CREATE TABLE bookmarks (url)"),
        ("status", "CREATE TABLE studies (id, title); INSERT INTO studies VALUES (1, 'x')"),
        ("launch --study trivial.yaml", "CREATE TABLE alembic_version (version_num)"),
    ],
)
def test_database_of_another_program_is_named_and_never_changed(command: str, sql: str, tmp_path: Path) -> None:
    trivial(tmp_path)
    with sqlite3.connect(tmp_path / "theirs.db") as connection:
        connection.executescript(sql)
    before = dump(tmp_path / "theirs.db")
    failed = hpo(*command.split(), "--storage", "theirs.db", cwd=tmp_path, status=4)
    table = sql.split()[2]
    assert f"got a database with the tables {table} of another program; hpo does not" in failed.stdout + failed.stderr
    assert dump(tmp_path / "theirs.db") == before


def test_database_on_a_server_may_hold_other_tables_but_none_of_the_same_name(postgres: Postgres) -> None:
    url = postgres.url(postgres.database("template1"))
    engine = sa.create_engine(normalise_url(url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE bookmarks (url text)")
    open_store(url, create=True).close()
    url = postgres.url(postgres.database("template1"))
    engine = sa.create_engine(normalise_url(url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE studies (title text)")
    with pytest.raises(StorageError, match="got a database with the tables studies of another program"):
        open_store(url, create=True)
    assert sa.inspect(engine).get_table_names() == ["studies"]


def dump(file: Path) -> list[Any]:
    """Return everything in a SQLite file."""
    with sqlite3.connect(file) as connection:
        return list(connection.iterdump())


def test_launch_continues_after_an_interruption_between_the_tables_of_optuna_and_those_of_hpo(tmp_path: Path) -> None:
    optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/hpo.db").engine.dispose()
    with pytest.raises(StorageError, match="no study in"):
        open_readonly(f"sqlite:///{tmp_path}/hpo.db")
    open_store(f"sqlite:///{tmp_path}/hpo.db", create=True).close()


def test_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "hpo.db.lock").symlink_to("precious")
    with pytest.raises(StorageError, match=r"hpo.db.lock must be a file, got a symbolic link; remove it"):
        open_store(f"sqlite:///{tmp_path}/hpo.db", create=True)
    assert (tmp_path / "precious").read_text() == "content"


def test_links_in_the_place_of_logs_are_not_followed(tmp_path: Path) -> None:
    trivial(tmp_path)
    hpo("launch", "--study", "trivial.yaml", cwd=tmp_path)
    (tmp_path / "precious").write_text("content")
    log, metrics = (tmp_path / "runs" / "trivial" / name for name in ("worker-1.log", "trials/0004/stderr.log"))
    log.unlink()
    metrics.parent.mkdir()
    for link in (log, metrics):
        link.symlink_to(tmp_path / "precious")
    failing = MODULE.replace("for rung in", "raise ValueError('two\\nlines')\n    for rung in")
    (tmp_path / "trivial.py").write_text(failing)
    hpo("launch", "--study", "trivial.yaml", "--trials", "5", cwd=tmp_path)
    assert (tmp_path / "precious").read_text() == "content"
    assert not log.is_symlink()
    assert " ValueError: two\n" in hpo("show", "4", cwd=tmp_path).stdout


def test_command_that_waits_for_the_lock_of_another_process_says_so(tmp_path: Path) -> None:
    trivial(tmp_path)
    script = f"exec 9>'{tmp_path}/my hpo.db.lock'; flock 9; echo locked; read"
    command = [sys.executable, "-m", "hpo", "launch", "--study", "trivial.yaml", "--storage", "my hpo.db", "--quiet"]
    pipe = subprocess.PIPE
    with subprocess.Popen(["bash", "-c", script], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=pipe, stdout=pipe, text=True) as waiting:
            assert waiting.stderr
            said = waiting.stderr.readline()
            assert "waiting for another process, which holds my hpo.db.lock; `fuser 'my hpo.db.lock'` shows it" in said
            holder.stdin.close()
            waiting.communicate(timeout=60)
    assert waiting.returncode == 0
