"""The verdict on a claim, by the rule in the head of studies/claims.yaml, which was written before anything was run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpo.analysis.statistics import interval
from hpo.evidence.claims.schema import ArmsTest, Claim

ScoresByArm = Mapping[str, Mapping[int, float | None]]  # arm -> seed -> what the run is scored by; None: it diverged
Outcome = Literal["holds", "holds in part", "not shown", "refuted", "not run yet"]
EffectUnit = Literal["share", "level", "difference", "finished"]

MIN_PAIRS = 3  # pairs
LOWER_IS_BETTER = ("val_loss", "val_bpb", "kurtosis", "clipped")  # metrics of which less is better
ABSOLUTE = ("finished", "clipped", "kurtosis")  # may be 0, or change their sign, and have no shares


@dataclass(frozen=True)
class ClaimVerdict:
    """What n pairs of runs show of a claim; effect and its interval are None for runs too few to say.

    unit: of the effect; finished: the share of runs that come to their end, since some did not.
    """

    effect: float | None
    low: float | None
    high: float | None
    n: int
    unit: EffectUnit
    verdict: Outcome
    note: str = ""


def better_sign(test: ArmsTest) -> int:
    """Return the sign of an improvement: -1 where less is better."""
    return -1 if _metric(test) in LOWER_IS_BETTER else 1


def decide_verdict(claim: Claim, values: ScoresByArm) -> ClaimVerdict:
    """Return the verdict on a claim that is tested by runs."""
    test = claim.test
    assert isinstance(test, ArmsTest)
    if claim.effect.unit == "level":
        return _level(claim, values.get(next(iter(test.contrast_terms())), {}))
    first, terms = next(iter(test.compared_arms())), test.contrast_terms()
    arms = test.verdict_arms()
    seeds = sorted(set.intersection(*(set(values.get(arm, {})) for arm in arms)))
    unit: EffectUnit = "difference" if _metric(test) in ABSOLUTE else "share"
    if len(seeds) < MIN_PAIRS:
        return _too_few(len(seeds), unit)
    scores = {arm: [values[arm][seed] for seed in seeds] for arm in arms}
    direction, size, note = _direction(claim, test), abs(claim.effect.value or 0.0), ""
    if any(None in found for found in scores.values()):
        lost = ", ".join(f"{found.count(None)} of {arm}" for arm, found in scores.items() if None in found)
        note = f"of {len(seeds)} runs each diverged: {lost}; judged by which runs finish"
        scores = {arm: [float(v is not None) for v in found] for arm, found in scores.items()}
        unit, direction, size = "finished", direction * better_sign(test), 0.0
    effects = [sum(sign * _effect(unit, scores[arm][i], scores[first][i]) for arm, sign in terms.items())
               for i in range(len(seeds))]  # fmt: skip
    effect, low, high = interval(effects)
    if claim.effect.within is not None:
        verdict = _unchanged(low, high, claim.effect.within)
    else:
        verdict = _changed(low * direction, high * direction, size)
    return ClaimVerdict(effect, low, high, len(seeds), unit, verdict, note)


def _metric(test: ArmsTest) -> str:
    return test.metric_of(next(iter(test.all_arms()))).removeprefix("ema_")


def _direction(claim: Claim, test: ArmsTest) -> int:
    """Return the sign of what is claimed."""
    value = claim.effect.value
    return int(math.copysign(1, value)) if value else better_sign(test)


def _effect(unit: EffectUnit, value: float | None, reference: float | None) -> float:
    assert value is not None
    assert reference is not None
    return (value - reference) / reference if unit == "share" else value - reference


def _changed(one: float, other: float, size: float) -> Outcome:
    """Return the verdict on an interval, turned so that what is claimed lies above 0."""
    near, far = sorted((one, other))
    if near > 0:
        return "holds" if far >= size else "holds in part"
    return "refuted" if far < 0 else "not shown"


def _unchanged(low: float, high: float, within: float) -> Outcome:
    """Return the verdict on a claim that nothing changes."""
    if -within <= low and high <= within:
        return "holds"
    return "refuted" if low > within or high < -within else "not shown"


def _level(claim: Claim, runs: Mapping[int, float | None]) -> ClaimVerdict:
    """Return the verdict on a claim that a value is reached, by the claimed arm alone."""
    if len(runs) < MIN_PAIRS:
        return _too_few(len(runs), "level")
    known = [value for value in runs.values() if value is not None]
    if len(known) < len(runs):
        note = f"{len(runs) - len(known)} of {len(runs)} runs diverged, and have no level"
        return ClaimVerdict(None, None, None, len(runs), "level", "not shown", note)
    effect, low, high = interval(known)
    value = claim.effect.value
    assert value is not None
    verdict: Outcome = "holds" if high <= value else "refuted" if low > value else "not shown"
    return ClaimVerdict(effect, low, high, len(known), "level", verdict)


def _too_few(n: int, unit: EffectUnit) -> ClaimVerdict:
    return ClaimVerdict(None, None, None, n, unit, "not run yet", f"{n} of {MIN_PAIRS} pairs" if n else "")
