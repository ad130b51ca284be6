"""A view of an Optuna study with selected trials, and Optuna's experimental features without their warnings.

Samplers and pruners see every study as one that minimizes: the values of a study that maximizes are negated for them.
Maximizing f therefore gives the same trials and decisions as minimizing -f.
"""

import copy
import math
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals.objects import share_study_state
from hpo.search.direction import Direction

Read = Callable[[bool], list[FrozenTrial]]  # True: a list that was read earlier for the same trial is recent enough


class StudyView(optuna.Study):
    """An Optuna study that minimizes, and whose trials are those that `read` returns.

    read: returns trials as `as_minimized` does. Everything else is that of the study.
    """

    def __init__(self, study: optuna.Study, read: Read) -> None:
        # Study.__init__ would read the id and the directions of the study from the storage again.
        share_study_state(self, study, StudyDirection.MINIMIZE)
        self._read = read

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """Return the selected trials. All reading methods of Study and all samplers call this method."""
        trials = [t for t in self._read(use_cache) if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _get_best_trial(self, deepcopy: bool) -> FrozenTrial:
        # Only pruners ask for the best trial, to compare curves. Imported trials have none.
        complete = [t for t in self._get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.intermediate_values]
        feasible = [t for t in complete if all(c <= 0 for c in t.constraints.values())]
        if not feasible:
            raise ValueError("no feasible trial with a curve is complete")
        best = min(feasible, key=lambda t: t.values[0])
        return copy.deepcopy(best) if deepcopy else best


def direction_of(study: optuna.Study) -> Direction:
    """Return whether a study of the storage minimizes or maximizes."""
    return Direction(study.direction.name.lower())


def as_minimized(trial: FrozenTrial, direction: Direction) -> FrozenTrial:
    """Return a trial with its values as losses. The trial itself is returned if no value changes.

    A value that is not finite ended a trial that diverged. It counts as the worst loss, whatever its sign.
    """
    if direction is Direction.MINIMIZE and -math.inf not in trial.intermediate_values.values():
        return trial
    minimized = copy.copy(trial)
    minimized.intermediate_values = {rung: _loss(value, direction) for rung, value in trial.intermediate_values.items()}
    if trial.values:
        minimized.values = [direction.loss(value) for value in trial.values]
    return minimized


def _loss(value: float, direction: Direction) -> float:
    return math.inf if math.isinf(value) else direction.loss(value)


@contextmanager
def experimental() -> Iterator[None]:
    """Silence Optuna's ExperimentalWarning. Our tests cover these features, and the major version of Optuna is
    pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
