"""`hpo ablate`: measure the effect of each change between a baseline and a target configuration, by paired runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hpo.analysis.looks import runs_by_arm
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.analysis.statistics import LEVEL, holm, interval, min_pairs, p_value
from hpo.console import Format, format_number, format_value, print_records, say
from hpo.errors import Problem
from hpo.evidence.comparison import (
    check_same_options,
    conclude_comparison,
    existing_study,
    first_new_seed,
    full_length_base,
    search_study,
)
from hpo.evidence.designs import ALL, DESIGNS, NONE, ArmsAndContrasts, Contrast, fields_of
from hpo.evidence.factors import find_factors, named_configuration, order_factors, with_run_settings_of
from hpo.evidence.length_rule import LengthRule
from hpo.evidence.paired import ended_without_value, final_score, scope_note
from hpo.evidence.scale_labels import ScaleLabel, scale_labels
from hpo.launcher.options import LaunchOptions
from hpo.launcher.supervisor import run_study
from hpo.storage.engine import open_readonly
from hpo.study.arithmetic import with_resolved_values
from hpo.study.arms import ArmsPlan, plan_study
from hpo.study.places import at_places
from hpo.study.spec import Study
from hpo.transfer.rule import Rule
from model.section import flat

NOT_DISTINGUISHABLE = "not distinguishable from noise"
DEFAULT_SEEDS = 5


@dataclass(frozen=True)
class Effect:
    """The effect of a change on the objective.

    n: seeds with a value in every arm of the contrast. lost: runs that diverged or failed, with and without the change.
    mean, low, high: of the n paired contrasts, with Student's 95 % confidence interval. p: corrected (Holm).
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
    """The options of `hpo ablate`; None means the default, or the value of the ablation that is continued.

    before, after: the configurations of --from and --to. groups: NAME=FIELD,FIELD of each --factor.
    seeds: runs of each arm. tokens: length of a run. name: of the study of the new runs. rule: by which both
    configurations are carried over to `tokens`.
    """

    study: str | None
    before: str
    after: str
    design: str
    groups: Sequence[str]
    order: Sequence[str]
    seeds: int | None
    tokens: int | None
    name: str | None
    rule: Rule | None = None


def run_ablation(request: AblateRequest, options: LaunchOptions, format: Format) -> int:
    """Run combinations of the changes between two configurations; return the exit status."""
    with open_readonly(options.storage) as store:
        snapshot = read_snapshot(store, request.study)
        name = request.name or f"{snapshot.name}-{request.design}"
        study = existing_study(store, name, "ablates", snapshot)
        if study is None:
            rule = LengthRule(store, snapshot, request.tokens, request.rule)
            study = plan_ablation(snapshot, name, request, first_new_seed(store, snapshot), rule)
        else:
            check_same_options(study, _requested_and_stored(study, request))
    study = at_places(study, options.overrides)
    return run_study(replace(options, study=name), study, partial(conclude_ablation, format=format))


def conclude_ablation(
    snapshot: Snapshot, folder: Path, options: LaunchOptions, seconds: float, format: Format = Format.table
) -> int:
    """Print the effects that an ablation estimates once its runs have ended; return the exit status."""

    def print_result() -> bool:
        with open_readonly(options.storage) as store:
            labels = scale_labels(store, snapshot)
        print_records(effect_table(snapshot, labels), format)
        say("\n".join(["", *effect_verdicts(snapshot), scope_note(snapshot)]))
        return any(effect.n for effect in estimate_effects(snapshot))

    return conclude_comparison(snapshot, seconds, print_result)


def plan_ablation(
    snapshot: Snapshot, name: str, request: AblateRequest, first_seed: int, rule: LengthRule | None = None
) -> Study:
    """Return the study that runs a design over the changes, on consecutive seeds from `first_seed` on.

    rule: carries both configurations over to the length of the new runs; None copies them.

    Raises:
        Problem: the configurations cannot be compared or are the same, or there are too few seeds for an interval.
    """
    search, n = search_study(snapshot), request.seeds or DEFAULT_SEEDS
    if n < (required := min_pairs("t")):
        raise Problem(
            f"--seeds: must be at least {required}, or confidence intervals are too wide to be useful, got {n}"
        )
    before, after = _compared(snapshot, search, request, rule)
    old, new = (with_resolved_values(config, snapshot.arithmetic) for config in (before, after))
    factors = order_factors(find_factors(old, new, request.groups), request.order)
    single: ArmsAndContrasts = (
        {NONE: {}, ALL: fields_of(factors, factors)},
        {f: {ALL: 1.0, NONE: -1.0} for f in factors},
    )
    arms, contrasts = DESIGNS[request.design](factors) if len(factors) > 1 else single
    about: dict[str, Any] = {
        "ablates": snapshot.name,
        "design": request.design,
        "from": request.before,
        "to": request.after,
        "groups": list(request.groups),
        "order": list(request.order),
        "factors": factors,
        "effects": {effect: dict(weights) for effect, weights in contrasts.items()},
    }
    if rule is not None and request.tokens is not None:
        about["rule"] = str(request.rule or Rule.copy)
    compared = ArmsPlan(f"`hpo ablate` of {snapshot.name}", arms, range(first_seed, first_seed + n), about)
    base = with_run_settings_of(full_length_base(search, request.tokens), before)
    return plan_study(search, name, base, compared)


def _compared(
    snapshot: Snapshot, search: Study, request: AblateRequest, rule: LengthRule | None
) -> tuple[BaseModel, BaseModel]:
    """Return the configurations of --from and --to, carried over to the length of the new runs.

    Raises:
        Problem: there is no such configuration, or the rule cannot be applied.
    """
    before = named_configuration(snapshot, search, request.before, "--from")
    after = named_configuration(snapshot, search, request.after, "--to")
    if rule is not None:
        after = rule.carried(f"{request.after} of {snapshot.name}", after)
        before = rule.carried(request.before, before, is_reference=True)
    return before, after


def _requested_and_stored(study: Study, request: AblateRequest) -> dict[str, tuple[Any, Any]]:
    """Return option -> its requested value and the value of the existing ablation."""
    about = study.file.about
    return {
        "--design": (request.design, about["design"]),
        "--from": (request.before, about["from"]),
        "--to": (request.after, about["to"]),
        "--factor": (list(request.groups), about["groups"]),
        "--order": (list(request.order), about["order"]),
        "--seeds": (request.seeds, len(study.file.seeds)),
        "--tokens": (request.tokens, flat(study.base).get("run.tokens")),
        "--rule": (request.rule and str(request.rule), about.get("rule", str(Rule.copy))),
    }


def estimate_effects(snapshot: Snapshot) -> list[Effect]:
    """Estimate the effects of an ablation, each from the seeds on which all its arms have a value.

    An effect is the mean of a contrast over seeds, with Student's confidence interval (Student 1908). The p-values of
    all effects are corrected together (Holm 1979).
    """
    trials = runs_by_arm(snapshot)
    scores = {arm: {s: final_score(snapshot, t) for s, t in runs.items()} for arm, runs in trials.items()}
    lost = {arm: sum(ended_without_value(snapshot, t) for t in runs.values()) for arm, runs in trials.items()}
    weights = snapshot.spec["about"]["effects"]
    contrasts = {name: _contrast_values(scores, weights[name]) for name in weights}
    tested = [name for name, values in contrasts.items() if len(values) >= min_pairs("t")]
    corrected = dict(zip(tested, holm([p_value(contrasts[name]) for name in tested]), strict=True))
    effects = []
    for name, values in contrasts.items():
        lost_with = sum(lost[arm] for arm, weight in weights[name].items() if weight > 0)
        lost_without = sum(lost[arm] for arm, weight in weights[name].items() if weight <= 0)
        mean, low, high = interval(values) if name in corrected else (None, None, None)
        p, sides = corrected.get(name), (lost_with, lost_without)
        effects.append(Effect(name, len(values), sides, mean, low, high, p, _verdict(mean, p, sides)))
    return effects


def _contrast_values(scores: Mapping[str, Mapping[int, float | None]], weights: Contrast) -> list[float]:
    """Return the value of a contrast for each seed on which all its arms have a score."""
    seeds = set.intersection(*(set(scores[arm]) for arm in weights))
    terms = [[(scores[arm][seed], weight) for arm, weight in weights.items()] for seed in sorted(seeds)]
    return [sum(v * w for v, w in row if v is not None) for row in terms if all(v is not None for v, _ in row)]


def _verdict(mean: float | None, p: float | None, lost: tuple[int, int]) -> str:
    """Return the verdict on an effect; lost: runs lost with and without the change."""
    if lost[0] != lost[1]:
        return f"{lost[0]} runs lost with it, {lost[1]} without"
    if mean is None or p is None:
        return f"too few pairs, {min_pairs('t')} needed"
    if p >= 1 - LEVEL:
        return NOT_DISTINGUISHABLE
    return "lowers" if mean < 0 else "raises"


def effect_table(snapshot: Snapshot, labels: Mapping[str, ScaleLabel] | None = None) -> list[dict[str, Any]]:
    """Return one record per effect. labels: of the changes, if the search has a ladder."""
    records = []
    for e in estimate_effects(snapshot):
        record = {"effect": e.name, "n": e.n, "mean": e.mean, "low": e.low, "high": e.high, "p": e.p}
        records.append(record | {"verdict": e.verdict})
        if labels:
            records[-1]["at other scales"] = labels[e.name].label if e.name in labels else None
    return records


def effect_verdicts(snapshot: Snapshot) -> list[str]:
    """Return sentences that say which changes have an effect, and which are not distinguishable from noise."""
    effects = estimate_effects(snapshot)
    lines = [f"{e.name}: {e.verdict}" for e in effects if e.lost[0] != e.lost[1] or e.mean is None]
    lines += [
        f"{e.name} {e.verdict} {snapshot.objective}: {_interval_text(e)}"
        for e in sorted(effects, key=lambda e: snapshot.direction.loss(e.mean or 0.0))
        if e.verdict in ("lowers", "raises")
    ]
    noise = [e.name for e in effects if e.verdict == NOT_DISTINGUISHABLE]
    return lines + ([f"{NOT_DISTINGUISHABLE}, with {effects[0].n} seeds: {', '.join(noise)}"] if noise else [])


def _interval_text(effect: Effect) -> str:
    assert effect.mean is not None
    assert effect.p is not None
    ends = f"{format_value(effect.low)} to {format_value(effect.high)}"
    return f"{format_number(effect.mean)} (95 % confidence interval {ends}, corrected p = {effect.p:.2g})"
