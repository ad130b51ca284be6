"""Faults of storages: unreachable, locked, read-only, removed, and studies that change while they run."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna_dashboard

from hpo.storage.store import open_store
from hpo.storage.studies import study_ids
from tests.faults.processes import LONG, halve
from tests.faults.scene import NAME, RUNGS, Scene
from tests.support.disk import small_disk
from tests.support.wsgi import Answer


def stop_server(scene: Scene) -> None:
    assert scene.server
    scene.launch()
    scene.wait_for_values()
    scene.server.stop(signal.SIGQUIT)
    time.sleep(20.0)
    scene.server.start()


def restart_server(scene: Scene) -> None:
    assert scene.server
    scene.launch()
    scene.wait_for_values()
    for _ in range(3):
        scene.server.stop(signal.SIGINT)
        scene.server.start()
        time.sleep(1.0)


def cut_connections(scene: Scene) -> None:
    assert scene.server
    launcher = scene.launch()
    scene.wait_for_values()
    mine = f"datname = '{scene.database}' AND application_name = 'hpo'"
    cut, until = 0, time.monotonic() + 4.0
    while time.monotonic() < until and launcher.poll() is None:
        rows = scene.server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
        cut += len(rows)
        time.sleep(0.03)
    assert cut > 10


def lock_storage(scene: Scene) -> None:
    scene.launch()
    scene.wait_for_values()
    with locked(scene):
        time.sleep(30.0 if scene.kind == "sqlite" else 8.0)


def lock_briefly(scene: Scene) -> None:
    """Lock the storage three times, each for longer than a worker waits at a rung that is no mark."""
    scene.launch()
    scene.wait_for_values()
    for _ in range(3):
        with locked(scene):
            time.sleep(4.0)
        time.sleep(0.5)


@contextmanager
def locked(scene: Scene) -> Iterator[None]:
    """Prevent other processes from writing, and on Postgres also from reading."""
    if scene.server:
        import psycopg

        with psycopg.connect(scene.server.url(scene.database)) as connection:
            connection.execute("LOCK TABLE hpo_slot, trials IN ACCESS EXCLUSIVE MODE")
            yield
        return
    # In another process, because SQLite locks belong to a process.
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)"
    code += "; c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, scene.database]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"locked\n"
        yield
        process.stdin.close()


def write_protect(scene: Scene) -> None:
    """Interrupt the study, check that a launch and a worker refuse a read-only storage, and make it writable again."""
    if scene.server is None:
        with small_disk(scene.folder / "small", "8m") as disk:
            scene.url = f"sqlite:///{disk}/hpo.db"
            halve(scene)
            with scene.witness.lock:  # a disk with an open file cannot be remounted
                subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            refuse(scene)
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            scene.finish()
            scene.check()
        return
    halve(scene)
    scene.server.sql(f"ALTER DATABASE {scene.database} SET default_transaction_read_only = on")
    refuse(scene)
    scene.server.sql(f"ALTER DATABASE {scene.database} RESET default_transaction_read_only")


def refuse(scene: Scene) -> None:
    for process in (scene.launch(), scene.worker()):
        said = scene.end(process, 4, 30).lower()
        assert "read" in said, said
        assert "write" in said or "only" in said, said


def restore_older_storage(scene: Scene) -> None:
    """Kill a worker when the values of its trial are known, and remove these values, as if from an older copy."""
    halve(scene)
    worker = scene.worker(FAULT="completing")
    scene.until(lambda: worker.poll() is not None)
    ids = "SELECT trial_id FROM trials WHERE CAST(state AS VARCHAR) = 'RUNNING'"
    assert len(scene.rows(f"SELECT 1 FROM trial_intermediate_values WHERE trial_id IN ({ids})")) == RUNGS
    with scene.witness.lock:
        scene.write(f"DELETE FROM trial_intermediate_values WHERE step > 1 AND trial_id IN ({ids})")
        scene.witness.seen.clear()


def remove_database(scene: Scene) -> None:
    """Remove the database file, and put the file in its place that the launcher has saved."""
    launcher = scene.launch()
    scene.wait_for_values()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{scene.database}{suffix}").unlink(missing_ok=True)
    said = scene.end(launcher, 4, 30)
    # Another process may have opened a connection meanwhile, for which SQLite creates an empty file.
    gone = "the file was (removed|replaced by another file) while it was in use; its content is saved in"
    assert re.search(rf"storage {re.escape(str(scene.database))}: {gone}", said)
    Path(f"{scene.database}.rescued").rename(scene.database)


def rename_study(scene: Scene) -> None:
    """Rename the study in Optuna's dashboard while it runs, and back."""
    scene.study(LONG)
    launcher = scene.launch()
    scene.wait_for_values()
    with scene.witness.lock:  # Optuna copies the values, and a value that a worker reports meanwhile is reported again
        rename(scene, NAME, "renamed")
        assert "study scene: was renamed to 'renamed' while it ran" in scene.end(launcher, 1, 30)
        rename(scene, "renamed", NAME)
        scene.finish()
    assert "study scene: was renamed; it continues with all of its trials" in scene.said(scene.processes[-1])


def rename(scene: Scene, old: str, new: str) -> None:
    with open_store(scene.url, patience=60.0) as store:
        app = optuna_dashboard.wsgi(store.rdb)
        Answer(app, f"/api/studies/{study_ids(store)[old]}/rename", "POST", {"study_name": new})
        assert new in study_ids(store)


def create_again(scene: Scene) -> None:
    """Delete the study while it runs, and launch it again under the same name."""
    scene.study(LONG)
    launcher = scene.launch()
    scene.wait_for_values()
    with scene.witness.lock, open_store(scene.url, patience=60.0) as store:
        store.rdb.delete_study(study_ids(store)[NAME])
        again = scene.launch()
        scene.until(lambda: NAME in study_ids(store))
        scene.witness.seen.clear()
    assert "study scene: was deleted while it ran" in scene.end(launcher, 1, 30)
    assert f"{NAME} belongs to another study; this study uses {scene.out / NAME}-" in scene.end(again)
    shutil.rmtree(scene.out / NAME)
    next(scene.out.glob(f"{NAME}-*")).rename(scene.out / NAME)


def stop_server_beyond_patience(scene: Scene) -> None:
    """Stop the server for longer than interactive commands, leases and the last rungs of all trials take."""
    assert scene.server
    launcher = scene.launch(FAULT="impatient")
    scene.wait_for_values()
    scene.server.stop(signal.SIGQUIT)
    time.sleep(10.0)
    assert launcher.poll() is None
    scene.server.start()
    assert "waiting for the storage, which has been unreachable for" in scene.end(launcher)
