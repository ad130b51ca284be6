"""Summarize the progress of a study, as JSON fields and as lines of text."""

import re
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from hpo.analysis.improvements import improvement_records
from hpo.analysis.looks import sequential_record
from hpo.analysis.marks import paused_records
from hpo.analysis.noise import baseline_text, decimals, rounded, sigmas
from hpo.analysis.probes import probe_record
from hpo.analysis.progress import token_counts, trial_counts
from hpo.analysis.snapshot import Snapshot, trial_status, trial_value
from hpo.analysis.targets import Milestone, milestone_records, milestones, target_records
from hpo.console import format_number, with_columns
from hpo.queue.slots import MAX_FAILURES, MAX_INTERRUPTIONS
from hpo.search.direction import Direction
from hpo.storage.attributes import ARM
from hpo.storage.trials import State, Trial

# Columns of tables of trials and studies, which may also be the name of a user's objective.
COLUMNS = re.compile(
    "number|state|kind|rung|sigmas|seconds|params|curve|metrics|milestones|worker|attempt|reason|interruptions|"
    "baseline|study|complete|pruned|failed|running|paused|waiting|started|ended|slot|retry_of|forked_from|trial|tokens|arm|seed"
)


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """Return the object that `hpo status --format json` prints."""
    best, baseline = snapshot.best(), snapshot.baseline()
    return {
        "study": snapshot.name,
        "objective": snapshot.objective,
        "trials": trial_counts(snapshot),
        "budget": dict(snapshot.budget),
        "tokens": token_counts(snapshot),
        "best": result_record(best) if best else None,
        "baseline": result_record(baseline) if baseline else None,
        **optional_fields(snapshot, best),
    }


def result_record(trial: Trial) -> dict[str, Any]:
    """Return number, value and parameters of a trial."""
    return {"number": trial.number, "value": trial_value(trial), "params": dict(trial.params)}


def optional_fields(snapshot: Snapshot, best: Trial | None) -> dict[str, Any]:
    """Return the fields that only some studies have: direction, noise floor, targets, milestones of the best trial."""
    fields: dict[str, Any] = {}
    if snapshot.direction is Direction.MAXIMIZE:
        fields["direction"] = str(snapshot.direction)
    if snapshot.spec.get("baseline_seeds", 1) > 1:
        floor = snapshot.noise
        fields["noise"] = {"n": floor.n, "mean": floor.mean, "sigma": floor.sigma} if floor else None
        fields["improvements"] = improvement_records(snapshot)
    if (looks := sequential_record(snapshot)) is not None:
        fields["sequential"] = looks
    if (probes := probe_record(snapshot)) is not None:
        fields["probes"] = probes
    if snapshot.paused:
        fields["paused"] = paused_records(snapshot)
    if targets := snapshot.spec.get("targets"):
        fields["targets"] = target_records(targets, snapshot.reached, snapshot.rung_tokens)
    if snapshot.spec.get("milestones"):
        fields["milestones"] = milestone_records(milestones_of(snapshot, best)) if best else {}
    return fields


def milestones_of(snapshot: Snapshot, trial: Trial) -> list[Milestone]:
    """Return the milestones of the study with the values of one trial, none for a study without milestones."""
    expected = snapshot.spec.get("milestones")
    curve = trial.intermediate_values
    return milestones(expected, snapshot.rungs, curve, snapshot.direction) if expected else []


def objective_column(snapshot: Snapshot) -> str:
    """Return the column of the objective in tables of trials and studies, whose other columns have fixed names."""
    return f"value.{snapshot.objective}" if COLUMNS.fullmatch(snapshot.objective) else snapshot.objective


def trial_rows(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the rows of the table that `hpo trials` prints."""
    # The user's configuration may have a field with the name of a column.
    return [with_columns(trial_columns(snapshot, t), t.params, "params") for t in snapshot.trials]


def trial_columns(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    """Return the columns of a trial in every table of trials: its state and its result."""
    value = trial_value(trial)
    return {
        "number": trial.number,
        "state": trial_status(snapshot, trial),
        "kind": trial.user_attrs.get("kind", "search"),
        "rung": trial.last_step or 0,
        objective_column(snapshot): None if value is None else rounded(snapshot.noise, value),
        **({"sigmas": sigmas(snapshot.noise, trial, value)} if snapshot.noise else {}),
        "seconds": trial.duration.total_seconds() if trial.duration else None,
    }


def best_summary(snapshot: Snapshot) -> str:
    """Return one line with the best trial, the baseline and the anchors; "" while no trial is complete.

    Anchors are the losses of the n-gram models. For a study of arms, return the mean of each arm.
    """
    if snapshot.spec.get("arms"):
        return _arm_means(snapshot)
    best, baseline, floor = snapshot.best(), snapshot.baseline(), snapshot.noise
    if best is None:
        return ""
    references = []
    if floor is not None:
        references.append(f"baseline {baseline_text(floor)}")
    elif baseline is not None and (value := trial_value(baseline)) is not None:
        references.append(f"baseline {format_number(value)}")
    suffix = "_bpb" if snapshot.objective.endswith("val_bpb") else ""
    anchors = {name: snapshot.anchors.get(name + suffix) for name in ("trigram", "bigram", "unigram")}
    references += [f"{name} {format_number(value)}" for name, value in anchors.items() if value is not None]
    line = f"best: trial {best.number}, {snapshot.objective} {objective_text(snapshot, best.values[0])}"
    if floor is None:
        return f"{line} ({', '.join(references)})" if references else line
    distance = _sigmas_text(sigmas(floor, best, best.values[0]), snapshot.direction)
    return f"{line}{distance}; {', '.join(references)}"


def _arm_means(snapshot: Snapshot) -> str:
    """Return the mean of the complete runs of each arm, in one line; "" while no run is complete."""
    values: dict[str, list[float]] = {}
    for trial in snapshot.in_state(State.COMPLETE):
        values.setdefault(str(trial.user_attrs.get(ARM)), []).append(trial.values[0])
    means = [f"{arm} {format_number(fmean(runs))} ({len(runs)})" for arm, runs in values.items()]
    return f"{snapshot.objective}, mean (runs): {', '.join(means)}" if means else ""


def objective_text(snapshot: Snapshot, value: float) -> str:
    """Return a value of the objective with the decimals of the noise floor."""
    return format_number(rounded(snapshot.noise, value))


def objective_decimals(snapshot: Snapshot) -> int:
    """Return the number of decimals with which values of the objective are printed."""
    return 4 if snapshot.noise is None else decimals(snapshot.noise.sigma)


def _sigmas_text(n: float | None, direction: Direction) -> str:
    if n is None:
        return ""
    return f" ({abs(n):.1f} sigma {direction.better_side if n >= 0 else direction.worse_side} the baseline)"


def goal_lines(snapshot: Snapshot) -> list[str]:
    """Return a line per target, a line for the milestones of the best trial, and a line if a target ended the study."""
    records = target_records(snapshot.spec.get("targets") or {}, snapshot.reached, snapshot.rung_tokens)
    lines = [_target_line(snapshot, name, record) for name, record in records.items()]
    best = snapshot.best()
    if best is not None and (passed := milestones_of(snapshot, best)):
        d = None if snapshot.noise is None else decimals(snapshot.noise.sigma)
        lines.append(f"milestones of trial {best.number}: {', '.join(milestone.text(d) for milestone in passed)}")
    if snapshot.target is not None:
        running = trial_counts(snapshot)["running"]
        lines.append(
            f"ended by its target {snapshot.target}: no further trials start; to continue, set another budget.target "
            "in the study file" + (f"; trials still running: {running}" if running else "")
        )
    return lines


def _target_line(snapshot: Snapshot, name: str, record: Mapping[str, Any]) -> str:
    line, reached = f"target {name} ({record['target']:g})", snapshot.reached.get(name)
    if reached is None:
        best = snapshot.best()
        loss, side = snapshot.direction.loss, snapshot.direction.worse_side
        gap = "" if best is None else objective_text(snapshot, loss(best.values[0] - record["target"]))
        return f"{line}: not reached yet" + (f"; the best trial is {gap} {side} it" if gap else "")
    cost = f"{reached.rung} rungs of the trial and {reached.rungs} rungs of the study"
    if record["tokens"] is not None:
        cost = f"{record['tokens']:,} tokens of the trial and {record['study_tokens']:,} tokens of the study"
    value = objective_text(snapshot, reached.value)
    return (
        f"{line}: reached by trial {reached.trial} at rung {reached.rung}, {snapshot.objective} {value}, after {cost}"
    )


def stalled_lines(snapshot: Snapshot) -> list[str]:
    """Return a line for each trial that is interrupted again and again without a new rung."""
    trials = {t.user_attrs.get("slot"): f"trial {t.number}" for t in snapshot.own}
    return [
        f"{trials.get(slot, f'slot {slot}')}: the last {n} attempts ended without a new rung; it fails after "
        f"{MAX_FAILURES} failures or {MAX_INTERRUPTIONS} attempts in a row"
        for slot, n in snapshot.stalled.items()
    ]
