"""hpo ablate: which of the changes from a baseline to a target configuration matter, each by paired runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpo.arms import Compared, study_of
from hpo.compare import runs, score
from hpo.confirm import begun, first_fresh, full
from hpo.engine import look
from hpo.factorial import design, effects
from hpo.factors import Factors, factors, named, ordered, rebased
from hpo.live import clock
from hpo.output import Format, number, rows, say
from hpo.problems import Problem
from hpo.running import Options, run
from hpo.statistics import LEVEL, fewest, holm, interval, p_value
from hpo.status import Snapshot, snapshot
from hpo.study import Study, from_spec

NONE, ALL = "baseline", "target"
Arms = dict[str, dict[str, Any]]
Contrast = Mapping[str, float]  # arm -> weight
Plan = tuple[Arms, dict[str, Contrast]]


@dataclass(frozen=True)
class Effect:
    """What a change does to the objective: n paired contrasts, their mean and Student's interval, corrected p-value."""

    name: str
    n: int
    mean: float
    low: float
    high: float
    p: float
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
        wanted = planned(of, name, asked, study.file.seeds[0] if study else first_fresh(at, of.name))
    if study is not None:
        _check_same(study, wanted)

    def conclude(found: Snapshot, folder: Path, options: Options, seconds: float) -> int:
        say(f"{found.name}: ended after {clock(seconds)}")
        rows(table(found), format)
        say("\n".join(["", *verdicts(found)]))
        return 0

    return run(replace(options, study=name), study or wanted, conclude)


def planned(of: Snapshot, name: str, asked: Asked, first: int) -> Study:
    """Return the study that tries what lies between two configurations, on seeds from `first` on.

    Raises:
        Problem: the two cannot be compared, or are the same; or too few seeds are asked for.
    """
    if of.spec.get("arms"):
        raise Problem(f"--study: must be a search; {of.name} has arms, which are compared already")
    searched, n = from_spec(of.spec), asked.seeds or SEEDS
    if n < (least := fewest("t")):
        raise Problem(f"--seeds: must be at least {least}, or no effect has an interval worth the name, got {n}")
    before, after = (named(of, searched, *pair) for pair in ((asked.before, "--from"), (asked.after, "--to")))
    between = ordered(factors(before, after, asked.groups), asked.order)
    whole: Plan = ({NONE: {}, ALL: _together(between, between)}, {n: {ALL: 1.0, NONE: -1.0} for n in between})
    arms, effects_of = DESIGNS[asked.design](between) if len(between) > 1 else whole
    about: dict[str, Any] = {"ablates": of.name, "design": asked.design, "from": asked.before, "to": asked.after}
    about |= {"factors": between, "effects": {name: dict(weights) for name, weights in effects_of.items()}}
    made = Compared(f"`hpo ablate` of {of.name}", arms, range(first, first + n), about)
    base = full(replace(searched, base=rebased(searched.base, before)), asked.tokens)
    return study_of(searched, name, base, made)


def _check_same(held: Study, wanted: Study) -> None:
    """Refuse to go on with a study as another one.

    Raises:
        Problem: the arms or the seeds are others.
    """
    pairs = {
        "arms": (list(held.file.arms or {}), list(wanted.file.arms or {})),
        "values": (held.file.arms, wanted.file.arms),
        "seeds": (len(held.file.seeds), len(wanted.file.seeds)),
        "base": (held.base, wanted.base),
    }
    if other := [key for key, (a, b) in pairs.items() if a != b]:
        raise Problem(
            f"ablate: study {held.name} was begun with other {', '.join(other)}; "
            "`--as NAME` begins another on fresh seeds"
        )


def effects_in(of: Snapshot, metric: str | None = None) -> list[Effect]:
    """Return the effects that a study of an ablation shows so far: of the seeds that all arms of an effect have."""
    found = {arm: {s: score(of, t, metric) for s, t in trials.items()} for arm, trials in runs(of).items()}
    contrasts = {name: _contrasts(found, weights) for name, weights in of.spec["about"]["effects"].items()}
    known = {name: values for name, values in contrasts.items() if len(values) > 1}
    corrected = holm([p_value(values) for values in known.values()])
    told = []
    for (name, values), p in zip(known.items(), corrected, strict=True):
        mean, low, high = interval(values)
        told.append(Effect(name, len(values), mean, low, high, p, _verdict(mean, p)))
    return told


def _contrasts(found: Mapping[str, Mapping[int, float | None]], weights: Contrast) -> list[float]:
    seeds = set.intersection(*(set(found[arm]) for arm in weights))
    values = [[(found[arm][seed], weight) for arm, weight in weights.items()] for seed in sorted(seeds)]
    return [sum(v * w for v, w in row if v is not None) for row in values if all(v is not None for v, _ in row)]


def _verdict(mean: float, p: float) -> str:
    if p >= 1 - LEVEL:
        return "not distinguishable from noise"
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
    told = [
        f"{e.name} {e.verdict} {of.objective}: {number(e.mean)} ({number(e.low)} to {number(e.high)}, p {e.p:.2g})"
        for e in sorted(found, key=lambda e: e.mean)
        if e.p < 1 - LEVEL
    ]
    lost = [e.name for e in found if e.p >= 1 - LEVEL]
    return told + ([f"not distinguishable from noise, with {found[0].n} seeds: {', '.join(lost)}"] if lost else [])
