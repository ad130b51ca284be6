"""Samplers of Optuna with changes that several workers need."""

import copy
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.search.complement_log import Distributions
from hpo.search.study_view import StudyView


class GPWithPrunedTrials(optuna.samplers.GPSampler):
    """Optuna's GPSampler, which treats a pruned trial as a finished trial with its last value.

    GPSampler ignores pruned trials, so that the process does not learn from them and proposes similar values again.
    """

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return jointly sampled values."""
        trials = _as_complete(study.get_trials(deepcopy=False))
        return super().sample_relative(StudyView(study, lambda _: trials), trial, search_space)


def _as_complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with pruned trials as finished ones.

    The result of a pruned trial is its last value, or the worst result of all trials if it has no value.
    """
    known = [t.values[0] for t in trials if t.state.is_finished() and t.values]
    completed = []
    for trial in trials:
        if trial.state == TrialState.PRUNED and known:
            values = trial.values or [max(known)]
            trial = copy.copy(trial)
            trial.state, trial.values = TrialState.COMPLETE, values
        completed.append(trial)
    return completed


class SobolByTrialNumber(optuna.samplers.QMCSampler):
    """Optuna's QMCSampler, which uses the number of the trial as the index of the point.

    QMCSampler counts points in an attribute of the study, without a lock. Two workers could get the same point.
    """

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return the point with the index `trial.number`."""
        self._point = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: Distributions) -> int:
        return self._point
