"""hpo ablate: which of the changes from a baseline to a target configuration matter, each by paired runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import LEVEL, fewest, holm, interval, p_value
from hpo.console import Format, as_text, number, rows, say
from hpo.errors import Problem
from hpo.evidence.comparison import (
    check_same_options,
    conclude_comparison,
    existing_study,
    first_new_seed,
    full_length_base,
    search_study,
)
from hpo.evidence.designs import ALL, DESIGNS, NONE, ArmsAndContrasts, Contrast, merged
from hpo.evidence.factors import find_factors, named_configuration, order_factors, with_run_settings_of
from hpo.evidence.paired import ended_without_value, final_score, runs_by_arm
from hpo.launcher.supervisor import LaunchOptions, run_study
from hpo.storage.engine import open_readonly
from hpo.study.arms import Compared, study_of
from hpo.study.spec import Study
from model.section import flat

NOT_DISTINGUISHABLE = "not distinguishable from noise"


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


@dataclass(frozen=True)
class AblateRequest:
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


DEFAULT_SEEDS = 5  # what is usual


def run_ablation(asked: AblateRequest, options: LaunchOptions, format: Format) -> int:
    """Run what lies between two configurations; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, asked.study)
        name = asked.name or f"{snapshot.name}-{asked.design}"
        study = existing_study(store, name, "ablates", snapshot.name)
        if study is not None:
            check_same_options(study, _requested_and_stored(study, asked))
        else:
            study = plan_ablation(snapshot, name, asked, first_new_seed(store, snapshot))
    return run_study(replace(options, study=name), study, partial(conclude_ablation, format=format))


def conclude_ablation(
    found: Snapshot, folder: Path, options: LaunchOptions, seconds: float, format: Format = Format.table
) -> int:
    """Say what an ablation showed."""

    def tell() -> bool:
        rows(effect_table(found), format)
        say("\n".join(["", *effect_verdicts(found)]))
        return any(effect.n for effect in estimate_effects(found))

    return conclude_comparison(found, seconds, tell)


def plan_ablation(snapshot: Snapshot, name: str, asked: AblateRequest, first: int) -> Study:
    """Return the study that tries what lies between two configurations, on seeds from `first` on.

    Raises:
        Problem: the two cannot be compared, or are the same; or too few seeds are asked for.
    """
    searched, n = search_study(snapshot), asked.seeds or DEFAULT_SEEDS
    if n < (least := fewest("t")):
        raise Problem(f"--seeds: must be at least {least}, or no effect has an interval worth the name, got {n}")
    before, after = (
        named_configuration(snapshot, searched, *pair) for pair in ((asked.before, "--from"), (asked.after, "--to"))
    )
    between = order_factors(find_factors(before, after, asked.groups), asked.order)
    whole: ArmsAndContrasts = ({NONE: {}, ALL: merged(between, between)}, {n: {ALL: 1.0, NONE: -1.0} for n in between})
    arms, effects_of = DESIGNS[asked.design](between) if len(between) > 1 else whole
    about: dict[str, Any] = {"ablates": snapshot.name, "design": asked.design, "from": asked.before, "to": asked.after}
    about |= {
        "groups": list(asked.groups),
        "order": list(asked.order),
        "factors": between,
        "effects": {name: dict(weights) for name, weights in effects_of.items()},
    }
    made = Compared(f"`hpo ablate` of {snapshot.name}", arms, range(first, first + n), about)
    base = full_length_base(replace(searched, base=with_run_settings_of(searched.base, before)), asked.tokens)
    return study_of(searched, name, base, made)


def _requested_and_stored(study: Study, asked: AblateRequest) -> dict[str, tuple[Any, Any]]:
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


def estimate_effects(snapshot: Snapshot) -> list[Effect]:
    """Return the effects that a study shows, each of the seeds with which all its arms have a value."""
    trials = runs_by_arm(snapshot)
    scores = {arm: {s: final_score(snapshot, t) for s, t in found.items()} for arm, found in trials.items()}
    lost = {arm: sum(ended_without_value(snapshot, t) for t in found.values()) for arm, found in trials.items()}
    weights = snapshot.spec["about"]["effects"]
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
        return NOT_DISTINGUISHABLE
    return "lowers" if mean < 0 else "raises"


def effect_table(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return a record an effect."""
    return [
        {"effect": e.name, "n": e.n, "mean": e.mean, "low": e.low, "high": e.high, "p": e.p, "verdict": e.verdict}
        for e in estimate_effects(snapshot)
    ]


def effect_verdicts(snapshot: Snapshot) -> list[str]:
    """Return in words what matters and what does not."""
    found = estimate_effects(snapshot)
    told = [f"{e.name}: {e.verdict}" for e in found if e.lost[0] != e.lost[1] or e.mean is None]
    told += [
        f"{e.name} {e.verdict} {snapshot.objective}: {_interval_text(e)}"
        for e in sorted(found, key=lambda e: e.mean or 0.0)
        if e.verdict in ("lowers", "raises")
    ]
    lost = [e.name for e in found if e.verdict == NOT_DISTINGUISHABLE]
    return told + ([f"{NOT_DISTINGUISHABLE}, with {found[0].n} seeds: {', '.join(lost)}"] if lost else [])


def _interval_text(e: Effect) -> str:
    assert e.mean is not None
    assert e.p is not None
    return f"{number(e.mean)} ({as_text(e.low)} to {as_text(e.high)}, p {e.p:.2g})"
