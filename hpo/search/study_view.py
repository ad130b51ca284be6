"""Our border with Optuna: a study whose trials we choose, and its experimental parts without their warning."""

import copy
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import share_study_state

Read = Callable[[bool], list[FrozenTrial]]  # True: the list that this trial has read already will do


class StudyView(optuna.Study):
    """A study whose list of trials is what `read` returns; all else is the study's own."""

    def __init__(self, study: optuna.Study, read: Read) -> None:
        # Not Study.__init__, which asks the storage for the study's id and directions again.
        share_study_state(self, study)
        self._read = read

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """Return the chosen trials; every reading method of Study and every sampler ends here."""
        trials = [t for t in self._read(use_cache) if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _get_best_trial(self, deepcopy: bool) -> FrozenTrial:
        complete = self._get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        feasible = [t for t in complete if all(c <= 0 for c in t.constraints.values())]
        if not feasible:
            raise ValueError("no feasible trial is complete")
        pick = max if self.direction == optuna.study.StudyDirection.MAXIMIZE else min
        best = pick(feasible, key=lambda t: t.values[0])
        return copy.deepcopy(best) if deepcopy else best


@contextmanager
def experimental() -> Iterator[None]:
    """Silence Optuna's ExperimentalWarning: the version is pinned below the next major one, and tests cover it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
