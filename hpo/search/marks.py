"""The marks of successive halving: the rungs at which trials are compared, and who is among the best there.

The functions take learning curves of losses, by number of the trial, so that a rule may compare other values than the
reported ones. This module does not import Optuna, so that `hpo status` and `hpo why` start quickly.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

Curves = Mapping[int, Mapping[int, float]]  # number of the trial -> rung -> loss


class Standing(NamedTuple):
    """The place of a trial among the trials that reached a mark.

    rank: from 1, the best. n: number of trials at the mark, itself included. n_kept: how many of them continue.
    """

    rung: int
    rank: int
    n: int
    n_kept: int

    @property
    def is_kept(self) -> bool:
        return self.rank <= self.n_kept


def mark_rungs(min_rungs: int, factor: int, rungs: int) -> list[int]:
    """Return the marks of a run of `rungs` rungs: min_rungs, min_rungs x factor, ..., all below its last rung."""
    marks, mark = [], min_rungs
    while mark < rungs:
        marks.append(mark)
        mark *= factor
    return marks


def ranking(curves: Curves, marks: Collection[int], mark: int) -> list[int]:
    """Return the numbers of the trials that reached a mark, the best first; of equal trials, the older first.

    A trial that diverged after the previous mark and at the latest at this one counts as worse than any other.
    """
    before = max((other for other in marks if other < mark), default=0)
    losses = {number: _loss_at(curve, before, mark) for number, curve in curves.items()}
    return sorted((number for number, loss in losses.items() if loss is not None), key=lambda n: (losses[n], n))


def _loss_at(curve: Mapping[int, float], before: int, mark: int) -> float | None:
    """Return the loss with which a trial takes part at a mark, None if it does not."""
    last = max(curve, default=0)
    if before < last <= mark and not math.isfinite(curve[last]):
        return math.inf
    loss = curve.get(mark)
    return None if loss is None or math.isnan(loss) else loss


def promotions(
    curves: Curves, marks: Collection[int], paused: Collection[int], factor: int
) -> list[tuple[int, Standing]]:
    """Return the paused trials that may continue as (number, place), in the order in which to continue them.

    Later marks come first. At each mark, better trials come first.
    Source: Li et al. 2020, arXiv:1810.05934, algorithm 2.
    """
    found = []
    for mark in sorted(marks, reverse=True):
        ranked = ranking(curves, marks, mark)
        kept = ranked[: len(ranked) // factor]
        found += [
            (number, Standing(mark, rank, len(ranked), len(kept)))
            for rank, number in enumerate(kept, 1)
            if number in paused and max(curves[number]) == mark
        ]
    return found
