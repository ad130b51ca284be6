"""The table of faults: how each is provoked, on which storages, and which event types it leaves."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna_dashboard

from hpo.queue.compatibility import PROTOCOL_VERSION
from hpo.storage.engine import IDLE_TIMEOUT_MS
from hpo.storage.store import open_store
from hpo.storage.studies import study_ids
from tests.faults.scene import ASHA, GPT, NAME, PLANTED, PROBED, RUNGS, TRIALS, Scene
from tests.support.disk import small_disk
from tests.support.fork_server import SERVER
from tests.support.wsgi import Answer

LONG = {**PLANTED, "base": {"pause": 1.0}}
ASHA_TRIALS = 8


@dataclass(frozen=True)
class Fault:
    """A fault of a study. `provoke` starts the study and causes the fault. The test then launches the study again.

    event_types: events that the table of events must hold afterwards. not_on: storages on which the fault cannot occur,
    each with the reason.
    """

    name: str
    provoke: Callable[[Scene], None]
    event_types: frozenset[str] = frozenset()
    not_on: Mapping[str, str] = field(default_factory=dict)


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


def fill(folder: Path) -> Path:
    """Fill a disk; return the file that fills it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def fill_checkpoints(scene: Scene) -> None:
    with small_disk(scene.folder / "small", "8m") as disk:
        scene.out = disk
        scene.launch()
        scene.wait_for_values()
        ballast = fill(disk)
        scene.until(lambda: "quarantined" in scene.event_types())
        ballast.unlink()
        scene.finish()
        shutil.copytree(disk / NAME, scene.folder / "runs" / NAME)
    scene.out = scene.folder / "runs"


def fill_database(scene: Scene) -> None:
    scene.study(PLANTED, trials=10)
    with disk_of_database(scene) as disk:
        scene.launch()
        scene.wait_for_values()
        ballast = fill(disk)
        time.sleep(5.0)
        ballast.unlink()
        scene.finish()
        scene.check()


@contextmanager
def disk_of_database(scene: Scene) -> Iterator[Path]:
    """Put the scene's storage on a small disk."""
    if scene.server is None:
        with small_disk(scene.folder / "small", "2m") as disk:
            scene.url = f"sqlite:///{disk}/hpo.db"
            yield disk
        return
    name = scene.database
    # Beside the files of the server, because its user may read that folder.
    with small_disk(scene.server.folder / "small", "32m") as disk:
        space = disk / "space"
        space.mkdir()
        shutil.chown(space, "nobody")
        scene.server.sql(f"CREATE TABLESPACE small LOCATION '{space}'")
        scene.server.sql(f"ALTER DATABASE {name} SET TABLESPACE small")
        try:
            yield disk
        finally:
            scene.witness.stop()
            scene.server.sql(f"ALTER DATABASE {name} SET TABLESPACE pg_default")
            scene.server.sql("DROP TABLESPACE small")


def fill_prepared_data(scene: Scene) -> None:
    scene.study(GPT, trials=2)
    with small_disk(scene.folder / "cache", "8m") as disk:
        ballast = fill(disk)
        assert f"no space left on device preparing text under {disk}" in scene.end(
            scene.launch(HPO_CACHE=str(disk)), 1, 30
        )
        assert scene.rows("SELECT 1 FROM trials") == []
        ballast.unlink()
        scene.end(scene.launch(1, HPO_CACHE=str(disk)))


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


def halve(scene: Scene, workers: int = 2) -> None:
    """Run a part of the study, so that a trial is interrupted after its first rung."""
    launcher = scene.launch(workers)
    scene.wait_for_values(1)
    launcher.send_signal(signal.SIGINT)
    scene.end(launcher, 130, 30)


def refuse(scene: Scene) -> None:
    for process in (scene.launch(), scene.worker()):
        said = scene.end(process, 4, 30).lower()
        assert "read" in said, said
        assert "write" in said or "only" in said, said


def turn_clock(scene: Scene) -> None:
    """Set one worker's clock an hour late and the other's an hour early, in another time zone."""
    scene.end(scene.launch(FAULT="clock", TZ="Asia/Tokyo", PGTZ="Asia/Tokyo"))
    assert (scene.folder / "mark").exists()


def launch_twice(scene: Scene) -> None:
    for process in [scene.launch() for _ in range(2)]:
        scene.end(process)


def diverge(scene: Scene) -> None:
    scene.study(PLANTED, base={"nan_above": 0.7, "pause": 0.1}, baseline=[{"x": 0.9}, {"x": 0.2}, {"x": 0.8}])
    scene.end(scene.launch())


def run_out_of_memory(scene: Scene) -> None:
    """Train a network whose weights exceed a worker's memory; the other trials are small."""
    scene.study(GPT, trials=3, baseline=[{}, {"model.n_embd": 2048}])
    scene.end(scene.launch(1, FAULT="memory"))
    assert len(scene.rows("SELECT 1 FROM trials WHERE CAST(state AS VARCHAR) = 'PRUNED'")) == 1


def garble_checkpoints(scene: Scene) -> None:
    scene.study(GPT, trials=3)
    halve(scene, 1)
    files = list(scene.out.glob(f"{NAME}/trials/*/*/state.safetensors"))
    assert files
    for n, file in enumerate(files):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] if n % 2 else bytes(b ^ 0xFF for b in data))


def flip_bits(scene: Scene) -> None:
    """Interrupt the study, and change eight bits in the tensors of each checkpoint."""
    scene.study(GPT, trials=3)
    halve(scene, 1)
    files = list(scene.out.glob(f"{NAME}/trials/*/*/state.safetensors"))
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        for n in range(8):
            data[-100 - 37 * n] ^= 1 << n
        file.write_bytes(data)


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


def damage_metrics(scene: Scene) -> None:
    """Interrupt the study, and damage the metrics of each interrupted trial."""
    halve(scene)
    numbers = [n for (n,) in scene.rows("SELECT number FROM trials WHERE CAST(state AS VARCHAR) = 'WAITING'")]
    assert numbers
    for number in numbers:
        file = scene.out / NAME / "trials" / f"{number:04d}" / "metrics.jsonl"
        file.write_bytes(b"5\n\xff" + file.read_bytes()[:-5])


def join_with_another_version(scene: Scene) -> None:
    halve(scene)
    speak = "UPDATE study_user_attributes SET value_json = '{}' WHERE key = 'hpo:protocol'"
    scene.write(speak.format(PROTOCOL_VERSION + 1))
    for process in (scene.launch(), scene.worker()):
        assert f"a newer version of hpo uses it with protocol {PROTOCOL_VERSION + 1}" in scene.end(process, 2, 30)
    scene.write(speak.format(PROTOCOL_VERSION))


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


def remove_run_folder(scene: Scene) -> None:
    """Remove the run folder; then restore it, because the checks compare its files."""
    launcher = scene.launch()
    scene.wait_for_values()
    kept = (scene.out / NAME).rename(scene.folder / "kept")
    assert "the run folder was removed while the study ran" in scene.end(launcher, 1, 30)
    shutil.rmtree(scene.out / NAME, ignore_errors=True)  # what a worker has still written
    kept.rename(scene.out / NAME)


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


def raise_in_training(scene: Scene) -> None:
    """Let three of five configurations raise what looks like a full disk, a signal and an exit."""
    raising = [{"x": 0.2, "raises": name} for name in ("PermissionError", "SystemExit", "KeyboardInterrupt")]
    scene.study(PLANTED, trials=5, baseline=[{"x": 0.1}, *raising], base={"pause": 0.1})
    scene.end(scene.launch(), 0)
    ended = scene.rows("SELECT CAST(state AS VARCHAR) FROM trials")
    assert sorted(state for (state,) in ended) == ["COMPLETE"] * 2 + ["FAIL"] * 3


def block_trial_folder(scene: Scene) -> None:
    """Put a file in the place of one trial's folder, as another owner of the folder would refuse every write."""
    scene.study(PLANTED, trials=4, base={"pause": 0.1})
    assert "trials were given up" in scene.end(scene.launch(1, FAULT="blocked"), 1)


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


def set_clock_back(scene: Scene) -> None:
    """Kill everything, and move the leases an hour ahead: the clock of the database was set back by an hour."""
    kill_everything(scene)
    scene.write("UPDATE hpo_slot SET lease_until = lease_until + 3600 WHERE state = 'leased'")


LOST = frozenset({"lost"})
PREEMPTED = frozenset({"preempted"})
ERROR = frozenset({"error"})
SERVED = {"postgres": "the server keeps its files open"}
FILES = {"sqlite": "a file needs no server"}
CLIENTS = {"sqlite": "there is no connection: a statement is a call in the worker's own process"}
BEFORE = {"postgres": "it happens before the storage is opened"}

UNREACHABLE = frozenset({"away"})

FAULTS = [
    Fault("worker killed before its first report", kill_at("first_report"), LOST),
    Fault("worker killed between a report and its checkpoint", kill_at("report"), LOST),
    Fault("worker killed between rungs", kill_at("checkpoint", GPT), LOST),
    Fault("worker killed inside a cool-down probe", kill_at("probing", PROBED), LOST),
    Fault("worker killed between claim and trial", kill_at("claimed"), LOST),
    Fault("worker killed in the transaction that creates a trial", kill_at("created"), LOST),
    Fault("worker killed in the transaction that ends a trial", kill_at("end"), LOST),
    Fault("worker killed between the end of a trial and its slot", kill_at("ended"), LOST),
    Fault("worker killed after its slot is done", kill_at("closed")),
    Fault("worker killed between a mark and the pause of its trial", kill_at("pausing", ASHA), LOST),
    Fault("worker killed after its trial is paused", kill_at("paused", ASHA)),
    Fault("worker killed after it has promoted a trial", kill_at("promoted", ASHA), LOST),
    Fault("worker killed in the transaction that ends paused trials", kill_at("pruning", ASHA)),
    Fault("launcher killed", kill_launcher, PREEMPTED),
    Fault("launcher and workers killed at once", kill_everything, LOST),
    Fault("SIGTERM", interrupt(signal.SIGTERM), PREEMPTED),
    Fault("SIGINT", interrupt(signal.SIGINT), PREEMPTED),
    Fault("SIGINT twice", interrupt(signal.SIGINT, 2), PREEMPTED),
    Fault("SIGTERM to one worker", terminate_worker, PREEMPTED),
    Fault("SIGSTOP past the lease, then SIGCONT", freeze_worker, LOST),
    Fault("SIGSTOP past the lease while trials pause and are promoted", with_asha(freeze_worker), LOST),
    Fault("storage locked while trials pause and are promoted", with_asha(lock_briefly)),
    Fault("Postgres restarted while trials pause and are promoted", with_asha(restart_server), not_on=FILES),
    Fault("Postgres killed and down for 20 s", stop_server, UNREACHABLE, FILES),
    Fault("Postgres restarted three times", restart_server, not_on=FILES),
    Fault("connections cut during statements", cut_connections, not_on=CLIENTS),
    Fault("storage locked by another process", lock_storage, UNREACHABLE),
    Fault("full disk: checkpoints", fill_checkpoints, frozenset({"disk", "quarantined", "released"})),
    Fault("full disk: database", fill_database),
    Fault("full disk: prepared data", fill_prepared_data, not_on=BEFORE),
    Fault("read-only storage", write_protect, PREEMPTED),
    Fault("clocks of workers wrong by an hour", turn_clock),
    Fault("two launches at the same time", launch_twice),
    Fault("database file removed", remove_database, LOST, SERVED),
    Fault("run folder removed", remove_run_folder),
    Fault("study renamed while it runs", rename_study, frozenset({"renamed"})),
    Fault("study deleted and created again while it runs", create_again),
    Fault("launcher killed while it registers a study", kill_at_registration),
    Fault("training code raises PermissionError, SystemExit, KeyboardInterrupt", raise_in_training, ERROR),
    Fault("folder of a trial cannot be written", block_trial_folder, frozenset({"disk"})),
    Fault("Postgres down for longer than any patience", stop_server_beyond_patience, UNREACHABLE, FILES),
    Fault("clock set back by an hour", set_clock_back, LOST),
    Fault("loss is NaN", diverge, frozenset({"diverged"})),
    Fault("out of memory", run_out_of_memory, frozenset({"oom"})),
    Fault("corrupt checkpoint", garble_checkpoints, frozenset({"preempted", "restarted"})),
    Fault("checkpoint with flipped bits", flip_bits, frozenset({"preempted", "restarted"})),
    Fault("storage older than the checkpoint", restore_older_storage, frozenset({"preempted", "lost"})),
    Fault("damaged metrics.jsonl", damage_metrics, PREEMPTED),
    Fault("worker of another version", join_with_another_version, PREEMPTED),
]
