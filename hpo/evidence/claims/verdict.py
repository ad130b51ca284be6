"""The verdict on a claim, by the rule at the head of studies/claims.yaml, which was written before any run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpo.analysis.statistics import interval
from hpo.evidence.claims.schema import ArmsTest, LedgerClaim

ScoresByArm = Mapping[str, Mapping[int, float | None]]  # arm -> seed -> score of the run; None: the run diverged
Outcome = Literal["holds", "holds in part", "not shown", "refuted", "not run yet"]
EffectUnit = Literal["share", "level", "difference", "finished"]

MIN_PAIRS = 3
LOWER_IS_BETTER = ("val_loss", "val_bpb", "kurtosis", "clipped")
ABSOLUTE = ("finished", "clipped", "kurtosis")  # metrics that can be 0 or change sign, so that a share has no meaning


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on a claim from n pairs of runs: the mean effect and its 95 % confidence interval.

    effect, low, high: None if there are too few runs.
    unit: of the effect. finished: the share of runs that reach their end, compared because some runs diverged.
    """

    effect: float | None
    low: float | None
    high: float | None
    n: int
    unit: EffectUnit
    verdict: Outcome
    note: str = ""


def better_sign(test: ArmsTest) -> int:
    """Return the sign of an improvement: -1 if lower is better, else 1."""
    return -1 if _metric(test) in LOWER_IS_BETTER else 1


def decide_verdict(claim: LedgerClaim, scores_of: ScoresByArm) -> ClaimVerdict:
    """Return the verdict on a claim that is tested by runs.

    The confidence interval of the mean paired effect is Student's (Student 1908).
    """
    test = claim.test
    assert isinstance(test, ArmsTest)
    if claim.effect.unit == "level":
        return _level_verdict(claim, scores_of.get(next(iter(test.contrast_terms())), {}))
    reference, terms, arms = next(iter(test.compared_arms())), test.contrast_terms(), test.verdict_arms()
    seeds = sorted(set.intersection(*(set(scores_of.get(arm, {})) for arm in arms)))
    unit: EffectUnit = "difference" if _metric(test) in ABSOLUTE else "share"
    if len(seeds) < MIN_PAIRS:
        return _too_few(len(seeds), unit)
    scores = {arm: [scores_of[arm][seed] for seed in seeds] for arm in arms}
    direction, size, note = _claimed_sign(claim, test), abs(claim.effect.value or 0.0), ""
    if any(None in values for values in scores.values()):
        diverged = ", ".join(f"{values.count(None)} of {arm}" for arm, values in scores.items() if None in values)
        note = f"runs that diverged, of {len(seeds)} per arm: {diverged}; the verdict compares which runs finish"
        scores = {arm: [float(value is not None) for value in values] for arm, values in scores.items()}
        unit, direction, size = "finished", direction * better_sign(test), 0.0
    effects = [
        sum(sign * _effect(unit, scores[arm][i], scores[reference][i]) for arm, sign in terms.items())
        for i in range(len(seeds))
    ]
    effect, low, high = interval(effects)
    if claim.effect.within is not None:
        verdict = _unchanged(low, high, claim.effect.within)
    else:
        verdict = _changed(low * direction, high * direction, size)
    return ClaimVerdict(effect, low, high, len(seeds), unit, verdict, note)


def _metric(test: ArmsTest) -> str:
    return test.metric_of(next(iter(test.all_arms()))).removeprefix("ema_")


def _claimed_sign(claim: LedgerClaim, test: ArmsTest) -> int:
    """Return the sign of the claimed effect, or of an improvement if the claim gives no value."""
    value = claim.effect.value
    return int(math.copysign(1, value)) if value else better_sign(test)


def _effect(unit: EffectUnit, value: float | None, reference: float | None) -> float:
    assert value is not None
    assert reference is not None
    return (value - reference) / reference if unit == "share" else value - reference


def _changed(end: float, other_end: float, size: float) -> Outcome:
    """Return the verdict on an interval whose sign was turned so that the claimed effect is above 0."""
    near, far = sorted((end, other_end))
    if near > 0:
        return "holds" if far >= size else "holds in part"
    return "refuted" if far < 0 else "not shown"


def _unchanged(low: float, high: float, within: float) -> Outcome:
    """Return the verdict on a claim that a change has no effect."""
    if -within <= low and high <= within:
        return "holds"
    return "refuted" if low > within or high < -within else "not shown"


def _level_verdict(claim: LedgerClaim, scores: Mapping[int, float | None]) -> ClaimVerdict:
    """Return the verdict on a claim that a value is reached, from the claimed arm alone."""
    if len(scores) < MIN_PAIRS:
        return _too_few(len(scores), "level")
    known = [score for score in scores.values() if score is not None]
    if len(known) < len(scores):
        note = f"{len(scores) - len(known)} of {len(scores)} runs diverged, so there is no level to compare"
        return ClaimVerdict(None, None, None, len(scores), "level", "not shown", note)
    level, low, high = interval(known)
    value = claim.effect.value
    assert value is not None
    verdict: Outcome = "holds" if high <= value else "refuted" if low > value else "not shown"
    return ClaimVerdict(level, low, high, len(known), "level", verdict)


def _too_few(n: int, unit: EffectUnit) -> ClaimVerdict:
    note = f"{n} of {MIN_PAIRS} pairs are complete" if n else ""
    return ClaimVerdict(None, None, None, n, unit, "not run yet", note)
