"""A launch waits for its storage without limit, says so, and obeys signals meanwhile."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.storage.engine import open_readonly
from tests.support.command import ROOT, environment, hpo, until
from tests.support.planted import planted_study as planted
from tests.support.postgres import MISSING, Postgres, binaries

# Messages about an outage every second instead of every minute, and no patience beyond that of interactive commands
IMPATIENT = """
import hpo.storage.retry

hpo.storage.retry.NOTE_S = 1.0
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    if not binaries():
        pytest.skip(MISSING)
    server = Postgres(max_connections=20)
    try:
        yield server.start()
    finally:
        server.remove()


def launch(folder: Path, url: str) -> "subprocess.Popen[str]":
    """Start a launch of four trials that takes a few seconds; wait until it reports values."""
    (folder / "sitecustomize.py").write_text(IMPATIENT)
    planted(folder, budget={"trials": 4}, base={"pause": 0.4}, pruner={"name": "none"})
    command = [sys.executable, "-m", "hpo", "launch", "--study", "planted.yaml", "--workers", "2", "--plain"]
    env = environment(PYTHONPATH=f"{folder}:{ROOT}", HPO_STORAGE=url, HPO_LEASE_S="2")
    process = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert until(lambda: "rung 1" in ((process.stderr and process.stderr.readline()) or ""))
    except BaseException:
        process.kill()
        raise
    return process


def test_launch_waits_for_a_stopped_server_without_limit_and_costs_no_attempt(server: Postgres, tmp_path: Path) -> None:
    url = server.url(server.database())
    with launch(tmp_path, url) as process:
        server.stop(signal.SIGQUIT)
        time.sleep(9.0)  # longer than a lease and than the patience of a command that a person waits for
        assert process.poll() is None
        server.start()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    notes = [line for line in stderr.splitlines() if "waiting for the storage, which has been unreachable for" in line]
    assert 2 <= len(notes) <= 12, stderr
    with open_readonly(url) as store:
        snapshot = read_snapshot(store, "planted")
        assert trial_counts(snapshot)["complete"] == 4
        assert [t.user_attrs["attempt"] for t in snapshot.trials] == [1] * 4
    logs = "".join(path.read_text() for path in (tmp_path / "runs/planted").glob("worker-*.log"))
    assert 1 <= logs.count("waiting for the storage") <= 24, logs


def test_signal_ends_a_launch_that_waits_for_its_storage_at_once(server: Postgres, tmp_path: Path) -> None:
    url = server.url(server.database())
    with launch(tmp_path, url) as process:
        server.stop(signal.SIGQUIT)
        try:
            assert until(lambda: "waiting for the storage" in ((process.stderr and process.stderr.readline()) or ""))
            time.sleep(3.0)  # until both workers wait at the last rungs of their trials
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
            assert (process.returncode, time.monotonic() - started < 30.0) == (143, True), stderr
        finally:
            server.start()
    done = hpo("launch", "--study", "planted.yaml", cwd=tmp_path, HPO_STORAGE=url, HPO_LEASE_S="2")
    assert "4 complete" in done.stderr


def test_first_connection_that_fails_ends_launch_and_worker_at_once(tmp_path: Path) -> None:
    planted(tmp_path)
    nowhere = "postgresql://127.0.0.1:1/d"
    for arguments in (["launch", "--study", "planted.yaml"], ["worker", "--study", "planted"]):
        started = time.monotonic()
        done = hpo(*arguments, cwd=tmp_path, status=4, HPO_STORAGE=nowhere)
        assert "Connection refused" in done.stderr
        assert time.monotonic() - started < 20.0


def test_server_without_free_connections_says_so_and_a_worker_leaves_some_for_others(
    server: Postgres, tmp_path: Path
) -> None:
    import psycopg

    url = server.url(server.database("template1"))
    planted(tmp_path, budget={"trials": 1}, pruner={"name": "none"})
    hpo("launch", "--study", "planted.yaml", cwd=tmp_path, HPO_STORAGE=url)
    held = [psycopg.connect(server.url()) for _ in range(6)]
    try:
        done = hpo("worker", "--study", "planted", cwd=tmp_path, status=4, HPO_STORAGE=url)
        assert "storage: 1 worker needs 1 x 2 + 10 = 12 connections, the server allows 17" in done.stderr
        while True:
            try:
                held.append(psycopg.connect(server.url()))
            except psycopg.OperationalError:
                break
        done = hpo("status", "--storage", url, cwd=tmp_path, status=4)
        assert "every connection of the server is in use: end programs that use it, or raise max_conn" in done.stderr
    finally:
        for connection in held:
            connection.close()


def test_launch_says_that_it_waits_for_the_lock_of_another_client(server: Postgres, tmp_path: Path) -> None:
    import psycopg

    name = server.database()
    planted(tmp_path, budget={"trials": 1}, pruner={"name": "none"})
    command = [sys.executable, "-m", "hpo", "launch", "--study", "planted.yaml"]
    env = environment(HPO_STORAGE=server.url(name))
    with psycopg.connect(server.url(name), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(6844527)")
        with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
            assert until(lambda: "waiting for another client" in ((process.stderr and process.stderr.readline()) or ""))
            other.close()
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
