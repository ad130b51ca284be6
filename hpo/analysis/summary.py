"""The progress of a study as a program reads it and as a person reads it."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hpo.analysis.noise import baseline_text, decimals, rounded, sigmas
from hpo.analysis.snapshot import Snapshot, counts, tokens, value, word
from hpo.analysis.targets import Milestone, milestones, records, targets
from hpo.console import number
from hpo.storage.attributes import ARM
from hpo.storage.trials import State, Trial


def milestones_of(snapshot: "Snapshot", trial: Trial) -> list[Milestone]:
    """Return how a trial fares against what its study expects of a run."""
    expected = snapshot.spec.get("milestones")
    return milestones(expected, snapshot.rungs, trial.intermediate_values) if expected else []


def asked(snapshot: "Snapshot", best: Trial | None) -> dict[str, Any]:
    """Return what a program reads of a study that asks for it: noise floor, targets, milestones of its best trial."""
    found: dict[str, Any] = {}
    if snapshot.spec.get("baseline_seeds", 1) > 1:
        floor = snapshot.noise
        found["noise"] = {"n": floor.n, "mean": floor.mean, "sigma": floor.sigma} if floor else None
    if wanted := snapshot.spec.get("targets"):
        found["targets"] = targets(wanted, snapshot.reached, snapshot.rung_tokens)
    if snapshot.spec.get("milestones"):
        found["milestones"] = records(milestones_of(snapshot, best)) if best else {}
    return found


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """Return the object that `hpo status --format json` prints."""
    best, baseline = snapshot.best(), snapshot.baseline()
    return {
        "study": snapshot.name,
        "objective": snapshot.objective,
        "trials": counts(snapshot),
        "budget": dict(snapshot.budget),
        "tokens": tokens(snapshot),
        "best": answer(best) if best else None,
        "baseline": answer(baseline) if baseline else None,
        **asked(snapshot, best),
    }


def answer(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "value": value(trial), "params": dict(trial.params)}


def row(snapshot: Snapshot, trial: Trial) -> dict[str, Any]:
    """Return one line of `hpo trials`."""
    worked = trial.duration.total_seconds() if trial.duration else None
    found = value(trial)
    return {
        "number": trial.number,
        "state": word(snapshot, trial),
        "kind": trial.user_attrs.get("kind", "search"),
        "rung": trial.last_step or 0,
        snapshot.objective: None if found is None else rounded(snapshot.noise, found),
        **({"sigmas": sigmas(snapshot.noise, trial, found)} if snapshot.noise else {}),
        "seconds": worked,
        **trial.params,
    }


def standing(snapshot: Snapshot) -> str:
    """Return the best trial against baseline and anchors, in one line; "" before there is one."""
    if snapshot.spec.get("arms"):
        return _arms(snapshot)
    best, baseline = snapshot.best(), snapshot.baseline()
    if best is None:
        return ""
    against, floor = [], snapshot.noise
    if floor is not None:
        against.append(f"baseline {baseline_text(floor)}")
    elif baseline is not None and (was := value(baseline)) is not None:
        against.append(f"baseline {number(was)}")
    suffix = "_bpb" if snapshot.objective.endswith("val_bpb") else ""
    against += [
        f"{name} {number(snapshot.anchors[name + suffix])}" for name in ("bigram", "unigram") if snapshot.anchors
    ]
    found = f"best: trial {best.number}, {snapshot.objective} {said(snapshot, best.values[0])}"
    if floor is None:
        return f"{found} ({', '.join(against)})" if against else found
    return f"{found}{_below(sigmas(floor, best, best.values[0]))}; {', '.join(against)}"


def said(snapshot: Snapshot, value: float) -> str:
    return number(rounded(snapshot.noise, value))


def _below(n: float | None) -> str:
    return "" if n is None else f" ({abs(n):.1f} sigma {'below' if n >= 0 else 'above'} the baseline)"


def aims(snapshot: Snapshot) -> list[str]:
    """Return a line for each target, and one of what the best trial made of the milestones."""
    wanted = targets(snapshot.spec.get("targets") or {}, snapshot.reached, snapshot.rung_tokens)
    told = [_target(snapshot, name, found) for name, found in wanted.items()]
    best = snapshot.best()
    if best is not None and (found := milestones_of(snapshot, best)):
        told.append(f"milestones of trial {best.number}: {_passed(snapshot, found)}")
    if snapshot.target is not None:
        running = counts(snapshot)["running"]
        on = f"; {running} that run go on to their end" if running else ""
        told.append(
            f"ended by its target {snapshot.target}: no further trial is begun; another budget.target in its file goes on{on}"
        )
    return told


def _passed(snapshot: Snapshot, found: Sequence[Milestone]) -> str:
    """Return which milestones were met and missed, and by how much."""
    return ", ".join(m.told(None if snapshot.noise is None else decimals(snapshot.noise.sigma)) for m in found)


def _target(snapshot: Snapshot, name: str, found: Mapping[str, Any]) -> str:
    wanted, reach = f"target {name} ({found['target']:g})", snapshot.reached.get(name)
    if reach is None:
        best = snapshot.best()
        missing = "" if best is None else f"; the best is {said(snapshot, best.values[0] - found['target'])} above it"
        return f"{wanted}: not reached yet{missing}"
    after = f"{reach.rung} rungs of its own and {reach.rungs} of the study"
    if found["tokens"] is not None:
        after = f"{found['tokens']:,} tokens of its own and {found['study_tokens']:,} of the study"
    return (
        f"{wanted}: reached by trial {reach.trial} at rung {reach.rung}, {snapshot.objective} {said(snapshot, reach.value)}, "
        f"after {after}"
    )


def _arms(snapshot: Snapshot) -> str:
    """Return the mean of each arm so far."""
    values: dict[str, list[float]] = {}
    for t in snapshot.in_state(State.COMPLETE):
        values.setdefault(str(t.user_attrs.get(ARM)), []).append(t.values[0])
    told = [f"{arm} {number(fmean(found))} ({len(found)})" for arm, found in values.items()]
    return f"{snapshot.objective}, mean (runs): {', '.join(told)}" if told else ""


def digits(snapshot: Snapshot) -> int:
    """Return the decimals with which values of a study's objective are told."""
    return 4 if snapshot.noise is None else decimals(snapshot.noise.sigma)
