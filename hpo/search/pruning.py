"""When a trial is pruned, and by which rule."""

import math
import time
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, PercentilePruner, WilcoxonPruner
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import get_best_trial
from hpo.search.halving import HalvingPruner
from hpo.search.pruning_rules import compare_at_last_rung, format_spans
from hpo.search.study_view import StudyView
from model.section import Section

Decision = Literal["continue", "prune", "diverged"]


class CachedPruner:
    """Decides at a rung whether a trial goes on, from a list of trials that is at most `refresh_s` old.

    Optuna's should_prune reads every running trial with all its values each time: 28 ms with 64 of them.
    The trial judged is the worker's own copy, to which it adds each value itself.
    """

    def __init__(
        self,
        study: optuna.Study,
        pruner: BasePruner,
        rungs: int,
        refresh_s: float = 5.0,
    ) -> None:
        self.pruner = pruner
        self.rungs = rungs
        self.refresh_s = refresh_s
        self._study = study
        self._view = StudyView(study, self._read)
        self._trials: list[FrozenTrial] = []
        self._read_at = -math.inf

    def decide(self, trial: FrozenTrial, never_prune: bool = False) -> Decision:
        """Return what becomes of a trial whose last value has just been added to it."""
        rung = trial.last_step
        if rung is None:
            return "continue"
        if not math.isfinite(trial.intermediate_values[rung]):
            return "diverged"
        if never_prune or rung >= self.rungs:
            return "continue"
        return "prune" if self.pruner.prune(self._view, trial) else "continue"

    def prune(self, trial: FrozenTrial, never_prune: bool = False) -> bool:
        """Return whether the pruner ends the trial; one that diverged is not asked about."""
        return self.decide(trial, never_prune) == "prune"

    def describe(self, rule: Section, trial: FrozenTrial) -> dict[str, Any]:
        """Return the comparison with which `decide` has just pruned a trial, as it is stored.

        rule: the study's pruner, as which ours was built.
        """
        peers = self._peers(trial)
        found = compare_at_last_rung(
            rule.model_dump(), trial.intermediate_values, [peer.intermediate_values for peer in peers]
        )
        told = {"rule": rule.model_dump()["name"], "rung": trial.last_step, "value": found.value}
        return told | {
            "threshold": found.threshold,
            "n": len(peers),
            "peers": format_spans(peer.number for peer in peers),
        }

    def _peers(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the trials that a trial was compared with, from the list that the pruner read."""
        held = StudyView(self._study, lambda _: self._trials)
        match self.pruner:
            case HalvingPruner():
                return self.pruner.rivals(held, trial)
            case PercentilePruner():
                complete = held.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                return [peer for peer in complete if trial.last_step in peer.intermediate_values]
            case WilcoxonPruner():
                return [get_best_trial(held)]
        return []

    def refresh(self) -> None:
        """Read the trials afresh at the next decision: one has just ended, and it is a peer of all that follow."""
        self._read_at = -math.inf

    def _read(self, use_cache: bool) -> list[FrozenTrial]:
        now = time.monotonic()
        if now - self._read_at >= self.refresh_s:
            self._trials = self._study.get_trials(deepcopy=False)
            self._read_at = now
        return self._trials
