"""Ablation designs: which combinations of changes to run, and the contrasts that estimate their effects.

A factor is a change that an ablation switches on or off. A contrast is a weighted sum over the arms of a design.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpo.errors import Problem
from hpo.evidence.factors import Factors

CROSSED_FACTORS = 5  # at most that many factors are fully crossed: a design has at most 2^5 arms
Signs = tuple[int, ...]  # -1 (without) or +1 (with) for each factor
RunContrast = Mapping[int, float]  # run -> weight


def two_level_design(n: int) -> list[Signs]:
    """Return the runs of a two-level design of n factors; all factors are at -1 in the first run, at +1 in the last.

    Up to five factors are fully crossed. Each further factor has the sign of the product of three or of all five of
    them. So a design has at most 32 runs and at least resolution IV: no main effect is confounded with a two-factor
    interaction, while two-factor interactions can be confounded with each other.

    Source: Box, Hunter & Hunter 1978, Statistics for Experimenters, chapter 12.

    Raises:
        ValueError: n is above 16, for which there are too few such products.
    """
    crossed = min(n, CROSSED_FACTORS)
    generators = [range(CROSSED_FACTORS), *itertools.combinations(range(CROSSED_FACTORS), 3)][: n - crossed]
    if n > crossed + len(generators):
        raise ValueError(f"must be at most {CROSSED_FACTORS + 11} factors, got {n}")
    runs = []
    for signs in itertools.product((-1, 1), repeat=crossed):
        runs.append(signs + tuple(math.prod(signs[i] for i in generator) for generator in generators))
    return runs


def factorial_contrasts(names: Sequence[str]) -> dict[str, RunContrast]:
    """Return the contrast of each main effect and of each two-factor interaction of a two-level design.

    A main effect is the mean of the runs with the factor minus the mean of the runs without it. An interaction is half
    the difference between a factor's effect with the other factor and its effect without the other factor.
    Interactions that the design confounds share one contrast, named "A x B = C x D".

    Source: Box, Hunter & Hunter 1978, Statistics for Experimenters, chapters 10 and 12.
    """
    runs = two_level_design(len(names))
    signs_of: dict[str, Signs] = {name: tuple(run[i] for run in runs) for i, name in enumerate(names)}
    interactions: dict[Signs, list[str]] = {}
    for i, j in itertools.combinations(range(len(names)), 2):
        interactions.setdefault(tuple(run[i] * run[j] for run in runs), []).append(f"{names[i]} x {names[j]}")
    signs_of |= {" = ".join(confounded): signs for signs, confounded in interactions.items()}
    return {name: {r: 2 * sign / len(runs) for r, sign in enumerate(signs)} for name, signs in signs_of.items()}


NONE, ALL = "baseline", "target"  # names of the arms without any change and with all changes
ArmValues = dict[str, dict[str, Any]]  # arm -> dotted field -> value
Contrast = Mapping[str, float]  # arm -> weight
ArmsAndContrasts = tuple[ArmValues, dict[str, Contrast]]


def leave_one_out(factors: Factors) -> ArmsAndContrasts:
    """Return the target, and the target without each change; an effect is the target minus the arm without it."""
    arms = {NONE: {}, ALL: fields_of(factors, factors)}
    arms |= {f"without {name}": fields_of(factors, [f for f in factors if f != name]) for name in factors}
    contrasts: dict[str, Contrast] = {name: {ALL: 1.0, f"without {name}": -1.0} for name in factors}
    return arms, contrasts | _total_effect(factors)


def add_one_in(factors: Factors) -> ArmsAndContrasts:
    """Return the baseline, and the baseline with each change; an effect is the arm with it minus the baseline."""
    arms = {NONE: {}, ALL: fields_of(factors, factors)} | {
        f"with {name}": fields_of(factors, [name]) for name in factors
    }
    contrasts: dict[str, Contrast] = {name: {f"with {name}": 1.0, NONE: -1.0} for name in factors}
    return arms, contrasts | _total_effect(factors)


def cumulative(factors: Factors) -> ArmsAndContrasts:
    """Return the baseline with the first change, with the first two, and so on; an effect is of one more change."""
    names = list(factors)
    labels = [NONE, *(f"+ {name}" for name in names)]
    arms = {label: fields_of(factors, names[:i]) for i, label in enumerate(labels)}
    contrasts: dict[str, Contrast] = {name: {labels[i + 1]: 1.0, labels[i]: -1.0} for i, name in enumerate(names)}
    return arms, contrasts | ({"all together": {labels[-1]: 1.0, NONE: -1.0}} if len(names) > 1 else {})


def factorial(factors: Factors) -> ArmsAndContrasts:
    """Return all combinations of up to five changes, a fraction of them for more; effects and interactions.

    Raises:
        Problem: there are more factors than a design has.
    """
    names = list(factors)
    try:
        runs = two_level_design(len(names))
    except ValueError as error:
        raise Problem(f"--design factorial: {error}; --factor NAME=FIELD,FIELD combines changes into one") from None
    included = [[name for name, sign in zip(names, signs, strict=True) if sign > 0] for signs in runs]
    labels = [" + ".join(group) or NONE for group in included]
    arms = {label: fields_of(factors, group) for label, group in zip(labels, included, strict=True)}
    contrasts: dict[str, Contrast] = {
        name: {labels[r]: w for r, w in weights.items()} for name, weights in factorial_contrasts(names).items()
    }
    return arms, contrasts


DESIGNS: dict[str, Callable[[Factors], ArmsAndContrasts]] = {
    "leave-one-out": leave_one_out,
    "add-one-in": add_one_in,
    "cumulative": cumulative,
    "factorial": factorial,
}


def fields_of(factors: Factors, names: Sequence[str] | Factors) -> dict[str, Any]:
    """Return the fields of the named factors as one mapping."""
    return {path: value for name in names for path, value in factors[name].items()}


def _total_effect(factors: Factors) -> dict[str, Contrast]:
    """Return the contrast of the target and the baseline, nothing for a single factor."""
    return {"all together": {ALL: 1.0, NONE: -1.0}} if len(factors) > 1 else {}
