"""The progress of a study as a program reads it and as a person reads it."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hpo.analysis.noise import beside, decimals, rounded, sigmas
from hpo.analysis.snapshot import Snapshot, counts, tokens, value, word
from hpo.analysis.targets import Milestone, milestones, records, targets
from hpo.console import number
from hpo.storage.attributes import ARM
from hpo.storage.trials import State, Trial


def milestones_of(of: "Snapshot", trial: Trial) -> list[Milestone]:
    """Return how a trial fares against what its study expects of a run."""
    expected = of.spec.get("milestones")
    return milestones(expected, of.rungs, trial.intermediate_values) if expected else []


def asked(of: "Snapshot", best: Trial | None) -> dict[str, Any]:
    """Return what a program reads of a study that asks for it: noise floor, targets, milestones of its best trial."""
    found: dict[str, Any] = {}
    if of.spec.get("baseline_seeds", 1) > 1:
        floor = of.noise
        found["noise"] = {"n": floor.n, "mean": floor.mean, "sigma": floor.sigma} if floor else None
    if wanted := of.spec.get("targets"):
        found["targets"] = targets(wanted, of.reached, of.rung_tokens)
    if of.spec.get("milestones"):
        found["milestones"] = records(milestones_of(of, best)) if best else {}
    return found


def summary(of: Snapshot) -> dict[str, Any]:
    """Return the object that `hpo status --format json` prints."""
    best, baseline = of.best(), of.baseline()
    return {
        "study": of.name,
        "objective": of.objective,
        "trials": counts(of),
        "budget": dict(of.budget),
        "tokens": tokens(of),
        "best": answer(best) if best else None,
        "baseline": answer(baseline) if baseline else None,
        **asked(of, best),
    }


def answer(trial: Trial) -> dict[str, Any]:
    return {"number": trial.number, "value": value(trial), "params": dict(trial.params)}


def row(of: Snapshot, trial: Trial) -> dict[str, Any]:
    """Return one line of `hpo trials`."""
    worked = trial.duration.total_seconds() if trial.duration else None
    found = value(trial)
    return {
        "number": trial.number,
        "state": word(of, trial),
        "kind": trial.user_attrs.get("kind", "search"),
        "rung": trial.last_step or 0,
        of.objective: None if found is None else rounded(of.noise, found),
        **({"sigmas": sigmas(of.noise, trial, found)} if of.noise else {}),
        "seconds": worked,
        **trial.params,
    }


def standing(of: Snapshot) -> str:
    """Return the best trial against baseline and anchors, in one line; "" before there is one."""
    if of.spec.get("arms"):
        return _arms(of)
    best, baseline = of.best(), of.baseline()
    if best is None:
        return ""
    against, floor = [], of.noise
    if floor is not None:
        against.append(f"baseline {beside(floor)}")
    elif baseline is not None and (was := value(baseline)) is not None:
        against.append(f"baseline {number(was)}")
    suffix = "_bpb" if of.objective.endswith("val_bpb") else ""
    against += [f"{name} {number(of.anchors[name + suffix])}" for name in ("bigram", "unigram") if of.anchors]
    found = f"best: trial {best.number}, {of.objective} {said(of, best.values[0])}"
    if floor is None:
        return f"{found} ({', '.join(against)})" if against else found
    return f"{found}{_below(sigmas(floor, best, best.values[0]))}; {', '.join(against)}"


def said(of: Snapshot, value: float) -> str:
    return number(rounded(of.noise, value))


def _below(n: float | None) -> str:
    return "" if n is None else f" ({abs(n):.1f} sigma {'below' if n >= 0 else 'above'} the baseline)"


def aims(of: Snapshot) -> list[str]:
    """Return a line for each target, and one of what the best trial made of the milestones."""
    wanted = targets(of.spec.get("targets") or {}, of.reached, of.rung_tokens)
    told = [_target(of, name, found) for name, found in wanted.items()]
    best = of.best()
    if best is not None and (found := milestones_of(of, best)):
        told.append(f"milestones of trial {best.number}: {_passed(of, found)}")
    if of.target is not None:
        running = counts(of)["running"]
        on = f"; {running} that run go on to their end" if running else ""
        told.append(
            f"ended by its target {of.target}: no further trial is begun; another budget.target in its file goes on{on}"
        )
    return told


def _passed(of: Snapshot, found: Sequence[Milestone]) -> str:
    """Return which milestones were met and missed, and by how much."""
    return ", ".join(m.told(None if of.noise is None else decimals(of.noise.sigma)) for m in found)


def _target(of: Snapshot, name: str, found: Mapping[str, Any]) -> str:
    wanted, reach = f"target {name} ({found['target']:g})", of.reached.get(name)
    if reach is None:
        best = of.best()
        missing = "" if best is None else f"; the best is {said(of, best.values[0] - found['target'])} above it"
        return f"{wanted}: not reached yet{missing}"
    after = f"{reach.rung} rungs of its own and {reach.rungs} of the study"
    if found["tokens"] is not None:
        after = f"{found['tokens']:,} tokens of its own and {found['study_tokens']:,} of the study"
    return (
        f"{wanted}: reached by trial {reach.trial} at rung {reach.rung}, {of.objective} {said(of, reach.value)}, "
        f"after {after}"
    )


def _arms(of: Snapshot) -> str:
    """Return the mean of each arm so far."""
    values: dict[str, list[float]] = {}
    for t in of.in_state(State.COMPLETE):
        values.setdefault(str(t.user_attrs.get(ARM)), []).append(t.values[0])
    told = [f"{arm} {number(fmean(found))} ({len(found)})" for arm, found in values.items()]
    return f"{of.objective}, mean (runs): {', '.join(told)}" if told else ""


def digits(of: Snapshot) -> int:
    """Return the decimals with which values of a study's objective are told."""
    return 4 if of.noise is None else decimals(of.noise.sigma)
