"""The checks of `hpo doctor`: the storage, the machine and the files of studies, each with its remedy."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from pydantic import ValidationError

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.summary import stalled_lines
from hpo.commands.doctor_files import CheckResult, check_checkpoints, check_paused, check_run_folder
from hpo.config.permission import named_code
from hpo.config.validation import error_messages
from hpo.errors import Problem
from hpo.launcher.slurm_queue import queue_line
from hpo.optuna_internals.tables import RUNNING, TRIALS, WAITING, state_name
from hpo.queue.heartbeat import free_expired_leases, void_leases
from hpo.queue.identity import find_slots, lost_slots, restore_slots
from hpo.queue.inspect import BeingRegistered, SlotTable, unregistered_problem
from hpo.queue.slots import Slots
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.resources import available_cores, list_gpus
from hpo.runs.run_dir import can_write
from hpo.storage.attributes import REGISTERING, SPEC
from hpo.storage.connections import read_connections
from hpo.storage.engine import Reader, open_readonly
from hpo.storage.migrate import schema_problem, update_schema
from hpo.storage.retry import transact
from hpo.storage.schema import SLOT
from hpo.storage.store import open_store
from hpo.storage.studies import resolve_study_name, study_attrs, study_ids
from hpo.storage.trial_rows import set_trial_states
from hpo.storage.url import masked_url, network_file_system, normalise_url, sqlite_file
from model.config import TrainConfig

MAX_SKEW_S = 2.0  # largest difference between this machine's clock and the database's that keeps logs readable
LOW_BYTES, FULL_BYTES = 2e9, 1e8  # free bytes of a disk below which the check is a warning, or an error


def check_all(url: str, only: str | None, out: Path) -> Iterator[CheckResult]:
    """Run every check and yield the results in order.

    Raises:
        Problem: the storage holds no study of this name.
        StorageError: the storage does not answer, so that no other check can run.
    """
    url = normalise_url(url)
    yield from _check_storage(url)
    yield from _check_disks(url, out)
    yield _check_gpus()
    if schema_problem(url):
        return
    with open_readonly(url) as store:
        only = only and resolve_study_name(store, only)
        yield _check_clock(store)
        if store.engine.name == "postgresql":
            yield _check_connections(store)
        yield _check_leases(store)
        yield _check_trials(store)
        for name, study_id in sorted(study_ids(store).items()):
            if only in (None, name):
                yield from _check_study(store, name, study_id, out)


def _check_study(store: Reader, name: str, study_id: int, out: Path) -> Iterator[CheckResult]:
    try:
        attrs = study_attrs(store, study_id, name)
        if REGISTERING in attrs and SPEC not in attrs:
            raise unregistered_problem(store, name, study_id, attrs)
        if SPEC not in attrs:
            return
        snapshot = read_snapshot(store, name)
        yield _check_slots(store, snapshot, study_id)
        yield _check_attempts(snapshot)
        yield _check_data(snapshot)
        yield check_run_folder(snapshot, out)
        yield check_checkpoints(snapshot, out)
        yield from check_paused(snapshot, out)
        if store.engine.name == "postgresql" and (jobs := queue_line(name)):
            yield CheckResult("slurm", "ok", f"{name}: {jobs.removeprefix('slurm: ')}")
    except BeingRegistered as problem:
        yield CheckResult("study", "warning", str(problem))
    except Problem as problem:
        yield CheckResult("study", "error", str(problem))


def _check_storage(url: str) -> Iterator[CheckResult]:
    problem = schema_problem(url)
    if problem:
        remedy = "hpo doctor --fix adds what is missing"
        yield CheckResult("storage", "error", problem, remedy, lambda: update_schema(url))
    else:
        yield CheckResult("storage", "ok", f"{masked_url(url)} answers, and its tables have the current version")
    file = sqlite_file(url)
    if file is not None and (kind := network_file_system(file)):
        message = f"{file} is on {kind}, where the locks of SQLite do not work"
        yield CheckResult("storage", "error", message, "use Postgres or a local disk")


def _check_clock(store: Reader) -> CheckResult:
    ahead = time.time() - Slots(store, 0).now()
    if abs(ahead) <= MAX_SKEW_S:
        return CheckResult("clock", "ok", f"differs from the database's clock by {abs(ahead):.1f} s")
    message = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the database's clock"
    remedy = "set the clock (leases are safe, because they use the database's clock)"
    return CheckResult("clock", "warning", message, remedy)


def _check_disks(url: str, out: Path) -> Iterator[CheckResult]:
    from model.cache import cache_root

    folders = {"runs": out, "prepared data": cache_root()}
    file = sqlite_file(url)
    if file is not None:
        folders["storage"] = file.parent
    for use, folder in folders.items():
        parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(parent).free
        message = f"{use}: {free / 1e9:.1f} GB free in {parent}"
        if not os.access(parent, os.W_OK) or not can_write(parent / "probe", 0):
            message = f"{use}: {parent} is not writable"
            yield CheckResult("disk", "error", message, "free disk space, or change the permissions")
        elif free < LOW_BYTES:
            yield CheckResult("disk", "error" if free < FULL_BYTES else "warning", message, "free disk space")
        else:
            yield CheckResult("disk", "ok", message)


def _check_gpus() -> CheckResult:
    names = list_gpus()
    if not names:
        return CheckResult("gpus", "ok", f"no NVIDIA GPU; {available_cores()} CPU cores")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    message = f"{len(names)}: {', '.join(names)}" + (f"; CUDA_VISIBLE_DEVICES={visible}" if visible is not None else "")
    if visible == "":
        return CheckResult("gpus", "warning", message, "unset CUDA_VISIBLE_DEVICES, because it hides all GPUs")
    return CheckResult("gpus", "ok", message)


def _check_connections(store: Reader) -> CheckResult:
    connections = read_connections(store)
    n_workers = connections.n_workers
    message = (
        f"{connections.used} of {connections.allowed} connections are in use; {n_workers} more workers can connect"
    )
    return CheckResult(
        "connections", "ok" if n_workers else "warning", message, "" if n_workers else "raise max_connections"
    )


def _check_leases(reader: Reader) -> CheckResult:
    """Count the leases that have expired or are void, and that no worker or launcher has freed."""
    expired = sum(Slots(reader, study_id).counts()["expired"] for study_id in study_ids(reader).values())
    if not expired:
        return CheckResult("leases", "ok", "none has expired")
    n_void = len(void_leases(reader))

    def free() -> None:
        with open_store(reader.url) as store:
            free_expired_leases(store)

    message = f"{expired} have expired, and no process has freed them"
    if n_void:
        message += f"; {n_void} of them end later than a lease can, because the clock of the database was set back"
    return CheckResult(
        "leases", "warning", message, "hpo launch resumes their trials; --fix frees the leases now", free
    )


def _check_trials(reader: Reader) -> CheckResult:
    """Count the trials that Optuna shows as running although no worker holds their slot."""
    running = state_name() == RUNNING
    trials = sa.select(TRIALS.c.trial_id).join(SLOT, SLOT.c.trial_id == TRIALS.c.trial_id)
    query = trials.where(running, SLOT.c.state.in_(("free", "paused")))
    ids = transact(reader, lambda connection: [row[0] for row in connection.execute(query)])
    if not ids:
        return CheckResult("trials", "ok", "every running trial has a worker")

    def release() -> None:
        with open_store(reader.url) as store:
            transact(store, lambda connection: set_trial_states(connection, ids, RUNNING, WAITING))

    message = f"{len(ids)} have the state running, but no worker"
    return CheckResult("trials", "error", message, "hpo doctor --fix releases them", release)


def _check_slots(reader: Reader, snapshot: Snapshot, study_id: int) -> CheckResult:
    """Find the trials of a study whose rows in the table of slots are lost."""
    name, slots = snapshot.name, find_slots(reader, study_id, snapshot.uid)
    if slots.study_id != study_id:
        message = f"{name}: was renamed"
        return CheckResult("slots", "ok", message + "; the next launch or worker gives it its slots")
    n = len(lost_slots(slots))
    if not n:
        return CheckResult("slots", "ok", f"{name}: every trial has its slot")

    def restore() -> None:
        with open_store(reader.url) as store:
            restore_slots(SlotTable(store, study_id, snapshot.uid))

    message = f"{name}: {n} trials have lost their slots, so that the study cannot continue"
    return CheckResult("slots", "error", message, "hpo doctor --fix restores the slots from the trials", restore)


def _check_data(snapshot: Snapshot) -> CheckResult:
    name = snapshot.name
    local = None
    try:
        if not named_code(snapshot.spec).keys() & {"config", "command"}:  # other training code loads its own data
            local = PreparedDatasets().data_hash(TrainConfig.model_validate(snapshot.spec["base"]))
    except Problem as problem:
        return CheckResult("data", "error", f"{name}: {problem}", "put the data where the study expects it")
    except ValidationError as error:
        reasons = "; ".join(error_messages(error, TrainConfig, "base"))
        return CheckResult("data", "error", f"{name}: {reasons}", "restore the study from a backup of the storage")
    if local == snapshot.data_hash:
        return CheckResult("data", "ok", f"{name}: the data has the study's hash, {(local or 'none')[:12]}")
    hashes = f"has the hash {(local or 'none')[:12]}, and the study's data {(snapshot.data_hash or 'none')[:12]}"
    return CheckResult("data", "error", f"{name}: the data here {hashes}", "use the same data on every machine")


def _check_attempts(snapshot: Snapshot) -> CheckResult:
    lines = stalled_lines(snapshot)
    if not lines:
        return CheckResult("attempts", "ok", f"{snapshot.name}: no trial is interrupted again and again")
    remedy = "`hpo show N` says what ended the attempts; `hpo kill N` ends the trial"
    return CheckResult("attempts", "warning", f"{snapshot.name}: {'; '.join(lines)}", remedy)
