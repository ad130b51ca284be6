"""The cells of a ladder: lengths and sizes below a target, and how many runs each of them gets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from hpo.errors import Problem
from hpo.transfer.scale import SIZES, TOKENS, between, compute_of, target_config, tokens_of
from model.section import flat, updated

REACHES = (4, 8, 16, 32, 64)  # how many times longer the target is than the longest cell, from the best to the cheapest
SPAN = 4  # ratio of the lengths of the longest and the shortest cell, at least
MIN_GRID = 3  # cells, with fewer of which either the length or the size would be the same in all
MIN_RUNS, MANY_RUNS = 6, 12  # runs of a cell: at least, and of the mean cell without a budget
FAR = 16  # a law that extrapolates further in tokens is warned about


@dataclass(frozen=True)
class Cell:
    """One cell of a ladder: the fields of its length and size, and the number of its runs."""

    values: Mapping[str, Any]
    runs: int = 0

    @property
    def tokens(self) -> int:
        return int(self.values[TOKENS])


def plan_cells(base: BaseModel, target: Mapping[str, Any], n: int, budget: int | None) -> list[Cell]:
    """Return the cells of a ladder from the scale of a search towards a target, the cheapest first.

    Lengths are evenly spaced in log tokens, and sizes in log size. If both change, the cells form a grid of two sizes,
    because a law of tokens and size needs cells that differ in one and not in the other. The longest cell is a quarter
    of the target, or less if the budget does not pay for it.

    base: the configuration of the search. n: number of cells. budget: tokens of all runs together, None for no limit.

    Raises:
        Problem: the target is not larger than the search, or the budget is too small for any such ladder.
    """
    goal = target_config(base, target)
    _check_larger(base, goal)
    if n < MIN_GRID and tokens_of(goal) > tokens_of(base) and _grows(base, goal):
        raise Problem(f"--ladder: must be at least {MIN_GRID} if length and size change, got {n}")
    fewest = []
    for reach in REACHES:
        cells = _grid(base, goal, n, reach)
        if cells is None:
            continue
        needed = MIN_RUNS * sum(cell.tokens for cell in cells)
        if budget is None or needed <= budget:
            return with_runs(cells, budget)
        fewest.append(needed)
        if tokens_of(goal) == tokens_of(base):
            break
    if not fewest:
        raise Problem(
            f"--to: must be so much larger than the search that a ladder of {n} cells fits below it, with an update in "
            "each rung; use a larger target, a smaller --ladder, or a smaller run.rungs"
        )
    raise Problem(
        f"--budget-tokens: must be at least {min(fewest):,}, {MIN_RUNS} runs in each of {n} cells, got {budget:,}; "
        "--ladder with fewer cells needs fewer tokens"
    )


def _check_larger(base: BaseModel, goal: BaseModel) -> None:
    """Check that a target is larger than the search.

    Raises:
        Problem: a length or a size is smaller, or none is larger.
    """
    low, high = flat(base), flat(goal)
    paths = [path for path in (TOKENS, *SIZES) if path in low]
    if problems := [
        f"--to {path}: must be at least {low[path]:,}, as in the search, got {high[path]:,}"
        for path in paths
        if high[path] < low[path]
    ]:
        raise Problem(*problems)
    if compute_of(goal) <= compute_of(base):
        raise Problem(f"--to: must be larger than the search in one of {', '.join(paths)}")


def _grid(base: BaseModel, goal: BaseModel, n: int, reach: int) -> list[Cell] | None:
    """Return n cells up to 1 / reach of the target's length, None if there are no n such cells."""
    longer = tokens_of(goal) > tokens_of(base)
    larger = _grows(base, goal)
    if not longer:
        sizes = [between(base, goal, 0.6 * i / max(1, n - 1)) for i in range(n)]
        lengths = [int(tokens_of(goal))]
    else:
        sizes = [between(base, goal, 0.0), between(base, goal, 0.5)] if larger else [{}]
        top = tokens_of(goal) / reach
        bottom = min(tokens_of(base), top / SPAN)
        count = max(2, math.ceil(n / len(sizes)))
        lengths = [round(bottom * (top / bottom) ** (i / (count - 1))) for i in range(count)]
    cells = [Cell({TOKENS: tokens, **size}) for tokens in lengths for size in sizes]
    cells = [cell for i, cell in enumerate(cells) if cell not in cells[:i]]
    cells.sort(key=lambda cell: compute_of(_at(base, cell.values)))
    fits = len(cells) >= n and all(_has_updates(base, cell) for cell in cells)
    return cells[:n] if fits else None


def _grows(base: BaseModel, goal: BaseModel) -> bool:
    return any(flat(base).get(path) != flat(goal).get(path) for path in SIZES)


def _at(base: BaseModel, values: Mapping[str, Any]) -> BaseModel:
    loose: dict[str, Any] = {path: 1 for path in ("run.rungs", "run.align") if path in flat(base)}
    return updated(base, {**values, **loose})


def _has_updates(base: BaseModel, cell: Cell) -> bool:
    """Return whether each rung of a cell has at least one update of the smallest batch."""
    fields = flat(base)
    return cell.tokens >= int(fields.get("run.rungs", 1)) * int(fields.get("model.context", 1))


def with_runs(cells: list[Cell], budget: int | None) -> list[Cell]:
    """Return the cells with numbers of runs that fall with the square root of their tokens.

    If the cost of a run differs, this allocation gives the smallest variance of a mean over cells for a given budget
    (Neyman 1934, with costs: Cochran 1977, Sampling Techniques, section 5.5).
    """
    weights = [cell.tokens**-0.5 for cell in cells]

    def counts(factor: float) -> list[int]:
        return [max(MIN_RUNS, math.floor(factor * weight)) for weight in weights]

    if budget is None:
        chosen = counts(MANY_RUNS * len(cells) / sum(weights))
    else:
        low, high = 0.0, budget / min(cell.tokens for cell in cells) / min(weights)
        for _ in range(60):
            middle = (low + high) / 2
            cost = sum(r * cell.tokens for r, cell in zip(counts(middle), cells, strict=True))
            low, high = (middle, high) if cost <= budget else (low, middle)
        chosen = counts(low)
    return [Cell(cell.values, runs) for cell, runs in zip(cells, chosen, strict=True)]
