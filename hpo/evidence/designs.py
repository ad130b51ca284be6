"""Two-level factorial designs: which combinations of factors to run, and what their contrasts estimate."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpo.errors import Problem
from hpo.evidence.factors import Factors

CROSSED_FACTORS = 5  # factors that are fully crossed; 2^5 arms are the most that a design has
Signs = tuple[int, ...]  # -1 or +1 for each factor
RunContrast = Mapping[int, float]  # run -> weight


def two_level_design(n: int) -> list[Signs]:
    """Return the runs of a design of n factors, the one with all at -1 first, the one with all at +1 last.

    Up to five factors are fully crossed. Each further one goes with the product of three or five of those (Box,
    Hunter & Hunter 1978, chapter 12): 32 runs of resolution IV at least, so that no main effect is mixed up with an
    interaction of two factors, while interactions may be mixed up with each other.

    Raises:
        ValueError: more than 16 factors, for which there are not enough such products.
    """
    basic = min(n, CROSSED_FACTORS)
    words = [range(CROSSED_FACTORS), *itertools.combinations(range(CROSSED_FACTORS), 3)][: n - basic]
    if n > basic + len(words):
        raise ValueError(f"must be at most {CROSSED_FACTORS + 11} factors, got {n}")
    runs = []
    for signs in itertools.product((-1, 1), repeat=basic):
        runs.append(signs + tuple(math.prod(signs[i] for i in word) for word in words))
    return runs


def factorial_contrasts(names: Sequence[str]) -> dict[str, RunContrast]:
    """Return the contrast of each main effect and of each interaction of two factors.

    A main effect is the mean of the runs with the factor less that of those without. An interaction is half of what
    one factor does with the other, less what it does without. Interactions that the design cannot tell apart
    are one contrast, under all their names.
    """
    runs = two_level_design(len(names))
    found: dict[str, Signs] = {name: tuple(run[i] for run in runs) for i, name in enumerate(names)}
    mixed: dict[Signs, list[str]] = {}
    for i, j in itertools.combinations(range(len(names)), 2):
        mixed.setdefault(tuple(run[i] * run[j] for run in runs), []).append(f"{names[i]} x {names[j]}")
    found |= {" = ".join(same): signs for signs, same in mixed.items()}
    return {name: {r: 2 * sign / len(runs) for r, sign in enumerate(signs)} for name, signs in found.items()}


NONE, ALL = "baseline", "target"
ArmValues = dict[str, dict[str, Any]]
Contrast = Mapping[str, float]  # arm -> weight
ArmsAndContrasts = tuple[ArmValues, dict[str, Contrast]]


def leave_one_out(factors: Factors) -> ArmsAndContrasts:
    """Return the target without each change in turn; an effect is what is lost without it."""
    every = merged(factors, factors)
    arms = {NONE: {}, ALL: every}
    arms |= {f"without {name}": merged(factors, [f for f in factors if f != name]) for name in factors}
    found: dict[str, Contrast] = {name: {ALL: 1.0, f"without {name}": -1.0} for name in factors}
    return arms, found | _total_effect(factors)


def add_one_in(factors: Factors) -> ArmsAndContrasts:
    """Return the baseline with each change in turn."""
    arms = {NONE: {}, ALL: merged(factors, factors)} | {f"with {name}": merged(factors, [name]) for name in factors}
    found: dict[str, Contrast] = {name: {f"with {name}": 1.0, NONE: -1.0} for name in factors}
    return arms, found | _total_effect(factors)


def cumulative(factors: Factors) -> ArmsAndContrasts:
    """Return the baseline with the first change, with the first two, and so on; an effect is that of one more."""
    names = list(factors)
    marks = [NONE, *(f"+ {name}" for name in names)]
    arms = {mark: merged(factors, names[:i]) for i, mark in enumerate(marks)}
    found: dict[str, Contrast] = {name: {marks[i + 1]: 1.0, marks[i]: -1.0} for i, name in enumerate(names)}
    return arms, found | ({"all together": {marks[-1]: 1.0, NONE: -1.0}} if len(names) > 1 else {})


def factorial(factors: Factors) -> ArmsAndContrasts:
    """Return all combinations of the changes, or a fraction of them above five; effects and interactions."""
    names = list(factors)
    try:
        crossed = two_level_design(len(names))
    except ValueError as error:
        raise Problem(f"--design factorial: {error}; --factor NAME=FIELD,FIELD puts changes together") from None
    on = [[name for name, sign in zip(names, signs, strict=True) if sign > 0] for signs in crossed]
    labels = [" + ".join(group) or NONE for group in on]
    arms = {label: merged(factors, group) for label, group in zip(labels, on, strict=True)}
    found: dict[str, Contrast] = {
        name: {labels[r]: w for r, w in weights.items()} for name, weights in factorial_contrasts(names).items()
    }
    return arms, found


DESIGNS: dict[str, Callable[[Factors], ArmsAndContrasts]] = {
    "leave-one-out": leave_one_out,
    "add-one-in": add_one_in,
    "cumulative": cumulative,
    "factorial": factorial,
}


def merged(factors: Factors, names: Sequence[str] | Factors) -> dict[str, Any]:
    return {path: value for name in names for path, value in factors[name].items()}


def _total_effect(factors: Factors) -> dict[str, Contrast]:
    return {"all together": {ALL: 1.0, NONE: -1.0}} if len(factors) > 1 else {}
