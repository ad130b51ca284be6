"""hpo ablate: which of the changes from a baseline to a target configuration matter, each by paired runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, snapshot
from hpo.analysis.statistics import LEVEL, fewest, holm, interval, p_value
from hpo.console import Format, number, rows, say, shown
from hpo.errors import Problem
from hpo.evidence import comparison
from hpo.evidence.comparison import begun, check_same, first_fresh, full, search
from hpo.evidence.designs import design, effects
from hpo.evidence.factors import Factors, factors, named, ordered, rebased
from hpo.evidence.paired import ended_without, runs, score
from hpo.launcher.supervisor import Options, run
from hpo.storage.engine import look
from hpo.study.arms import Compared, study_of
from hpo.study.spec import Study
from model.section import flat

NONE, ALL = "baseline", "target"
NOISE = "not distinguishable from noise"
Arms = dict[str, dict[str, Any]]
Contrast = Mapping[str, float]  # arm -> weight
Plan = tuple[Arms, dict[str, Contrast]]


@dataclass(frozen=True)
class Effect:
    """What a change does to the objective: n paired contrasts, their mean and Student's interval, corrected p-value.

    lost: runs that diverged or failed, with the change and without it.
    """

    name: str
    n: int
    lost: tuple[int, int]
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: str


def leave_one_out(factors: Factors) -> Plan:
    """Return the target without each change in turn; an effect is what is lost without it."""
    every = _together(factors, factors)
    arms = {NONE: {}, ALL: every}
    arms |= {f"without {name}": _together(factors, [f for f in factors if f != name]) for name in factors}
    found: dict[str, Contrast] = {name: {ALL: 1.0, f"without {name}": -1.0} for name in factors}
    return arms, found | _whole(factors)


def add_one_in(factors: Factors) -> Plan:
    """Return the baseline with each change in turn."""
    arms = {NONE: {}, ALL: _together(factors, factors)} | {
        f"with {name}": _together(factors, [name]) for name in factors
    }
    found: dict[str, Contrast] = {name: {f"with {name}": 1.0, NONE: -1.0} for name in factors}
    return arms, found | _whole(factors)


def cumulative(factors: Factors) -> Plan:
    """Return the baseline with the first change, with the first two, and so on; an effect is that of one more."""
    names = list(factors)
    marks = [NONE, *(f"+ {name}" for name in names)]
    arms = {mark: _together(factors, names[:i]) for i, mark in enumerate(marks)}
    found: dict[str, Contrast] = {name: {marks[i + 1]: 1.0, marks[i]: -1.0} for i, name in enumerate(names)}
    return arms, found | ({"all together": {marks[-1]: 1.0, NONE: -1.0}} if len(names) > 1 else {})


def factorial(factors: Factors) -> Plan:
    """Return all combinations of the changes, or a fraction of them above five; effects and interactions."""
    names = list(factors)
    try:
        crossed = design(len(names))
    except ValueError as error:
        raise Problem(f"--design factorial: {error}; --factor NAME=FIELD,FIELD puts changes together") from None
    on = [[name for name, sign in zip(names, signs, strict=True) if sign > 0] for signs in crossed]
    labels = [" + ".join(group) or NONE for group in on]
    arms = {label: _together(factors, group) for label, group in zip(labels, on, strict=True)}
    found: dict[str, Contrast] = {
        name: {labels[r]: w for r, w in weights.items()} for name, weights in effects(names).items()
    }
    return arms, found


DESIGNS: dict[str, Callable[[Factors], Plan]] = {
    "leave-one-out": leave_one_out,
    "add-one-in": add_one_in,
    "cumulative": cumulative,
    "factorial": factorial,
}


def _together(factors: Factors, names: Sequence[str] | Factors) -> dict[str, Any]:
    return {path: value for name in names for path, value in factors[name].items()}


def _whole(factors: Factors) -> dict[str, Contrast]:
    return {"all together": {ALL: 1.0, NONE: -1.0}} if len(factors) > 1 else {}


@dataclass(frozen=True)
class Asked:
    """What the command line of `hpo ablate` says; None: what is usual, or what a study that is begun has."""

    study: str | None
    before: str
    after: str
    design: str
    groups: Sequence[str]
    order: Sequence[str]
    seeds: int | None
    tokens: int | None
    name: str | None


SEEDS = 5  # what is usual


def ablate(asked: Asked, options: Options, format: Format) -> int:
    """Run what lies between two configurations; return the exit status."""
    with look(options.storage) as at:
        of = snapshot(at, asked.study)
        name = asked.name or f"{of.name}-{asked.design}"
        study = begun(at, name, "ablates", of.name)
        if study is not None:
            check_same(study, _options(study, asked))
        else:
            study = planned(of, name, asked, first_fresh(at, of))
    return run(replace(options, study=name), study, partial(conclude, format=format))


def conclude(found: Snapshot, folder: Path, options: Options, seconds: float, format: Format = Format.table) -> int:
    """Say what an ablation showed."""

    def tell() -> bool:
        rows(table(found), format)
        say("\n".join(["", *verdicts(found)]))
        return any(effect.n for effect in effects_in(found))

    return comparison.conclude(found, seconds, tell)


def planned(of: Snapshot, name: str, asked: Asked, first: int) -> Study:
    """Return the study that tries what lies between two configurations, on seeds from `first` on.

    Raises:
        Problem: the two cannot be compared, or are the same; or too few seeds are asked for.
    """
    searched, n = search(of), asked.seeds or SEEDS
    if n < (least := fewest("t")):
        raise Problem(f"--seeds: must be at least {least}, or no effect has an interval worth the name, got {n}")
    before, after = (named(of, searched, *pair) for pair in ((asked.before, "--from"), (asked.after, "--to")))
    between = ordered(factors(before, after, asked.groups), asked.order)
    whole: Plan = ({NONE: {}, ALL: _together(between, between)}, {n: {ALL: 1.0, NONE: -1.0} for n in between})
    arms, effects_of = DESIGNS[asked.design](between) if len(between) > 1 else whole
    about: dict[str, Any] = {"ablates": of.name, "design": asked.design, "from": asked.before, "to": asked.after}
    about |= {
        "groups": list(asked.groups),
        "order": list(asked.order),
        "factors": between,
        "effects": {name: dict(weights) for name, weights in effects_of.items()},
    }
    made = Compared(f"`hpo ablate` of {of.name}", arms, range(first, first + n), about)
    base = full(replace(searched, base=rebased(searched.base, before)), asked.tokens)
    return study_of(searched, name, base, made)


def _options(study: Study, asked: Asked) -> dict[str, tuple[Any, Any]]:
    """Return what was asked for beside what a study that is begun has."""
    about = study.file.about
    return {
        "--design": (asked.design, about["design"]),
        "--from": (asked.before, about["from"]),
        "--to": (asked.after, about["to"]),
        "--factor": (list(asked.groups), about["groups"]),
        "--order": (list(asked.order), about["order"]),
        "--seeds": (asked.seeds, len(study.file.seeds)),
        "--tokens": (asked.tokens, flat(study.base).get("run.tokens")),
    }


def effects_in(of: Snapshot) -> list[Effect]:
    """Return the effects that a study shows, each of the seeds with which all its arms have a value."""
    trials = runs(of)
    scores = {arm: {s: score(of, t) for s, t in found.items()} for arm, found in trials.items()}
    lost = {arm: sum(ended_without(of, t) for t in found.values()) for arm, found in trials.items()}
    weights = of.spec["about"]["effects"]
    contrasts = {name: _contrasts(scores, weights[name]) for name in weights}
    tested = [name for name, values in contrasts.items() if len(values) >= fewest("t")]
    corrected = dict(zip(tested, holm([p_value(contrasts[name]) for name in tested]), strict=True))
    told = []
    for name, values in contrasts.items():
        sides = [sum(lost[arm] for arm, w in weights[name].items() if (w > 0) == up) for up in (True, False)]
        mean, low, high = interval(values) if name in corrected else (None, None, None)
        p, (with_it, without) = corrected.get(name), sides
        told.append(Effect(name, len(values), (with_it, without), mean, low, high, p, _verdict(mean, p, sides)))
    return told


def _contrasts(found: Mapping[str, Mapping[int, float | None]], weights: Contrast) -> list[float]:
    seeds = set.intersection(*(set(found[arm]) for arm in weights))
    values = [[(found[arm][seed], weight) for arm, weight in weights.items()] for seed in sorted(seeds)]
    return [sum(v * w for v, w in row if v is not None) for row in values if all(v is not None for v, _ in row)]


def _verdict(mean: float | None, p: float | None, lost: Sequence[int]) -> str:
    if lost[0] != lost[1]:
        return f"{lost[0]} runs lost with it, {lost[1]} without"
    if mean is None or p is None:
        return f"too few pairs, {fewest('t')} needed"
    if p >= 1 - LEVEL:
        return NOISE
    return "lowers" if mean < 0 else "raises"


def table(of: Snapshot) -> list[dict[str, Any]]:
    """Return a record an effect."""
    return [
        {"effect": e.name, "n": e.n, "mean": e.mean, "low": e.low, "high": e.high, "p": e.p, "verdict": e.verdict}
        for e in effects_in(of)
    ]


def verdicts(of: Snapshot) -> list[str]:
    """Return in words what matters and what does not."""
    found = effects_in(of)
    told = [f"{e.name}: {e.verdict}" for e in found if e.lost[0] != e.lost[1] or e.mean is None]
    told += [
        f"{e.name} {e.verdict} {of.objective}: {_measured(e)}"
        for e in sorted(found, key=lambda e: e.mean or 0.0)
        if e.verdict in ("lowers", "raises")
    ]
    lost = [e.name for e in found if e.verdict == NOISE]
    return told + ([f"{NOISE}, with {found[0].n} seeds: {', '.join(lost)}"] if lost else [])


def _measured(e: Effect) -> str:
    assert e.mean is not None
    assert e.p is not None
    return f"{number(e.mean)} ({shown(e.low)} to {shown(e.high)}, p {e.p:.2g})"
