"""Samplers of Optuna with changes that several workers need."""

import copy
import io
import math
import pickle
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import Problem
from hpo.optuna_internals.objects import cma_state, draw_by_acquisition, has_proposal, limit_gp_search, on_one_thread
from hpo.optuna_internals.tables import CONSTRAINT_PREFIX
from hpo.search.complement_log import Distributions
from hpo.search.study_view import StudyView


class GPWithPrunedTrials(optuna.samplers.GPSampler):
    """Optuna's GPSampler, which treats a pruned trial as a finished trial with its last value.

    GPSampler ignores pruned trials, so that the process does not learn from them and proposes similar values again. It
    also requires the same constraints of all trials, while a worker stores a constraint only with a trial that
    exceeded a limit.

    Trials that run count with what the process expects of them. Of workers that ask at the same time, none sees what
    the others get, and all would find the same best point. All but the first of them therefore draw a point in
    proportion to a power of its expected improvement, each from random candidates of its own.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Optuna's 2048 and 10 take twice as long.
        limit_gp_search(self, n_candidates=512, n_starts=4)
        self._asked_meanwhile = False

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return jointly sampled values."""
        trials = _with_one_constraint(_as_complete(study.get_trials(deepcopy=False)))
        self._asked_meanwhile = any(
            other.state == TrialState.RUNNING and other.number < trial.number and not has_proposal(other)
            for other in trials
        )
        with on_one_thread():
            return super().sample_relative(StudyView(study, lambda _: trials), trial, search_space)

    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        """Return the point to propose, as positions in the ranges."""
        if self._asked_meanwhile:
            return draw_by_acquisition(self, acqf)
        return super()._optimize_acqf(acqf, best_params)


def _as_complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with pruned trials as finished ones.

    The result of a pruned trial is its last value, or the worst result of all trials if it has no value or diverged.
    """
    known = [t.values[0] for t in trials if t.state.is_finished() and t.values]
    completed = []
    for trial in trials:
        if trial.state == TrialState.PRUNED and known:
            last = trial.intermediate_values[trial.last_step] if trial.last_step is not None else 0.0
            values = trial.values if trial.values and math.isfinite(last) else [max(known)]
            trial = copy.copy(trial)
            trial.state, trial.values = TrialState.COMPLETE, values
        completed.append(trial)
    return completed


def _with_one_constraint(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with one constraint each if any of them has exceeded a limit: 1 if it has, else -1."""
    if not any(t.constraints for t in trials):
        return list(trials)
    constrained = []
    for trial in trials:
        exceeds = any(excess > 0 for excess in trial.constraints.values())
        attrs = {key: value for key, value in trial.system_attrs.items() if not key.startswith(CONSTRAINT_PREFIX)}
        trial = copy.copy(trial)
        trial.system_attrs = attrs | {CONSTRAINT_PREFIX + "limits": 1.0 if exceeds else -1.0}
        constrained.append(trial)
    return constrained


class CMAESWithCheckedState(optuna.samplers.CmaEsSampler):
    """Optuna's CmaEsSampler, which reads its state from the storage without running code that the storage names.

    CmaEsSampler stores its state with pickle, in attributes of trials. Everyone who can write the storage could change
    it, and unpickling any bytes can run any code.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Return the state after the last generation, None before the first generation."""
        for trial in reversed(completed_trials):
            if stored := cma_state(self, trial):
                try:
                    return _CMAUnpickler(io.BytesIO(bytes.fromhex(stored))).load()
                except Exception as error:  # damaged bytes may raise anything
                    raise Problem(
                        f"study: trial {trial.number} holds a state of the sampler cmaes that cannot be used "
                        f"({error}); use another study name"
                    ) from None
        return None


class _CMAUnpickler(pickle.Unpickler):
    """Builds the classes of cmaes, and arrays and numbers of NumPy."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class by name.

        Raises:
            UnpicklingError: the class is no part of a state of CMA-ES.
        """
        if (module, name) not in _CMA_CLASSES:
            raise pickle.UnpicklingError(f"it must not contain {module}.{name}")
        return super().find_class(module, name)


_ARRAYS = [(f"numpy.{core}.multiarray", name) for core in ("_core", "core") for name in ("_reconstruct", "scalar")]
_CMA_CLASSES = {("cmaes._cma", "CMA"), ("numpy", "dtype"), ("numpy", "ndarray"), *_ARRAYS}


class SobolByTrialNumber(optuna.samplers.QMCSampler):
    """Optuna's QMCSampler with a given index of the point, by default the number of the trial.

    QMCSampler counts points in an attribute of the study, without a lock. Two workers could get the same point.
    """

    def __init__(self, point: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._given = point

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return the point."""
        self._point = trial.number if self._given is None else self._given
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: Distributions) -> int:
        return self._point
