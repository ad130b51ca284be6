"""The effects of an ablation: of each change, from paired runs of its arms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.analysis.looks import runs_by_arm
from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import LEVEL, holm, interval, min_pairs, p_value
from hpo.console import format_number, format_value
from hpo.evidence.designs import Contrast
from hpo.evidence.paired import ended_without_value, final_score
from hpo.evidence.scale_labels import ScaleLabel

NOT_DISTINGUISHABLE = "not distinguishable from noise"


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
    noise = [e for e in effects if e.verdict == NOT_DISTINGUISHABLE]
    if noise:
        n, names = min(e.n for e in noise), ", ".join(e.name for e in noise)
        at_least = "" if n == max(e.n for e in noise) else "at least "
        lines.append(f"{NOT_DISTINGUISHABLE}, with {at_least}{n} seeds: {names}")
    return lines


def _interval_text(effect: Effect) -> str:
    assert effect.mean is not None
    assert effect.p is not None
    ends = f"{format_value(effect.low)} to {format_value(effect.high)}"
    return f"{format_number(effect.mean)} (95 % confidence interval {ends}, corrected p = {effect.p:.2g})"
