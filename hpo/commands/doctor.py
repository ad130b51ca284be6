"""hpo doctor: what is wrong with a storage, a machine and the files of studies, and what to do about it."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.console import Format, rows
from hpo.errors import Problem, StorageError
from hpo.queue.heartbeat import free_expired_leases
from hpo.queue.slots import Slots, set_trial_states
from hpo.runs import checkpoints
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.resources import available_cores, list_gpus
from hpo.runs.run_dir import is_writable, trial_folder
from hpo.storage.attributes import SPEC
from hpo.storage.engine import Reader, open_readonly
from hpo.storage.migrate import schema_problem, update_schema
from hpo.storage.retry import transact
from hpo.storage.schema import SLOT, TRIALS
from hpo.storage.store import open_store
from hpo.storage.trials import State, Trial, study_attrs, study_ids
from hpo.storage.url import masked_url, network_file_system, normalise_url, sqlite_file
from hpo.study.spec import from_spec

SKEW_S = 2.0  # between this machine's clock and the database's, beyond which logs are hard to read together
LOW, FULL = 2e9, 1e8  # bytes free: little, and too little


class Finding(NamedTuple):
    """One thing looked at. state: fine, look (at it) or wrong; `mend` does what `remedy` says."""

    check: str
    state: str
    found: str
    remedy: str = ""
    mend: Callable[[], object] | None = None


def examine(url: str, only: str | None, out: Path) -> Iterator[Finding]:
    """Look at everything, one finding after the other.

    Raises:
        StorageError: the storage does not answer; nothing else can be found out.
    """
    url = normalise_url(url)
    yield from _storage(url)
    yield from _disks(url, out)
    yield _gpus()
    if schema_problem(url):
        return
    with open_readonly(url) as store:
        yield _clock(store)
        if store.engine.name == "postgresql":
            yield _connections(store)
        yield _stale(store)
        yield _orphans(store)
        for name, study_id in sorted(study_ids(store).items()):
            attrs = study_attrs(store, study_id)
            if only in (None, name) and SPEC in attrs:
                snapshot = read_snapshot(store, name)
                yield _data(name, snapshot)
                yield _shared(name, snapshot, out)
                yield _leftovers(name, snapshot, out)


def treat(findings: Iterator[Finding], fix: bool) -> Iterator[Finding]:
    """Pass on findings; with `fix`, after doing what is safe."""
    for finding in findings:
        if fix and finding.mend is not None:
            finding.mend()
            yield finding._replace(state="mended", mend=None)
        else:
            yield finding


def _storage(url: str) -> Iterator[Finding]:
    problem = schema_problem(url)
    if problem:
        yield Finding("storage", "wrong", problem, "hpo doctor --fix adds what is missing", lambda: update_schema(url))
    else:
        yield Finding("storage", "fine", f"{masked_url(url)} answers, its tables are of this version")
    file = sqlite_file(url)
    if file is not None and (kind := network_file_system(file)):
        yield Finding(
            "storage", "wrong", f"{file} lies on {kind}, where SQLite's locks fail", "use Postgres, or a local disk"
        )


def _clock(store: Reader) -> Finding:
    ahead = time.time() - Slots(store, 0).now()
    if abs(ahead) <= SKEW_S:
        return Finding("clock", "fine", f"{abs(ahead):.1f} s from the database's")
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the database's"
    return Finding("clock", "look", found, "set the clock (leases are safe: they go by the database's clock)")


def _disks(url: str, out: Path) -> Iterator[Finding]:
    from model.cache import cache_root

    wanted = {"runs": out, "prepared data": cache_root()}
    file = sqlite_file(url)
    if file is not None:
        wanted["storage"] = file.parent
    for what, folder in wanted.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        found = f"{what}: {free / 1e9:.1f} GB free in {there}"
        if not os.access(there, os.W_OK) or not is_writable(there):
            yield Finding("disk", "wrong", f"{what}: {there} cannot be written", "free some room, or mend its rights")
        elif free < LOW:
            yield Finding("disk", "wrong" if free < FULL else "look", found, "free some room")
        else:
            yield Finding("disk", "fine", found)


def _gpus() -> Finding:
    have = list_gpus()
    if not have:
        return Finding("gpus", "fine", f"no NVIDIA GPU; {available_cores()} CPU cores")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = f"{len(have)}: {', '.join(have)}" + (f"; CUDA_VISIBLE_DEVICES={visible}" if visible is not None else "")
    if visible == "":
        return Finding("gpus", "look", found, "unset CUDA_VISIBLE_DEVICES, which hides them all")
    return Finding("gpus", "fine", found)


def _connections(store: Reader) -> Finding:
    with store.engine.connect() as connection:
        total = int(connection.exec_driver_sql("SELECT current_setting('max_connections')::int").scalar_one())
        used = int(connection.exec_driver_sql("SELECT count(*) FROM pg_stat_activity").scalar_one())
    room = max(0, (total - used - 10) // 2)
    found = f"{used} of {total} connections in use, room for {room} more workers"
    return Finding("connections", "fine" if room else "look", found, "" if room else "raise max_connections")


def _stale(at: Reader) -> Finding:
    """Return the leases that ran out and that nobody freed: no worker and no launcher is alive."""
    expired = sum(Slots(at, study_id).counts()["expired"] for study_id in study_ids(at).values())
    if not expired:
        return Finding("leases", "fine", "none has run out")

    def free() -> None:
        with open_store(at.url) as store:
            free_expired_leases(store)

    found = f"{expired} ran out and are held by nobody"
    return Finding("leases", "look", found, "hpo launch goes on with them; --fix frees them now", free)


def _orphans(at: Reader) -> Finding:
    """Return trials that Optuna shows as running though no worker holds their slot."""
    running = sa.cast(TRIALS.c.state, sa.String) == "RUNNING"
    mine = sa.select(TRIALS.c.trial_id).join(SLOT, SLOT.c.trial_id == TRIALS.c.trial_id)
    found = mine.where(running, SLOT.c.state == "free")
    ids = transact(at, lambda connection: [row[0] for row in connection.execute(found)])
    if not ids:
        return Finding("trials", "fine", "none is shown as running that is not")

    def mend() -> None:
        with open_store(at.url) as store:
            transact(store, lambda connection: set_trial_states(connection, ids, "RUNNING", "WAITING"))

    return Finding("trials", "wrong", f"{len(ids)} are shown as running, but no worker has them", "--fix", mend)


def _data(name: str, snapshot: Snapshot) -> Finding:
    try:
        here = PreparedDatasets().data_hash(from_spec(snapshot.spec).base)
    except Problem as problem:
        return Finding("data", "wrong", f"{name}: {problem}", "put the text where the study expects it")
    if here == snapshot.data_hash:
        return Finding("data", "fine", f"{name}: has the study's hash, {(here or 'none')[:12]}")
    found = f"{name}: has the hash {(here or 'none')[:12]} here, the study's has {(snapshot.data_hash or 'none')[:12]}"
    return Finding("data", "wrong", found, "use the same text on every machine")


def _shared(name: str, snapshot: Snapshot, out: Path) -> Finding:
    """Return whether the folder of runs holds what other machines wrote."""
    here = socket.gethostname()
    others = [t for t in snapshot.trials if str(t.user_attrs.get("worker", here)).partition(":")[0] != here]
    if not others:
        return Finding("runs", "fine", f"{name}: no other machine has run trials of it")
    seen = [t for t in others if (trial_folder(out, name, t.number) / "config.yaml").is_file()]
    found = f"{name}: {len(seen)} of {len(others)} trials of other machines lie in {out}"
    if len(seen) == len(others):
        return Finding("runs", "fine", found)
    remedy = "mount one folder on every machine as --out; a trial interrupted elsewhere otherwise starts again here"
    return Finding("runs", "look", found, remedy)


def _leftovers(name: str, snapshot: Snapshot, out: Path) -> Finding:
    """Return checkpoints that no trial will use again: of trials that ended and are not among the best."""
    ranked = sorted((t for t in snapshot.own if t.state == State.COMPLETE), key=lambda trial: trial.values[0])
    keep = {trial.number for trial in ranked[: int(snapshot.spec.get("keep_best", 3))]}
    over = [trial_folder(out, name, t.number) for t in snapshot.own if _ended(t) and t.number not in keep]
    left = [folder for folder in over if checkpoints.resumable_checkpoints(folder)]
    if not left:
        return Finding("checkpoints", "fine", f"{name}: none is left over")
    size = sum(file.stat().st_size for folder in left for file in folder.glob("**/state.safetensors"))
    found = f"{name}: {len(left)} ended trials left checkpoints of {size / 1e6:.1f} MB"

    def remove() -> None:
        for folder in left:
            checkpoints.remove_checkpoints(folder, all_of_them=True)

    return Finding("checkpoints", "look", found, "--fix removes them", remove)


def _ended(trial: Trial) -> bool:
    return trial.state in (State.COMPLETE, State.PRUNED, State.FAIL)


def report(url: str, only: str | None, out: Path, fix: bool, format: Format) -> int:
    """Print the findings; return the exit status: 1 where something is wrong and was not mended, 4 without storage."""
    findings, status = [], 0
    try:
        for finding in treat(examine(url, only, out), fix):
            findings.append(finding)
            status = status or int(finding.state == "wrong")
    except StorageError as error:
        findings.append(Finding("storage", "wrong", str(error), "start the server, or name another --storage"))
        status = 4
    table = [{key: value for key, value in f._asdict().items() if key != "mend"} for f in findings]
    if format is not Format.table:
        rows(table, format)
        return status
    for f in findings:
        print(f"{f.state:7} {f.check:12} {f.found}" + (f"; {f.remedy}" if f.remedy and f.state != "mended" else ""))
    return status
