"""hpo worker --follow: one worker of all studies in a storage."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.errors import StorageError
from hpo.queue.compatibility import PROTOCOL_VERSION
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import STUDY_STATE
from hpo.storage.store import open_store
from hpo.study.load import load_study
from tests.support.command import environment, until
from tests.support.planted import planted_study as planted
from tests.support.postgres import MISSING, Postgres, binaries

pytestmark = pytest.mark.usefixtures("here")


@contextmanager
def follower(url: str, folder: Path, **more: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `hpo worker --follow`; kill it at the end if it still runs."""
    command = [sys.executable, "-m", "hpo", "worker", "--follow", "--storage", url, "--allow-train", "curves:train"]
    env = environment(HPO_LEASE_S="4", **more)
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def create_study(store: Any, folder: Path, name: str, **keys: Any) -> StoredStudy:
    return register_study(store, load_study(str(planted(folder, name, pruner={"name": "none"}, **keys))), None, {})


def ended(store: Any, name: str) -> Callable[[], bool]:
    def look() -> bool:
        n = trial_counts(read_snapshot(store, name))
        return n["running"] == n["waiting"] == 0

    return look


def test_follower_waits_for_a_storage_and_serves_its_studies_in_turn(here: Path, empty_url: str) -> None:
    with follower(empty_url, here) as process:
        assert process.stderr is not None
        reason = "no stud" if "postgres" in empty_url else "no st"
        assert process.stderr.readline().startswith(f"waiting for the storage: {reason}")
        with open_store(empty_url, create=True) as store:
            for name in ("one", "two"):
                create_study(store, here, name, budget={"trials": 4}, base={"pause": 0.05})
            assert until(ended(store, "one"))
            assert until(ended(store, "two"))
            create_study(store, here, "three", budget={"trials": 1})
            assert until(ended(store, "three"))
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    started = [line.partition(":")[0] for line in stdout.splitlines() if "started" in line]
    assert sorted(started) == ["one"] * 4 + ["three"] + ["two"] * 4
    turns = started[started.index("two") : started.index("two") + 4]
    assert turns.count("one") >= 1, f"the studies take turns, got {started}"


def test_follower_skips_a_study_that_it_cannot_serve_or_that_is_paused(here: Path) -> None:
    url = f"sqlite:///{here}/f.db"
    with open_store(url, create=True) as store:
        paused = create_study(store, here, "paused", budget={"trials": 1})
        paused.optuna.set_user_attr(STUDY_STATE, "paused")
        create_study(store, here, "missing", budget={"trials": 1}).optuna.set_user_attr("hpo:protocol", 99)
        create_study(store, here, "served", budget={"trials": 2})
        with follower(url, here) as process:
            assert until(ended(store, "served"))
            assert (
                trial_counts(read_snapshot(store, "paused"))["waiting"]
                == trial_counts(read_snapshot(store, "missing"))["waiting"]
                == 1
            )
            paused.optuna.set_user_attr(STUDY_STATE, "active")
            assert until(ended(store, "paused"))
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (
        "missing: skipped for 60 s: study missing: a newer version of hpo uses it with protocol 99, and this "
        f"version knows protocols up to {PROTOCOL_VERSION}; install the newer version on all machines" in stderr
    )


def test_follower_survives_an_unreachable_server(here: Path) -> None:
    if not binaries():
        pytest.skip(MISSING)
    server = Postgres()
    try:
        server.start()
        with open_store(server.url(), create=True, patience=60) as store, follower(server.url(), here) as process:
            create_study(store, here, "long", budget={"trials": 4}, base={"pause": 0.4})
            assert until(lambda: trial_counts(read_snapshot(store, "long"))["complete"] >= 1)
            server.stop(signal.SIGQUIT)
            with pytest.raises(StorageError):
                open_store(server.url(), patience=0.1)
            time.sleep(6)  # longer than a lease, and than the patience of a waiting follower
            server.start()
            assert until(ended(store, "long"))
            assert process.poll() is None
            snapshot = read_snapshot(store, "long")
            assert "away" in {event.event_type for event in snapshot.events}, "the outage is stored as an event"
        assert trial_counts(snapshot)["complete"] == len(snapshot.trials) == 4
    finally:
        server.remove()


def test_follower_waits_where_the_storage_is_a_database_of_optuna_alone(here: Path) -> None:
    url = f"sqlite:///{here}/plain.db"
    optuna.create_study(study_name="theirs", storage=url)
    before = (here / "plain.db").read_bytes()
    with follower(url, here) as process:
        assert process.stderr is not None
        assert "got a database of Optuna with 1 studies" in process.stderr.readline()
        time.sleep(3.0)  # longer than the pause between two attempts
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert (here / "plain.db").read_bytes() == before
