"""hpo launch: make the study, start workers, show how they fare, and say what was found."""

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

from hpo import cores, folders, notation
from hpo.caveats import caveats
from hpo.checking import read
from hpo.compare import columns, compare
from hpo.data import described
from hpo.engine import Reader, look, normalise
from hpo.export import changes, text
from hpo.group import Event, Group
from hpo.keeper import LEASE_S, Keeper, reap
from hpo.live import Plain, Screen, aims, clock, standing
from hpo.output import Format, number, rows, say, shown
from hpo.patience import PATIENCE, StorageError, at_most, safe
from hpo.problems import NothingFeasible, Problem, WorkFailed
from hpo.reading import study_attrs, study_ids
from hpo.register import Registered, register
from hpo.shelf import find
from hpo.status import BUDGET, SPEC, Snapshot, best_trial, counts, snapshot, tokens
from hpo.storage import check_connections, connect
from hpo.study import Study, as_file, from_spec

# Says what a study found, given how it stands, its folder, and the seconds that this launch took.
Conclude = Callable[[Snapshot, Path, "Options", float], int]

# Starts a group, given the workers' arguments, the environment of each, and the folder of their logs.
Crew = Callable[[Sequence[str], Sequence[Mapping[str, str]], Path], Group]

LOOK_S = 2.0  # for which the view waits for the storage
REFRESH_S = 5.0  # between looks at the whole study


@dataclass(frozen=True)
class Options:
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


def launch(options: Options) -> int:
    """Run a study to the end of its budget; return the exit status."""
    study = held(options) or read(options.study, options.overrides, options.budget, options.seed)
    if study.file.arms is not None and options.budget.get("trials") not in (None, study.file.budget.trials):
        raise Problem(f"--trials: must be left out, since {study.name} has arms: their runs are the budget")
    return run(options, study, conclude_arms if study.file.arms is not None else conclude)


def run(options: Options, study: Study, conclude: Conclude) -> int:
    """Run a study that was read or made to the end of its budget, and say what it found; return the exit status."""
    environments, crew = crew_of(options)
    data_hash, anchors = described(study.base)
    if not options.quiet:
        say(plan(study, anchors))
    if options.dry_run:
        return 0
    began = time.monotonic()
    with connect(options.storage, create=True) as store:
        check_connections(store, len(environments))
        at = register(store, study, data_hash, anchors, options.budget)
        folder = folders.study_folder(options.out, study.name)
        try:
            folders.write(folder / "study.yaml", notation.dump(as_file(study.spec(), study.file.budget.model_dump())))
        except WorkFailed as failed:  # before anything ran: the folder is a wrong one
            raise Problem(str(failed)) from None
        status = _supervise(options, at, environments, folder, crew)
        if status:
            return status
        if at.now().state == "stopped":
            say(f"{study.name} was stopped; this goes on where it was: {again(options)}")
        return conclude(snapshot(store, study.name), folder, options, time.monotonic() - began)


def held(options: Options) -> Study | None:
    """Return a study that has no file here but lies in the storage, such as one that `hpo fork` made; else None."""
    with suppress(Problem):
        find(options.study)
        return None
    try:
        with look(options.storage) as at:
            study_id = study_ids(at).get(options.study)
            attrs = {} if study_id is None else study_attrs(at, study_id)
    except StorageError:
        return None
    if SPEC not in attrs:
        return None
    if options.overrides or options.seed is not None:
        raise Problem(f"--set, --seed: must be left out, since {options.study} is begun and keeps its questions")
    asked = {key: value for key, value in options.budget.items() if value is not None}
    return from_spec({**attrs[SPEC], "budget": {**(attrs.get(BUDGET) or attrs[SPEC]["budget"]), **asked}})


def crew_of(options: Options) -> tuple[list[dict[str, str]], Crew]:
    """Return the environment of each worker, and what starts them: on this machine, or on a Ray cluster's nodes.

    Raises:
        Problem: an option does not go with the place. WorkFailed: there is no such cluster.
    """
    from hpo import cluster  # loads Ray only where it is asked for

    local = {"--gpus": options.gpus, "--per-gpu": options.per_gpu > 1}
    ray = {"--address": options.address, "--gpus-per-worker": options.gpus_per_worker}
    if options.on == "local":
        if alien := [name for name, value in ray.items() if value]:
            raise Problem(f"{alien[0]}: must be left out without --on ray")
        return environments_of(options.workers, options.gpus, options.per_gpu), Group
    if alien := [name for name, value in local.items() if value]:
        raise Problem(f"{alien[0]}: must be left out with --on ray, which finds GPUs by --gpus-per-worker")
    n = max(1, options.workers)
    cluster.check(options.storage, options.gpus_per_worker)
    cluster.join(options.address, options.storage, options.gpus_per_worker)
    return [cores.environment(cluster.CPUS)] * n, functools.partial(cluster.Cluster, options.gpus_per_worker)


def environments_of(workers: int, gpus: Sequence[str], per_gpu: int) -> list[dict[str, str]]:
    """Return the environment of each worker: its share of the cores, and one GPU.

    Set before torch is imported, which reads the number of threads only once.

    Raises:
        Problem: a GPU is asked for that is not there.
    """
    n = workers or (len(gpus) * per_gpu if gpus else 1)
    cores.check_gpus(gpus)
    if gpus and n > len(gpus) * per_gpu:
        raise Problem(f"--workers: must be at most {len(gpus) * per_gpu}, {per_gpu} on each of the GPUs, got {n}")
    shared = cores.environment(max(1, cores.available() // n))
    return [shared | ({"CUDA_VISIBLE_DEVICES": gpus[i // per_gpu % len(gpus)]} if gpus else {}) for i in range(n)]


def plan(study: Study, anchors: Mapping[str, float]) -> str:
    """Return what is about to be run, for a person to check."""
    file, budget = study.file, study.file.budget.model_dump(exclude_none=True)
    told = [f"{study.name}  ({study.source})"]
    if file.arms is not None:
        told += [f"  {name:28} {_values(values)}" for name, values in file.arms.items()]
        told.append(f"  {len(file.arms)} arms x {len(file.seeds)} seeds, objective {file.objective}")
    else:
        told += [f"  {path:28} {_range(entry.model_dump(exclude_defaults=True))}" for path, entry in file.space.items()]
        told.append(
            f"  budget {', '.join(_amount(k, v) for k, v in budget.items())}; sampler {file.sampler.name}, "
            f"pruner {file.pruner.name}, objective {file.objective}"
        )
    if file.targets:
        told.append("  targets " + ", ".join(f"{name} {number(value)}" for name, value in file.targets.items()))
    if file.milestones:
        by = sorted(file.milestones.items())
        told.append("  milestones " + ", ".join(f"{number(value)} by {share * 100:g} %" for share, value in by))
    if study.rung_tokens:
        marks = [f"{round(i * study.rung_tokens):,}" for i in (1, 2)]
        told.append(
            f"  {study.rungs} rungs, at {marks[0]}, {marks[1]}, ... {round(study.rungs * study.rung_tokens):,} tokens"
        )
    if anchors:
        told.append("  anchors: " + ", ".join(f"{name} {number(value)}" for name, value in anchors.items()))
    return "\n".join([*told, ""])


def _amount(key: str, value: Any) -> str:
    return f"target {value}" if key == "target" else f"{shown(value)} {key}"


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={shown(value)}" for path, value in values.items()) or "the base itself"


def _range(entry: Mapping[str, Any]) -> str:
    if "choices" in entry:
        return "one of " + ", ".join(shown(c) for c in entry["choices"])
    scale = "log" if entry.get("log") else "log in 1 - x" if entry.get("complement_log") else ""
    step = f"step {entry['step']}" if entry.get("step") else ""
    return " ".join(word for word in (f"{entry['low']} to {entry['high']}", scale, step) if word)


def _supervise(
    options: Options, at: Registered, environments: Sequence[Mapping[str, str]], folder: Path, crew: Crew
) -> int:
    """Run workers until they end; return 0, or the status of the signal that ended them.

    Raises:
        WorkFailed: a worker failed and trials are left.
    """
    arguments = ["--study", at.study.name, "--pack", str(options.pack), "--out", str(options.out.absolute())]
    # The URL travels in the environment: a password on a command line is for everyone to read.
    urls = {"HPO_STORAGE": normalise(options.storage)}
    # As patient as the workers: a storage that is away for a minute must not end them.
    with look(options.storage, PATIENCE) as reader, Keeper(at.slots, "launch", LEASE_S):
        first = snapshot(reader, at.study.name)
        plain = options.plain or options.quiet or not sys.stderr.isatty()
        view = Plain(first, options.quiet) if plain else Screen(first, len(environments))
        group = crew(arguments, [{**urls, **env} for env in environments], folder)
        signals = _Signals(group)
        try:
            with view:
                _watch(group, signals, view, reader, at)
        finally:
            signals.restore()
            group.end()
        if signals.first is not None:
            say(f"stopped; this goes on where it was: {again(options)}")
            return 128 + signals.first
        _check_failed(group)
    return 0


def _watch(group: Group, signals: "_Signals", view: Plain | Screen, reader: Reader, at: Registered) -> None:
    """Show what workers tell, start again those that crash, and free their trials, until all have ended."""
    refresh_at = 0.0
    while group.alive():
        for event in [*group.events(wait=0.5), *signals.news()]:
            view.show(event)
        for member in group.tend():
            view.show({"event": "note", "worker": member.number, "text": member.outlook()})
            if member.owner is not None:
                with suppress(StorageError), at_most(LOOK_S):  # else when its leases have run out
                    reap(at.store, member.owner, member.end())
        if time.monotonic() >= refresh_at:  # at the whole study, which is dear when it is long
            with suppress(StorageError), at_most(LOOK_S):
                view.refresh(snapshot(reader, at.study.name))
            refresh_at = time.monotonic() + REFRESH_S


def _check_failed(group: Group) -> None:
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

    def __init__(self, group: Group) -> None:
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


def conclude(of: Snapshot, folder: Path, options: Options, seconds: float) -> int:
    """Say what a study found, keep its best configuration, and say what to type next."""
    n, spent = counts(of), tokens(of)
    ended = n["complete"] + n["pruned"] + n["failed"]
    spared = ""
    if spent["trained"] and spent["saved_by_pruning"]:
        share = spent["saved_by_pruning"] / (spent["trained"] + spent["saved_by_pruning"])
        spared = f"; pruning saved {share:.0%} of the tokens"
    say(
        f"{of.name}: {ended} trials after {clock(seconds)}: {n['complete']} complete, {n['pruned']} pruned, "
        f"{n['failed']} failed{spared}"
    )
    best = of.best()
    if best is None:
        raise NothingFeasible(f"study {of.name}: no trial was completed; `hpo trials` and `hpo show N` say why")
    path = folder / "best.yaml"
    folders.write(path, text(of, best_trial(of)))
    print("\n".join(answer(of, path, options)))
    return 0


def conclude_arms(of: Snapshot, folder: Path, options: Options, seconds: float) -> int:
    """Say how the arms of a study compare with the first of them."""
    n = counts(of)
    say(f"{of.name}: {n['complete']} of {sum(of.slots.values())} runs complete after {clock(seconds)}")
    rows([columns(row) for row in compare(of)], Format.table)
    for note in caveats(of):
        say(f"note: {note}")
    return 0


def answer(of: Snapshot, path: Path, options: Options) -> list[str]:
    """Return the best configuration, what changed against the baseline, and the next commands."""
    best = best_trial(of)
    found = [standing(of), *aims(of), ""]
    changed = changes(of, best)
    width = max((len(field) for field, _, _ in changed), default=0)
    found += [f"  {field:{width}}  {shown(before):>8} -> {shown(after)}" for field, before, after in changed]
    found += ["" if changed else "  the baseline itself: nothing that was tried is better"]
    if notes := caveats(of):
        found += [*(f"note: {note}" for note in notes), ""]
    where = _where(options)
    return [
        *found,
        f"complete configuration: {path}",
        "next:",
        f"  hpo confirm --study {of.name}{where} --workers {max(1, options.workers)}",
        f"  hpo export --study {of.name}{where} -o best.yaml",
        "  hpo train best.yaml",
        f"  hpo dashboard{where}",
    ]


def _where(options: Options) -> str:
    """Return the --storage of the next command, "" where it is the default; a password is left out."""
    if options.storage == "sqlite:///runs/hpo.db":
        return ""
    return f" --storage {shlex.quote(options.storage if safe(options.storage) else '...')}"


def again(options: Options) -> str:
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
    return shlex.join(words) + _where(options)
