"""A view of an Optuna study with selected trials, and Optuna's experimental features without their warnings."""

import copy
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import share_study_state

Read = Callable[[bool], list[FrozenTrial]]  # True: a list that was read earlier for the same trial is recent enough


class StudyView(optuna.Study):
    """An Optuna study whose trials are those that `read` returns. Everything else is that of the study."""

    def __init__(self, study: optuna.Study, read: Read) -> None:
        # Study.__init__ would read the id and the directions of the study from the storage again.
        share_study_state(self, study)
        self._read = read

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """Return the selected trials. All reading methods of Study and all samplers call this method."""
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
    """Silence Optuna's ExperimentalWarning. Our tests cover these features, and the major version of Optuna is
    pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
