"""What the pruner of a study risked: how often it would end the best trials, and what is not known."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import TypeAdapter

from hpo.analysis.snapshot import GIVEN_KINDS, Snapshot, trial_status
from hpo.replay.curves import Curves
from hpo.replay.measures import Estimate, lost_share, pruned_share, rank_correlations, record
from hpo.replay.simulation import Search, simulate
from hpo.replay.study_curves import curves_of_study
from hpo.replay.worlds import Shuffled, World
from hpo.search.pruners import Pruner
from hpo.storage.trials import State, Trial

N_ORDERS = 20  # random orders of the trials that are replayed
MAX_TRIALS = 100  # of a replay; a longer study is sampled, because a replay of 1,000 trials takes a minute


@dataclass(frozen=True)
class PrunedTrial:
    """A pruned trial, and the complete trials that were as bad as it at the rung where it ended, or worse.

    best: the best result of these trials, None if there are none.
    """

    number: int
    rung: int
    value: float
    n_as_bad: int
    best: float | None


@dataclass(frozen=True)
class PruningRisk:
    """What pruning risked. Results of pruned trials are not known, so all figures are those of complete trials.

    n_known: trials with a known result. n_pruned: trials without. pruned, lost: share of all trials, and of the best
    tenth of the trials with a known result, that the same pruner ends if the trials come in random orders.
    rank: rank correlation of the value at each rung with the result. judged: the pruned trials.
    """

    n_known: int
    n_pruned: int
    pruned: Estimate
    lost: Estimate
    rank: Sequence[Estimate]
    judged: Sequence[PrunedTrial]


def pruning_risk(snapshot: Snapshot) -> PruningRisk:
    """Return what the pruner of a study risked.

    Raises:
        NothingFeasible: no trial has ended.
    """
    curves = curves_of_study(snapshot)
    pruner = TypeAdapter(Pruner).validate_python(dict(snapshot.spec["pruner"]))
    world: World = Shuffled(sampled(curves))
    records = [record(world, simulate(world, Search(None, pruner), seed), seed) for seed in range(N_ORDERS)]
    return PruningRisk(
        n_known=int(curves.known.sum()),
        n_pruned=int((~curves.known).sum()),
        pruned=pruned_share(records),
        lost=lost_share(records),
        rank=rank_correlations(curves),
        judged=list(_judged(snapshot)),
    )


def sampled(curves: Curves) -> Curves:
    """Return the curves of at most MAX_TRIALS runs, an even sample of all."""
    kept = np.unique(np.linspace(0, len(curves.config) - 1, min(MAX_TRIALS, len(curves.config))).astype(int))
    configs, config = np.unique(curves.config[kept], return_inverse=True)
    fixed = None if curves.fixed is None else curves.fixed[kept]
    params = [curves.params[c] for c in configs]
    return replace(curves, params=params, config=config, values=curves.values[kept], fixed=fixed)


def _judged(snapshot: Snapshot) -> Iterator[PrunedTrial]:
    """Yield the pruned trials, first those of whose equals a complete trial has the best result."""
    loss = snapshot.direction.loss
    complete = [t for t in snapshot.own if t.state == State.COMPLETE and snapshot.kind(t) not in GIVEN_KINDS]
    found = []
    for trial in snapshot.own:
        if trial_status(snapshot, trial) != "pruned" or not trial.last_step:
            continue
        value = trial.intermediate_values[trial.last_step]
        as_bad = [t for t in complete if _loss_at(t, trial.last_step, snapshot) >= loss(value)]
        best = min((loss(t.values[0]) for t in as_bad), default=None)
        found.append((trial, value, len(as_bad), best))
    for trial, value, n, best in sorted(found, key=lambda row: math.inf if row[3] is None else row[3]):
        result = None if best is None else loss(best)
        yield PrunedTrial(trial.number, trial.last_step or 0, value, n, result)


def _loss_at(trial: Trial, rung: int, snapshot: Snapshot) -> float:
    value = trial.intermediate_values.get(rung, math.nan)
    return snapshot.direction.loss(value)
