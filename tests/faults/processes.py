"""Faults of processes: killed, stopped, started twice, of another version."""

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping

from hpo.queue.compatibility import PROTOCOL_VERSION
from hpo.storage.engine import IDLE_TIMEOUT_MS
from tests.faults.scene import ASHA, PLANTED, TRIALS, Scene
from tests.support.fork_server import SERVER

LONG = {**PLANTED, "base": {"pause": 1.0}}
ASHA_TRIALS = 8


def kill_at(where: str, keys: Mapping[str, object] = PLANTED) -> Callable[[Scene], None]:
    """Return a function that kills one worker with SIGKILL at a point of `inside/sitecustomize.py`."""

    def provoke(scene: Scene) -> None:
        scene.study(keys, trials={id(PLANTED): TRIALS, id(ASHA): ASHA_TRIALS}.get(id(keys), 3))
        launcher, mark = scene.launch(FAULT=where), scene.folder / "mark"
        scene.until(lambda: mark.exists() or launcher.poll() is not None)
        assert mark.exists(), scene.everything()

    return provoke


def with_asha(provoke: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """Return a function that causes a fault of a study whose trials pause at marks."""

    def provoke_with_asha(scene: Scene) -> None:
        scene.study(ASHA, trials=ASHA_TRIALS)
        provoke(scene)

    return provoke_with_asha


def kill_at_registration(scene: Scene) -> None:
    launcher = scene.launch(FAULT="registering")
    launcher.wait(60)
    assert scene.rows("SELECT count(*) FROM hpo_slot") == [(TRIALS // 2,)]
    said = scene.end(scene.start("status"), 0, 30)
    assert f"study scene: being registered, {TRIALS // 2} of {TRIALS} trials" in said


def kill_launcher(scene: Scene) -> None:
    launcher = scene.launch(**{SERVER: ""})  # workers must be children of the launcher
    scene.wait_for_values()
    launcher.kill()
    launcher.wait()
    scene.until(lambda: not scene.pids())  # each worker stops after its parent process has ended


def kill_everything(scene: Scene) -> None:
    launcher = scene.launch()
    scene.wait_for_values()
    for pid in [*scene.pids(), launcher.pid]:  # the launcher last: workers would stop cleanly after its end
        os.kill(pid, signal.SIGKILL)
    launcher.wait()


def interrupt(number: signal.Signals, times: int = 1) -> Callable[[Scene], None]:
    """Return a function that sends a signal to the launcher this many times."""

    def provoke(scene: Scene) -> None:
        scene.study(LONG if times > 1 else PLANTED)  # a rung so long that the second signal arrives in the middle of it
        launcher = scene.launch()
        scene.wait_for_values()
        for _ in range(times):
            launcher.send_signal(number)
            time.sleep(0.2)
        scene.end(launcher, 128 + number, 30)
        assert scene.rows("SELECT 1 FROM hpo_slot WHERE state = 'leased'") == []

    return provoke


def terminate_worker(scene: Scene) -> None:
    scene.launch()
    scene.wait_for_values()
    os.kill(scene.holder(), signal.SIGTERM)


def freeze_worker(scene: Scene) -> None:
    scene.launch()
    scene.wait_for_values()
    pid = freeze(scene)
    try:
        # If it was stopped within a transaction, Postgres ends that after a minute, and the others wait for its locks.
        scene.until(lambda: "lost" in scene.event_types(), IDLE_TIMEOUT_MS / 1000 + 30)
        time.sleep(1.0)  # until the other worker has resumed the trial
    finally:
        os.kill(pid, signal.SIGCONT)


def freeze(scene: Scene) -> int:
    """Stop a worker that trains, but not during a write, in which it would hold the lock of a SQLite file."""
    while True:
        pid = scene.holder()
        os.kill(pid, signal.SIGSTOP)
        if scene.server or not is_locked(scene.database):
            return pid
        os.kill(pid, signal.SIGCONT)


def is_locked(file: str) -> bool:
    """Return whether a process holds the lock of a SQLite file for longer than a write takes."""
    with contextlib.closing(sqlite3.connect(file, timeout=1.0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return True
    return False


def halve(scene: Scene, workers: int = 2) -> None:
    """Run a part of the study, so that a trial is interrupted after its first rung."""
    launcher = scene.launch(workers)
    scene.wait_for_values(1)
    launcher.send_signal(signal.SIGINT)
    scene.end(launcher, 130, 30)


def turn_clock(scene: Scene) -> None:
    """Set one worker's clock an hour late and the other's an hour early, in another time zone."""
    scene.end(scene.launch(FAULT="clock", TZ="Asia/Tokyo", PGTZ="Asia/Tokyo"))
    assert (scene.folder / "mark").exists()


def launch_twice(scene: Scene) -> None:
    for process in [scene.launch() for _ in range(2)]:
        scene.end(process)


def join_with_another_version(scene: Scene) -> None:
    halve(scene)
    speak = "UPDATE study_user_attributes SET value_json = '{}' WHERE key = 'hpo:protocol'"
    scene.write(speak.format(PROTOCOL_VERSION + 1))
    for process in (scene.launch(), scene.worker()):
        assert f"a newer version of hpo uses it with protocol {PROTOCOL_VERSION + 1}" in scene.end(process, 2, 30)
    scene.write(speak.format(PROTOCOL_VERSION))


def set_clock_back(scene: Scene) -> None:
    """Kill everything, and move the leases an hour ahead: the clock of the database was set back by an hour."""
    kill_everything(scene)
    scene.write("UPDATE hpo_slot SET lease_until = lease_until + 3600 WHERE state = 'leased'")
