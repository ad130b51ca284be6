"""hpo worker --follow: one worker of all studies in a storage."""

import re
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
from hpo.errors import Problem, StorageError
from hpo.queue.compatibility import PROTOCOL_VERSION
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import STUDY_STATE
from hpo.storage.store import open_store
from hpo.study.load import load_study
from tests.support.command import environment, run_in_process, until
from tests.support.planted import planted_study as planted
from tests.support.postgres import MISSING, Postgres, binaries

pytestmark = pytest.mark.usefixtures("here")


@contextmanager
def follower(url: str, folder: Path, *options: str, **more: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `hpo worker --follow`; kill it at the end if it still runs."""
    command = [sys.executable, "-m", "hpo", "worker", "--follow", "--storage", url, "--allow-train", "curves:train"]
    command += options
    env = environment(**{"HPO_LEASE_S": "4", **more})
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
        stdout, _ = process.communicate(timeout=60)
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
            _, stderr = process.communicate(timeout=60)
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
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert (here / "plain.db").read_bytes() == before


def test_worker_until_idle_serves_one_study_and_outlives_the_lease_of_a_dead_worker(here: Path) -> None:
    url = f"sqlite:///{here}/f.db"
    with open_store(url, create=True) as store:
        served = create_study(store, here, "served", budget={"trials": 3})
        create_study(store, here, "other", budget={"trials": 1})
        assert served.slots.claim("dead", 3.0)
        with follower(url, here, "--until-idle", "--study", "served", HPO_LEASE_S="3") as process:
            stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert ended(store, "served")()
        assert not ended(store, "other")()
        assert stdout.count(": complete") == 3
        with follower(url, here, "--until-idle") as process:  # of all studies
            process.communicate(timeout=60)
        assert process.returncode == 0
        assert ended(store, "other")()


def test_worker_until_idle_gives_up_while_others_train_the_last_trials(here: Path) -> None:
    url = f"sqlite:///{here}/f.db"
    with open_store(url, create=True) as store:
        stored = create_study(store, here, "served", budget={"trials": 1})
        claim = stored.slots.claim("alive", 60.0)
        with follower(url, here, "--until-idle", HPO_LEASE_S="1") as process:
            process.communicate(timeout=60)
        assert process.returncode == 0
        assert claim
        assert trial_counts(read_snapshot(store, "served"))["complete"] == 0


def test_sigusr1_gives_the_trial_back_if_a_rung_was_reached(here: Path) -> None:
    url = f"sqlite:///{here}/f.db"
    only = ("--until-idle", "--study", "long")
    with open_store(url, create=True) as store:
        stored = create_study(store, here, "long", budget={"trials": 1}, base={"pause": 0.6})
        with follower(url, here, *only) as process:
            assert process.stdout is not None
            assert until(lambda: read_snapshot(store, "long").slots["leased"] == 1)
            assert "rung 1/4" in process.stdout.readline() + process.stdout.readline()
            process.send_signal(signal.SIGUSR1)
            stdout, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGUSR1
        assert re.search(r"requeued after rung [12] \(preempted\)", stdout)
        assert read_snapshot(store, "long").slots["free"] == 1
        assert stored.slots.claim("looker", 60.0).failures == 0  # type: ignore[union-attr]


def test_sigusr1_before_a_rung_is_an_error_because_the_next_job_would_not_get_further(here: Path) -> None:
    url = f"sqlite:///{here}/f.db"
    with open_store(url, create=True) as store:
        create_study(store, here, "long", budget={"trials": 1}, base={"pause": 60})
        with follower(url, here, "--until-idle", "--study", "long", HPO_WARNING_GRACE_S="0") as process:
            assert until(lambda: read_snapshot(store, "long").slots["leased"] == 1)
            time.sleep(0.5)
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            process.send_signal(signal.SIGUSR1)  # the second signal ends the grace period
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "no trial has reached a rung before SIGUSR1 announced the end of the job" in stderr
        assert read_snapshot(store, "long").slots["free"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--until-idle"],
            "--until-idle: must be used with --follow; a worker of one study ends when no trial is left",
        ),
        (
            ["--follow", "--set", "data.path=x"],
            "--set: must be used with --study, because --follow works on every study, got data.path=x",
        ),
        (
            ["--follow", "--until-idle", "--study", "none", "--storage", "sqlite:///f.db"],
            "--study: no study 'none' in the storage",
        ),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: list[str], message: str, here: Path) -> None:
    open_store(f"sqlite:///{here}/f.db", create=True).close()
    with pytest.raises(Problem) as refused:
        run_in_process("worker", *options, cwd=here)
    assert str(refused.value).startswith(message)
