"""Run a study to the end of its budget: start workers, restart crashed ones, pass signals on, show events."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.permission import named_code
from hpo.console import say
from hpo.errors import StorageError, WorkFailed
from hpo.launcher.existing import check_new, continued_study
from hpo.launcher.notify import Notifier, notifications, notify_url
from hpo.launcher.options import LaunchOptions, resume_command
from hpo.launcher.placement import GroupFactory, resolve_workers
from hpo.launcher.plan import describe_plan
from hpo.launcher.processes import WorkerGroup
from hpo.launcher.progress import RegistrationProgress, View, choose_view
from hpo.launcher.refresh import RefreshTimer
from hpo.launcher.run_folder import check_still_there, open_folder
from hpo.launcher.signals import SignalForwarder
from hpo.queue.heartbeat import LeaseRenewer, free_leases_of, lease_seconds
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import data_note, describe_data, row_counts, rows_text
from hpo.runs.resources import pack_text
from hpo.runs.run_dir import FolderGuard
from hpo.storage.connections import check_connections
from hpo.storage.engine import Reader, open_readonly
from hpo.storage.file_guard import rescued
from hpo.storage.retry import limit_patience, outages
from hpo.storage.store import open_store
from hpo.storage.url import normalise_url
from hpo.study.places import place_options
from hpo.study.spec import Study
from hpo.trackers.names import chosen_trackers
from hpo.trackers.process import STOPPED_S, tracking
from hpo.worker.events import ENDS, Event

# Prints the result of a study and returns the exit status: (snapshot, folder of the study, options, seconds of the
# launch).
OnFinish = Callable[[Snapshot, Path, LaunchOptions, float], int]

# Seconds that the launcher waits for an unreachable storage before it updates its view without the storage.
VIEW_WAIT_S = 2.0


def run_study(options: LaunchOptions, study: Study, on_finish: OnFinish) -> int:
    """Run a study to the end of its budget and print its result; return the exit status.

    Raises:
        Problem: an option, the storage or the study's data is not valid.
        WorkFailed: a worker failed and trials are left.
    """
    lease_seconds()  # refuses a wrong value before the study is registered
    url = notify_url(options.notify)
    environments, start_group = resolve_workers(options)
    if study.objections:
        check_new(options.storage, study)
    continued = continued_study(options.storage, study)
    trackers = chosen_trackers(options.track, continued.file.track, study.source)
    data_hash, anchors = describe_data(continued.base)
    rows = row_counts(continued.base)
    if not options.quiet:
        plan = describe_plan(continued, anchors, rows_text(rows))
        say("\n".join(filter(None, (plan, data_note(continued.base)))))
    if options.dry_run:
        return 0
    with (
        open_store(options.storage, create=True) as store,
        rescued(store.guard, resume_command(options)),
    ):
        check_connections(store, len(environments))
        stored = register_study(store, study, data_hash, anchors, options.budget, RegistrationProgress(study.name))
        stored.store_rows(rows)
        store.patience = math.inf  # from now on an unreachable storage is waited for
        guard = open_folder(options.out, stored)
        with (
            notifications(url, study.name) as notifier,
            tracking(trackers, normalise_url(options.storage), study.name, options.out, guard.folder) as tracked,
        ):
            status = _run_registered(options, stored, environments, guard, start_group, on_finish, notifier)
            if status > 128:  # a signal has stopped it, and another may follow
                tracked.patience = min(STOPPED_S, tracked.patience)
            with suppress(StorageError), limit_patience(VIEW_WAIT_S):
                notifier.end(read_snapshot(store, study.name), status)
    return status


def _run_registered(
    options: LaunchOptions,
    stored: StoredStudy,
    environments: Sequence[Mapping[str, str]],
    guard: FolderGuard,
    start_group: GroupFactory,
    on_finish: OnFinish,
    notifier: Notifier,
) -> int:
    """Run the workers of a study in the storage to their end and print the result; return the exit status."""
    started_at = time.monotonic()
    status, given_up = _supervise(options, stored, environments, guard, start_group, notifier)
    if status:
        return status
    check_still_there(stored, guard)
    state = stored.read_state().state
    if state == "stopped":
        say(f"{stored.study.name} was stopped; to resume it: {resume_command(options)}")
    elif state == "paused" and options.on == "slurm":  # other workers wait, but jobs would occupy their nodes
        remedy = "`hpo resume` and then this command continue it"
        say(f"{stored.study.name} is paused, and its jobs have ended; {remedy}: {resume_command(options)}")
    snapshot = read_snapshot(stored.store, stored.study.name)
    status = on_finish(snapshot, guard.folder, options, time.monotonic() - started_at)
    if given_up:
        numbers = ", ".join(map(str, sorted(given_up)))
        say(f"trials were given up, because their files could not be written: {numbers}; `hpo show N` names the file")
    return status or (WorkFailed.status if given_up else 0)


def _supervise(
    options: LaunchOptions,
    stored: StoredStudy,
    environments: Sequence[Mapping[str, str]],
    guard: FolderGuard,
    start_group: GroupFactory,
    notifier: Notifier,
) -> tuple[int, set[int]]:
    """Run workers until they end; return 0 or 128 + the number of the signal that stopped them, and the trials that
    were given up because their files could not be written.

    Raises:
        WorkFailed: a worker failed and trials are left.
    """
    # The URL is passed in the environment, because every user of the machine can read a password on a command line.
    environments = [{"HPO_STORAGE": normalise_url(options.storage), **env} for env in environments]
    # The launcher waits for an unreachable storage as long as its workers do, so that a short outage does not end them.
    with open_readonly(options.storage, math.inf) as reader, LeaseRenewer(stored.slots, "launch", lease_seconds()):
        snapshot = read_snapshot(reader, stored.study.name)
        notifier.look(snapshot)
        view = choose_view(options, snapshot, len(environments))
        signals = SignalForwarder()  # before the workers start, so that a signal cannot leave them without a launcher
        try:
            group = start_group(_worker_arguments(options, stored.study), environments, guard.folder)
            signals.forward_to(group)
            try:
                with view:
                    given_up = _watch(group, signals, view, reader, stored, guard, notifier)
            finally:
                group.stop()
        finally:
            signals.restore()
        if signals.first is not None:
            say(f"stopped; to resume it: {resume_command(options)}")
            return 128 + signals.first, given_up
        _check_failed(group)
    return 0, given_up


def _worker_arguments(options: LaunchOptions, study: Study) -> list[str]:
    """Return the arguments of `hpo worker`."""
    arguments = ["--study", study.name, "--pack", pack_text(options.pack), "--out", str(options.out.absolute())]
    arguments += place_options(study)  # a launch on another machine may store other places meanwhile
    # The launcher has permission to import the training code of the study, and passes it on.
    code = named_code(study.file.model_dump(include={"train", "config", "command", "env"}))
    return arguments + [word for address in code.values() for word in ("--allow-train", address)]


def _watch(
    group: WorkerGroup,
    signals: SignalForwarder,
    view: View,
    reader: Reader,
    stored: StoredStudy,
    guard: FolderGuard,
    notifier: Notifier,
) -> set[int]:
    """Show events, restart crashed workers and free their trials, until all workers have ended.

    Return the trials that were given up because their files could not be written.

    Raises:
        StorageError: the file of the storage was removed or replaced.
        WorkFailed: the study or its run folder was removed.
    """
    timer, given_up = RefreshTimer(), set()
    while group.is_active():
        events = [*group.events(wait=0.5), *signals.events(), *_outages()]
        for event in events:
            view.show(event)
        given_up |= {event["trial"] for event in events if event["event"] == "disk"}
        if any(event["event"] in ("start", *ENDS) for event in events):
            timer.hasten()
        _restart_crashed(group, view, stored)
        try:
            check_still_there(stored, guard)
        except (StorageError, WorkFailed) as error:  # the workers may take some seconds to stop
            view.show({"event": "note", "text": f"stopping: {error}"})
            raise
        if timer.is_due():
            started_at = time.monotonic()
            with suppress(StorageError), limit_patience(VIEW_WAIT_S):
                notifier.look(_refresh(view, reader, stored, group))
            timer.restart(time.monotonic() - started_at)
    check_still_there(stored, guard)  # the workers may have noticed it first
    with suppress(StorageError), limit_patience(VIEW_WAIT_S):
        _refresh(view, reader, stored, group)  # the last picture shows the end
    return given_up


def _outages() -> list[Event]:
    return [{"event": "note", "text": note}] if (note := outages.note()) else []


def _refresh(view: View, reader: Reader, stored: StoredStudy, group: WorkerGroup) -> Snapshot:
    """Show the state of a study, and return it. Workers of a study that has ended need not start any more."""
    stored.read_state()  # raises an error if the study is gone
    snapshot = read_snapshot(reader, stored.study.name)
    view.refresh(snapshot)
    if has_ended(snapshot):
        group.cancel_pending()
    return snapshot


def _restart_crashed(group: WorkerGroup, view: View, stored: StoredStudy) -> None:
    """Restart crashed workers and free their trials."""
    for worker in group.restart_crashed():
        view.show({"event": "note", "worker": worker.number, "text": worker.describe_crash()})
        if worker.owner is not None:
            # If the storage is unreachable, the trials are freed when their leases expire.
            with suppress(StorageError), limit_patience(VIEW_WAIT_S):
                free_leases_of(stored.store, worker.owner, worker.describe_exit())


def _check_failed(group: WorkerGroup) -> None:
    """Print which workers failed.

    Raises:
        WorkFailed: all workers failed. The exit status is theirs if it is the same for all of them.
    """
    failed = group.failed()
    messages = [worker.describe_exit() for worker in failed]
    if len(failed) < len(group.workers):
        for message in messages:
            say(message)
        return
    problem = WorkFailed(*messages)
    statuses = {worker.process.returncode for worker in failed}
    problem.status = statuses.pop() if len(statuses) == 1 and statuses <= {2, 4} else WorkFailed.status
    raise problem
