"""`hpo studies`, `status`, `show`, `best` and `logs`: records of studies and trials for people and programs."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo.analysis.marks import pause_text, paused_trials, places
from hpo.analysis.noise import rounded, sigmas
from hpo.analysis.probes import probe_values
from hpo.analysis.progress import has_ended, trial_counts
from hpo.analysis.snapshot import Snapshot, find_trial, read_snapshot, trial_status, trial_value
from hpo.analysis.status import status_text
from hpo.analysis.summary import milestones_of, objective_column, summary
from hpo.analysis.targets import milestone_records
from hpo.console import Format, print_record, print_records, say, show
from hpo.errors import error_summary
from hpo.launcher.slurm_queue import queue_line
from hpo.queue.inspect import BeingRegistered
from hpo.runs.command_files import OUTPUT, last_output
from hpo.runs.metrics import read_metrics, read_rungs
from hpo.runs.run_dir import study_folder, trial_folder
from hpo.storage.attributes import ERROR, METRICS, NOTE
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_ids
from hpo.storage.trials import Trial
from hpo.study.engines import engine_text, engines_of, is_gpt
from hpo.view.watch import can_watch, watch_study

REDUNDANT_METRICS = {"val_perplexity"}  # the exponential of val_loss


def study_records(store: OpenStorage) -> list[dict[str, Any]]:
    """Return one record per study of hpo; the database may also hold studies of other programs."""
    from hpo.errors import Problem

    studies: list[dict[str, Any]] = []
    for name in sorted(study_ids(store)):
        try:
            snapshot = read_snapshot(store, name)
        except Problem:
            continue  # a study of another program
        best = snapshot.best()
        objective = best and rounded(snapshot.noise, best.values[0])
        studies.append({"study": name, **trial_counts(snapshot), objective_column(snapshot): objective})
    return studies


def show_status(store: OpenStorage, name: str | None, format: Format, watch: bool) -> None:
    """Print the progress of a study once, or show it until the study ends.

    In a terminal that can redraw it, the live view of `hpo launch` is shown; otherwise the status is printed every two
    seconds.
    """
    if watch and format is Format.table and can_watch():
        watch_study(store, name)
        return
    while not _print_status(store, name, format) and watch:
        time.sleep(2)


def _print_status(store: OpenStorage, name: str | None, format: Format) -> bool:
    """Print the progress of a study; return whether the study has ended."""
    try:
        snapshot = read_snapshot(store, name)
    except BeingRegistered as problem:
        if format is not Format.table:
            raise
        show(str(problem))
        return False
    record, text = status_of(store, snapshot)
    if format is Format.table:
        show(text)
    else:
        print_record(record, format)
    return has_ended(snapshot)


def status_of(store: OpenStorage, snapshot: Snapshot) -> tuple[dict[str, Any], str]:
    """Return the progress of a study as fields and as text, with the number of its jobs that Slurm runs."""
    # Jobs need a server, and the clusters of many machines take long to answer.
    jobs = queue_line(snapshot.name) if store.engine.name == "postgresql" and not has_ended(snapshot) else ""
    fields = {"slurm": jobs.removeprefix("slurm: ")} if jobs else {}
    return summary(snapshot) | fields, "\n".join(filter(None, [status_text(snapshot), jobs]))


def trial_record(snapshot: Snapshot, number: int) -> dict[str, Any]:
    """Return the parameters, values, metrics and history of one trial."""
    trial = find_trial(snapshot, number)
    attrs, interruptions = trial.user_attrs, _interruptions(snapshot, trial)
    error = error_summary(str(attrs.get(ERROR, "")))
    attempts = snapshot.stalled.get(attrs.get("slot", -1))
    return {
        "number": number,
        "state": trial_status(snapshot, trial),
        **({"paused": pause_text(places(snapshot).get(number), trial)} if trial in paused_trials(snapshot) else {}),
        "kind": attrs.get("kind"),
        **_result(snapshot, trial),
        "params": dict(trial.params),
        "curve": {str(rung): rounded(snapshot.noise, v) for rung, v in sorted(trial.intermediate_values.items())},
        **({"probes": dict(probes)} if (probes := probe_values(trial)) else {}),
        **({"milestones": _milestones(snapshot, trial)} if snapshot.spec.get("milestones") else {}),
        "metrics": _round_objective(snapshot, attrs.get(METRICS, {})),
        "worker": attrs.get("worker"),
        "attempt": attrs.get("attempt"),
        **{key: attrs[key] for key in ("retry_of", "forked_from") if key in attrs},
        **({"interruptions": interruptions} if interruptions else {}),
        **({"attempts_without_rung": attempts} if attempts else {}),
        **({"reason": error} if error else {}),
        **({"note": note} if (note := "; ".join(_notes(snapshot, trial))) else {}),
    }


def _notes(snapshot: Snapshot, trial: Trial) -> list[str]:
    """Return what a reader of a trial's result should know."""
    notes = [str(trial.user_attrs[NOTE])] if NOTE in trial.user_attrs else []
    from model.config import ENGINE  # not at the top, because `hpo status` loads nothing of the model

    engines = engines_of(trial.user_attrs)
    if engines != [ENGINE] and is_gpt(snapshot.spec) and trial.intermediate_values:
        text = f"trained with {engine_text(engines)}, this version trains with engine {ENGINE}"
        notes.append(f"{text}: their losses are not comparable to the last bit")
    return notes


def _result(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    """Return the value of a trial, and its distance from the baseline in standard deviations of the noise if known."""
    result, noise = trial_value(trial), snapshot.noise
    if noise is None or result is None:
        return {objective_column(snapshot): result}
    baseline = {"mean": rounded(noise, noise.mean), "sigma": rounded(noise, noise.sigma), "seeds": noise.n}
    return {
        objective_column(snapshot): rounded(noise, result),
        "sigmas": sigmas(noise, trial, result),
        "baseline": baseline,
    }


def _milestones(snapshot: Snapshot, trial: Trial) -> dict[str, dict[str, Any]]:
    """Return for each milestone whether the trial reached it; values have the decimals that the noise leaves."""
    milestones = milestone_records(milestones_of(snapshot, trial))
    return {
        share: {
            key: rounded(snapshot.noise, v) if key in ("value", "by") and v is not None else v
            for key, v in milestone.items()
        }
        for share, milestone in milestones.items()
    }


def _round_objective(snapshot: Snapshot, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics in which the objective has the decimals that the noise leaves."""
    result = metrics.get(snapshot.objective)
    return {**metrics, **({snapshot.objective: rounded(snapshot.noise, result)} if isinstance(result, float) else {})}


def _interruptions(snapshot: Snapshot, trial: Trial) -> list[str]:
    """Return how those attempts ended that did not end the trial, the first attempt first."""
    slot = trial.user_attrs.get("slot")
    events = [
        event
        for event in reversed(snapshot.events)
        if slot is not None and event.slot == slot and event.attempt is not None
        if event.event_type != trial_status(snapshot, trial)
    ]
    return [f"attempt {event.attempt}: {event.event_type}" for event in events]


def show_logs(snapshot: Snapshot, trial: Trial, out: Path, format: Format) -> None:
    """Print the metrics of a trial, and on standard error its errors and the last lines that a command printed."""
    folder = trial_folder(study_folder(out, snapshot.first_name, snapshot.uid), trial.number)
    rungs = read_rungs(folder / "metrics.jsonl", snapshot.objective, trial.intermediate_values)
    if not list(read_metrics(folder / "metrics.jsonl")):
        say(f"no metrics in {folder}; they may be on another machine, or --out differs from the --out of the launch")
    metrics = [rungs[rung] for rung in sorted(rungs)]
    metrics = [_round_objective(snapshot, m) for m in metrics]
    print_records(_table_columns(metrics) if format is Format.table else metrics, format)
    stderr = folder / "stderr.log"
    if stderr.is_file():
        say(stderr.read_bytes().decode("utf-8", "replace").rstrip())
    if lines := last_output(folder):
        say("\n".join([f"last lines of {folder / OUTPUT}:", *lines]))


def _table_columns(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics that fit in a table: those with one number per rung that were measured."""
    nested = {key for m in metrics for key, value in m.items() if isinstance(value, Mapping | list)}
    if nested:
        say(f"{', '.join(sorted(nested))}: only with --format json or csv")
    columns = {key for m in metrics for key, value in m.items() if value is not None} - nested - REDUNDANT_METRICS
    return [{key: value for key, value in m.items() if key in columns} for m in metrics]
