"""Two-level factorial designs: which combinations of factors to run, and what their contrasts estimate."""

import itertools
import math
from collections.abc import Mapping, Sequence

BASIC = 5  # factors that are fully crossed; 2^5 arms are the most that a design has
Signs = tuple[int, ...]  # -1 or +1 for each factor
Contrast = Mapping[int, float]  # run -> weight


def design(n: int) -> list[Signs]:
    """Return the runs of a design of n factors, the one with all at -1 first, the one with all at +1 last.

    Up to five factors are fully crossed. Each further one goes with the product of three or five of those (Box,
    Hunter & Hunter 1978, chapter 12): 32 runs of resolution IV at least, so that no main effect is mixed up with an
    interaction of two factors, while interactions may be mixed up with each other.

    Raises:
        ValueError: more than 16 factors, for which there are not enough such products.
    """
    basic = min(n, BASIC)
    words = [range(BASIC), *itertools.combinations(range(BASIC), 3)][: n - basic]
    if n > basic + len(words):
        raise ValueError(f"must be at most {BASIC + 11} factors, got {n}")
    runs = []
    for signs in itertools.product((-1, 1), repeat=basic):
        runs.append(signs + tuple(math.prod(signs[i] for i in word) for word in words))
    return runs


def effects(names: Sequence[str]) -> dict[str, Contrast]:
    """Return the contrast of each main effect and of each interaction of two factors.

    A main effect is the mean of the runs with the factor less that of those without. An interaction is half of what
    one factor does with the other, less what it does without. Interactions that the design cannot tell apart
    are one contrast, under all their names.
    """
    runs = design(len(names))
    found: dict[str, Signs] = {name: tuple(run[i] for run in runs) for i, name in enumerate(names)}
    mixed: dict[Signs, list[str]] = {}
    for i, j in itertools.combinations(range(len(names)), 2):
        mixed.setdefault(tuple(run[i] * run[j] for run in runs), []).append(f"{names[i]} x {names[j]}")
    found |= {" = ".join(same): signs for signs, same in mixed.items()}
    return {name: {r: 2 * sign / len(runs) for r, sign in enumerate(signs)} for name, signs in found.items()}
