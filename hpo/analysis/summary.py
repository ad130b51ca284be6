"""The progress of a study as a program reads it and as a person reads it."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hpo.analysis.noise import baseline_text, decimals, rounded, sigmas
from hpo.analysis.snapshot import Snapshot, token_counts, trial_counts, trial_status, trial_value
from hpo.analysis.targets import Milestone, milestone_records, milestones, target_records
from hpo.console import number
from hpo.storage.attributes import ARM
from hpo.storage.trials import State, Trial


def milestones_of(snapshot: "Snapshot", trial: Trial) -> list[Milestone]:
    """Return how a trial fares against what its study expects of a run."""
    expected = snapshot.spec.get("milestones")
    return milestones(expected, snapshot.rungs, trial.intermediate_values) if expected else []


def requested_fields(snapshot: "Snapshot", best: Trial | None) -> dict[str, Any]:
    """Return what a program reads of a study that asks for it: noise floor, targets, milestones of its best trial."""
    found: dict[str, Any] = {}
    if snapshot.spec.get("baseline_seeds", 1) > 1:
        floor = snapshot.noise
        found["noise"] = {"n": floor.n, "mean": floor.mean, "sigma": floor.sigma} if floor else None
    if wanted := snapshot.spec.get("targets"):
        found["targets"] = target_records(wanted, snapshot.reached, snapshot.rung_tokens)
    if snapshot.spec.get("milestones"):
        found["milestones"] = milestone_records(milestones_of(snapshot, best)) if best else {}
    return found


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """Return the object that `hpo status --format json` prints."""
    best, baseline = snapshot.best(), snapshot.baseline()
    return {
        "study": snapshot.name,
        "objective": snapshot.objective,
        "trials": trial_counts(snapshot),
        "budget": dict(snapshot.budget),
        "tokens": token_counts(snapshot),
        "best": trial_record(best) if best else None,
        "baseline": trial_record(baseline) if baseline else None,
        **requested_fields(snapshot, best),
    }


def trial_record(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "value": trial_value(trial), "params": dict(trial.params)}


def trial_row(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    """Return one line of `hpo trials`."""
    worked = trial.duration.total_seconds() if trial.duration else None
    found = trial_value(trial)
    return {
        "number": trial.number,
        "state": trial_status(snapshot, trial),
        "kind": trial.user_attrs.get("kind", "search"),
        "rung": trial.last_step or 0,
        snapshot.objective: None if found is None else rounded(snapshot.noise, found),
        **({"sigmas": sigmas(snapshot.noise, trial, found)} if snapshot.noise else {}),
        "seconds": worked,
        **trial.params,
    }


def best_summary(snapshot: Snapshot) -> str:
    """Return the best trial against baseline and anchors, in one line; "" before there is one."""
    if snapshot.spec.get("arms"):
        return _arm_means(snapshot)
    best, baseline = snapshot.best(), snapshot.baseline()
    if best is None:
        return ""
    against, floor = [], snapshot.noise
    if floor is not None:
        against.append(f"baseline {baseline_text(floor)}")
    elif baseline is not None and (was := trial_value(baseline)) is not None:
        against.append(f"baseline {number(was)}")
    suffix = "_bpb" if snapshot.objective.endswith("val_bpb") else ""
    against += [
        f"{name} {number(snapshot.anchors[name + suffix])}" for name in ("bigram", "unigram") if snapshot.anchors
    ]
    found = f"best: trial {best.number}, {snapshot.objective} {objective_text(snapshot, best.values[0])}"
    if floor is None:
        return f"{found} ({', '.join(against)})" if against else found
    return f"{found}{_sigmas_text(sigmas(floor, best, best.values[0]))}; {', '.join(against)}"


def objective_text(snapshot: Snapshot, value: float) -> str:
    return number(rounded(snapshot.noise, value))


def _sigmas_text(n: float | None) -> str:
    return "" if n is None else f" ({abs(n):.1f} sigma {'below' if n >= 0 else 'above'} the baseline)"


def goal_lines(snapshot: Snapshot) -> list[str]:
    """Return a line for each target, and one of what the best trial made of the milestones."""
    wanted = target_records(snapshot.spec.get("targets") or {}, snapshot.reached, snapshot.rung_tokens)
    told = [_target_line(snapshot, name, found) for name, found in wanted.items()]
    best = snapshot.best()
    if best is not None and (found := milestones_of(snapshot, best)):
        told.append(f"milestones of trial {best.number}: {_milestones_text(snapshot, found)}")
    if snapshot.target is not None:
        running = trial_counts(snapshot)["running"]
        on = f"; {running} that run go on to their end" if running else ""
        told.append(
            f"ended by its target {snapshot.target}: no further trial is begun; another budget.target in its file goes on{on}"
        )
    return told


def _milestones_text(snapshot: Snapshot, found: Sequence[Milestone]) -> str:
    """Return which milestones were met and missed, and by how much."""
    return ", ".join(m.told(None if snapshot.noise is None else decimals(snapshot.noise.sigma)) for m in found)


def _target_line(snapshot: Snapshot, name: str, found: Mapping[str, Any]) -> str:
    wanted, reach = f"target {name} ({found['target']:g})", snapshot.reached.get(name)
    if reach is None:
        best = snapshot.best()
        missing = (
            ""
            if best is None
            else f"; the best is {objective_text(snapshot, best.values[0] - found['target'])} above it"
        )
        return f"{wanted}: not reached yet{missing}"
    after = f"{reach.rung} rungs of its own and {reach.rungs} of the study"
    if found["tokens"] is not None:
        after = f"{found['tokens']:,} tokens of its own and {found['study_tokens']:,} of the study"
    return (
        f"{wanted}: reached by trial {reach.trial} at rung {reach.rung}, {snapshot.objective} {objective_text(snapshot, reach.value)}, "
        f"after {after}"
    )


def _arm_means(snapshot: Snapshot) -> str:
    """Return the mean of each arm so far."""
    values: dict[str, list[float]] = {}
    for t in snapshot.in_state(State.COMPLETE):
        values.setdefault(str(t.user_attrs.get(ARM)), []).append(t.values[0])
    told = [f"{arm} {number(fmean(found))} ({len(found)})" for arm, found in values.items()]
    return f"{snapshot.objective}, mean (runs): {', '.join(told)}" if told else ""


def objective_decimals(snapshot: Snapshot) -> int:
    """Return the decimals with which values of a study's objective are told."""
    return 4 if snapshot.noise is None else decimals(snapshot.noise.sigma)
