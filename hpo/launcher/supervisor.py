"""A study run to the end of its budget: workers started and looked after, signals passed on, events shown."""

import functools
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.config.yaml import dump_yaml
from hpo.console import say
from hpo.errors import Problem, StorageError, WorkFailed
from hpo.launcher.plan import describe_plan
from hpo.launcher.processes import WorkerGroup
from hpo.launcher.progress import EventLog, LiveTable
from hpo.queue.heartbeat import LEASE_S, LeaseRenewer, free_leases_of
from hpo.queue.registry import StoredStudy, register_study
from hpo.runs.datasets import describe_data
from hpo.runs.resources import available_cores, check_gpus, thread_environment
from hpo.runs.run_dir import study_folder, write_file
from hpo.storage.connections import check_connections
from hpo.storage.engine import Reader, open_readonly
from hpo.storage.retry import PATIENCE, limit_patience
from hpo.storage.store import open_store
from hpo.storage.url import has_no_password, normalise_url
from hpo.study.spec import Study, as_file
from hpo.worker.events import Event

# Says what a study found, given how it stands, its folder, and the seconds that this launch took.
OnFinish = Callable[[Snapshot, Path, "LaunchOptions", float], int]

# Starts a group, given the workers' arguments, the environment of each, and the folder of their logs.
GroupFactory = Callable[[Sequence[str], Sequence[Mapping[str, str]], Path], WorkerGroup]

LOOK_S = 2.0  # for which the view waits for the storage
REFRESH_S = 5.0  # between looks at the whole study


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line of `hpo launch` says."""

    study: str
    storage: str
    workers: int
    budget: Mapping[str, Any]
    overrides: Sequence[str]
    seed: int | None
    gpus: Sequence[str]
    per_gpu: int
    on: str
    address: str
    gpus_per_worker: float
    pack: int
    out: Path
    dry_run: bool
    quiet: bool
    plain: bool


def run_study(options: LaunchOptions, study: Study, conclude: OnFinish) -> int:
    """Run a study that was read or made to the end of its budget, and say what it found; return the exit status."""
    environments, crew = resolve_workers(options)
    data_hash, anchors = describe_data(study.base)
    if not options.quiet:
        say(describe_plan(study, anchors))
    if options.dry_run:
        return 0
    began = time.monotonic()
    with open_store(options.storage, create=True) as store:
        check_connections(store, len(environments))
        stored = register_study(store, study, data_hash, anchors, options.budget)
        folder = study_folder(options.out, study.name)
        try:
            write_file(folder / "study.yaml", dump_yaml(as_file(study.spec(), study.file.budget.model_dump())))
        except WorkFailed as failed:  # before anything ran: the folder is a wrong one
            raise Problem(str(failed)) from None
        status = _supervise(options, stored, environments, folder, crew)
        if status:
            return status
        if stored.read_state().state == "stopped":
            say(f"{study.name} was stopped; this goes on where it was: {resume_command(options)}")
        return conclude(read_snapshot(store, study.name), folder, options, time.monotonic() - began)


def resolve_workers(options: LaunchOptions) -> tuple[list[dict[str, str]], GroupFactory]:
    """Return the environment of each worker, and what starts them: on this machine, or on a Ray cluster's nodes.

    Raises:
        Problem: an option does not go with the place. WorkFailed: there is no such cluster.
    """
    from hpo.launcher.ray_cluster import (  # loads Ray only where it is asked for
        CPUS,
        RayWorkerGroup,
        check_ray_options,
        join_cluster,
    )

    local = {"--gpus": options.gpus, "--per-gpu": options.per_gpu > 1}
    ray = {"--address": options.address, "--gpus-per-worker": options.gpus_per_worker}
    if options.on == "local":
        if alien := [name for name, value in ray.items() if value]:
            raise Problem(f"{alien[0]}: must be left out without --on ray")
        return worker_environments(options.workers, options.gpus, options.per_gpu), WorkerGroup
    if alien := [name for name, value in local.items() if value]:
        raise Problem(f"{alien[0]}: must be left out with --on ray, which finds GPUs by --gpus-per-worker")
    n = max(1, options.workers)
    check_ray_options(options.storage, options.gpus_per_worker)
    join_cluster(options.address, options.storage, options.gpus_per_worker)
    return [thread_environment(CPUS)] * n, functools.partial(RayWorkerGroup, options.gpus_per_worker)


def worker_environments(workers: int, gpus: Sequence[str], per_gpu: int) -> list[dict[str, str]]:
    """Return the environment of each worker: its share of the cores, and one GPU.

    Set before torch is imported, which reads the number of threads only once.

    Raises:
        Problem: a GPU is asked for that is not there.
    """
    n = workers or (len(gpus) * per_gpu if gpus else 1)
    check_gpus(gpus)
    if gpus and n > len(gpus) * per_gpu:
        raise Problem(f"--workers: must be at most {len(gpus) * per_gpu}, {per_gpu} on each of the GPUs, got {n}")
    shared = thread_environment(max(1, available_cores() // n))
    return [shared | ({"CUDA_VISIBLE_DEVICES": gpus[i // per_gpu % len(gpus)]} if gpus else {}) for i in range(n)]


def _supervise(
    options: LaunchOptions,
    stored: StoredStudy,
    environments: Sequence[Mapping[str, str]],
    folder: Path,
    crew: GroupFactory,
) -> int:
    """Run workers until they end; return 0, or the status of the signal that ended them.

    Raises:
        WorkFailed: a worker failed and trials are left.
    """
    arguments = ["--study", stored.study.name, "--pack", str(options.pack), "--out", str(options.out.absolute())]
    # The URL travels in the environment: a password on a command line is for everyone to read.
    urls = {"HPO_STORAGE": normalise_url(options.storage)}
    # As patient as the workers: a storage that is away for a minute must not end them.
    with open_readonly(options.storage, PATIENCE) as reader, LeaseRenewer(stored.slots, "launch", LEASE_S):
        first = read_snapshot(reader, stored.study.name)
        plain = options.plain or options.quiet or not sys.stderr.isatty()
        view = EventLog(first, options.quiet) if plain else LiveTable(first, len(environments))
        group = crew(arguments, [{**urls, **env} for env in environments], folder)
        signals = _Signals(group)
        try:
            with view:
                _watch(group, signals, view, reader, stored)
        finally:
            signals.restore()
            group.end()
        if signals.first is not None:
            say(f"stopped; this goes on where it was: {resume_command(options)}")
            return 128 + signals.first
        _check_failed(group)
    return 0


def _watch(
    group: WorkerGroup, signals: "_Signals", view: EventLog | LiveTable, reader: Reader, stored: StoredStudy
) -> None:
    """Show what workers tell, start again those that crash, and free their trials, until all have ended."""
    refresh_at = 0.0
    while group.alive():
        for event in [*group.events(wait=0.5), *signals.news()]:
            view.show(event)
        for member in group.tend():
            view.show({"event": "note", "worker": member.number, "text": member.outlook()})
            if member.owner is not None:
                with suppress(StorageError), limit_patience(LOOK_S):  # else when its leases have run out
                    free_leases_of(stored.store, member.owner, member.end())
        if time.monotonic() >= refresh_at:  # at the whole study, which is dear when it is long
            with suppress(StorageError), limit_patience(LOOK_S):
                view.refresh(read_snapshot(reader, stored.study.name))
            refresh_at = time.monotonic() + REFRESH_S


def _check_failed(group: WorkerGroup) -> None:
    """Say which workers failed; that fails the launch where none saw the budget spent.

    Raises:
        WorkFailed: with the status of the workers, if they have one in common.
    """
    failed = group.failed()
    told = [m.end() for m in failed]
    if len(failed) < len(group.members):
        for text in told:
            say(text)
        return
    problem = WorkFailed(*told)
    statuses = {m.process.returncode for m in failed}
    problem.status = statuses.pop() if len(statuses) == 1 and statuses <= {2, 4} else WorkFailed.status
    raise problem


class _Signals:
    """Passes Ctrl-C and SIGTERM on to the workers: the first finishes the rung, the second stops now."""

    def __init__(self, group: WorkerGroup) -> None:
        self.group = group
        self.first: int | None = None
        self.told = False
        self.before = {n: signal.signal(n, self._on) for n in (signal.SIGINT, signal.SIGTERM)}

    def _on(self, number: int, _: Any) -> None:
        self.first = self.first or number
        self.group.send(signal.Signals(number))

    def news(self) -> list[Event]:
        """Return what to say once: not from the handler, which may interrupt a line that is being written."""
        if self.first is None or self.told:
            return []
        self.told = True
        text = "stopping: each worker finishes its rung and saves; press Ctrl-C again to stop at once"
        return [{"event": "note", "text": text}]

    def restore(self) -> None:
        for n, handler in self.before.items():
            signal.signal(n, handler)


def storage_option(options: LaunchOptions) -> str:
    """Return the --storage of the next command, "" where it is the default; a password is left out."""
    if options.storage == "sqlite:///runs/hpo.db":
        return ""
    return f" --storage {shlex.quote(options.storage if has_no_password(options.storage) else '...')}"


def resume_command(options: LaunchOptions) -> str:
    """Return the command that launches the same again."""
    words = ["hpo", "launch", "--study", options.study, "--workers", str(options.workers)]
    words += [word for key, value in options.budget.items() if value is not None for word in (f"--{key}", str(value))]
    words += [word for override in options.overrides for word in ("--set", override)]
    words += ["--seed", str(options.seed)] if options.seed is not None else []
    words += ["--gpus", ",".join(options.gpus), "--per-gpu", str(options.per_gpu)] if options.gpus else []
    words += ["--on", options.on] if options.on != "local" else []
    words += ["--address", options.address] if options.address else []
    words += ["--gpus-per-worker", f"{options.gpus_per_worker:g}"] if options.gpus_per_worker else []
    words += ["--pack", str(options.pack)] if options.pack > 1 else []
    words += ["--out", str(options.out)] if str(options.out) != "runs" else []
    return shlex.join(words) + storage_option(options)
