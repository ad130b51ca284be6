"""What a launch does when its files are removed while it runs, and when two storages share a folder of runs."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hpo.errors import StorageError
from hpo.storage.engine import open_readonly
from hpo.storage.file_guard import FileGuard, rescued
from tests.support.command import environment, hpo, run_in_process, trivial, until
from tests.support.planted import planted_study


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start a launch of slow trials, and wait until it has reported a value."""
    path = planted_study(folder, base={"pause": 0.3}, pruner={"name": "none"}, budget={"trials": 4})
    command = [sys.executable, "-m", "hpo", "launch", "--study", str(path), "--workers", "2", "--plain", *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(HPO_LEASE_S="2"), stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    assert until(lambda: n_values(folder / "runs" / "hpo.db") > 1)
    return process


def n_values(database: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM trial_intermediate_values").fetchone()[0])
    except sqlite3.Error:
        return 0


def test_removing_the_folder_of_runs_ends_the_launch_at_once_and_its_storage_is_saved(tmp_path: Path) -> None:
    process = start(tmp_path)
    gone = (tmp_path / "runs").rename(tmp_path / "gone")  # at once, because rmtree fails while workers add files
    shutil.rmtree(gone)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 4, said
    database = tmp_path / "runs" / "hpo.db"
    assert f"storage {database}: the file was removed while it was in use; " in said
    assert f"its content is saved in {database}.rescued; " in said
    assert f"to continue: mv {database}.rescued {database}, then hpo launch --study " in said
    assert said.count("the file was removed") >= 2, "at once, and at the end with the remedy"
    assert "Traceback" not in said
    assert "next:" not in said
    Path(f"{database}.rescued").rename(database)
    values = n_values(database)
    assert values > 1
    hpo("launch", "--study", "planted", "--quiet", cwd=tmp_path, HPO_LEASE_S="2")
    status = json.loads(run_in_process("status", "--format", "json", cwd=tmp_path))
    assert status["trials"]["complete"] == 4


def test_reading_and_writing_stop_when_the_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "hpo.db"
    hpo("launch", "--study", str(trivial(tmp_path)), "--storage", str(file), "--quiet", cwd=tmp_path)
    with open_readonly(f"sqlite:///{file}") as store, store.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        connection.commit()
        shutil.copy(file, tmp_path / "backup.db")
        (tmp_path / "backup.db").replace(file)
        with pytest.raises(StorageError, match="the file was replaced by another file while it was in use"):
            connection.exec_driver_sql("SELECT 1")


def remove_and_check(guard: FileGuard) -> None:
    with rescued(guard, "hpo launch"):
        shutil.rmtree(guard.file.parent)
        guard.file.parent.mkdir()
        guard.file.with_name("hpo.db.rescued").touch()
        guard.file.with_name("hpo.db.rescued-2").symlink_to("of-another-user")
        guard.check()


def test_content_of_a_removed_file_is_saved_under_a_name_that_is_free(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "hpo.db"
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE numbers (n)")
        connection.execute("INSERT INTO numbers VALUES (7)")
        connection.commit()
        guard = FileGuard(file)
        guard.remember()
        with pytest.raises(StorageError, match=r"hpo\.db\.rescued-3; to continue: mv .*, then hpo launch"):
            remove_and_check(guard)
    with closing(sqlite3.connect(f"{file}.rescued-3")) as saved:
        assert saved.execute("SELECT n FROM numbers").fetchall() == [(7,)]


def test_storages_that_share_a_folder_of_runs_keep_their_files_apart(tmp_path: Path) -> None:
    study = trivial(tmp_path)
    hpo("launch", "--study", str(study), "--storage", "one.db", "--quiet", cwd=tmp_path)
    (tmp_path / "trivial.py").write_text((tmp_path / "trivial.py").read_text().replace("+ 1 / rung", "+ 2 / rung"))
    said = hpo("launch", "--study", str(study), "--storage", "two.db", cwd=tmp_path).stderr
    assert "note: runs/trivial belongs to another study; this study uses runs/trivial-" in said
    for storage in ("one.db", "two.db"):
        status = json.loads(run_in_process("status", "--storage", storage, "--format", "json", cwd=tmp_path))
        number = status["best"]["number"]
        rows = json.loads(run_in_process("logs", str(number), "--storage", storage, "--format", "json", cwd=tmp_path))
        assert rows[-1]["loss"] == pytest.approx(status["best"]["value"])
    assert len(list((tmp_path / "runs").glob("trivial*/best.yaml"))) == 2
