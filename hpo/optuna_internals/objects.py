"""Private attributes and methods of Optuna's studies, trials, samplers and storages.

Some classes of `hpo.search.study_view` and `hpo.search.optuna_samplers` must also override private methods.
`OVERRIDDEN_METHODS` lists these methods, and tests/hpo/test_optuna_internals.py checks their signatures.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hpo.optuna_internals.tables import attribute_json

if TYPE_CHECKING:
    from types import ModuleType

    import optuna
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial

OPTUNA_VERSION = "5.0.0"

# Class -> its private methods that a class of hpo overrides, with the names of their parameters.
OVERRIDDEN_METHODS = {
    "optuna.study.Study": {
        "_get_trials": ("self", "deepcopy", "states", "use_cache"),
        "_get_best_trial": ("self", "deepcopy"),
    },
    "optuna.samplers.QMCSampler": {"_find_sample_id": ("self", "study", "search_space")},
    "optuna.samplers.CmaEsSampler": {"_restore_optimizer": ("self", "completed_trials")},
    "optuna.samplers.GPSampler": {"_optimize_acqf": ("self", "acqf", "best_params")},
}

# Attributes that Study.__init__ sets.
STUDY_ATTRIBUTES = (
    "study_name", "sampler", "pruner", "_study_id", "_storage", "_directions", "_thread_local", "_stop_flag",
)  # fmt: skip


def get_study_id(study: optuna.Study) -> int:
    """Return the id that the tables use for a study."""
    return int(study._study_id)


def get_trial_id(trial: FrozenTrial) -> int:
    """Return the id that the tables use for a trial. The id is unique in the storage, the number only in the study."""
    return int(trial._trial_id)


def share_study_state(copy: optuna.Study, study: optuna.Study, direction: optuna.study.StudyDirection) -> None:
    """Set the attributes of `copy` as Study.__init__ does, without its two reads of the storage.

    direction: of the copy, which may differ from that of the study.
    """
    for name in STUDY_ATTRIBUTES:
        setattr(copy, name, getattr(study, name))
    copy._directions = [direction]
    copy._stop_flag = False


def get_sampler_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials as a sampler reads them, without a copy."""
    return study._get_trials(deepcopy=False)


def get_best_trial(study: optuna.Study) -> FrozenTrial:
    """Return the best feasible trial without a copy.

    Raises:
        ValueError: No feasible trial is complete.
    """
    return study._get_best_trial(deepcopy=False)


def cma_state(sampler: optuna.samplers.CmaEsSampler, trial: FrozenTrial) -> str:
    """Return the state of CMA-ES, a pickle as hexadecimal digits, that a trial stores; "" if it stores none."""
    key = sampler._attr_key_optimizer
    parts = {name: text for name, text in trial.system_attrs.items() if name.startswith(key)}
    return "".join(str(parts.get(f"{key}:{i}", "")) for i in range(len(parts)))


def limit_gp_search(sampler: optuna.samplers.GPSampler, n_candidates: int, n_starts: int) -> None:
    """Set how many random candidates a proposal of the Gaussian process compares, and from how many it climbs."""
    sampler._n_preliminary_samples, sampler._n_local_search = n_candidates, n_starts


def on_one_thread() -> AbstractContextManager[None]:
    """Return a context in which the Gaussian process uses one thread, because several wait for each other.

    Its warnings that a package is missing, or that the search has converged, are not shown: a user cannot act on them.
    """
    from optuna._gp.thread_limiting import limit_threads_in_optimization

    for name in ("optuna._gp.batched_lbfgsb", "optuna._gp.optim_mixed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return limit_threads_in_optimization()


def draw_by_acquisition(sampler: optuna.samplers.GPSampler, acquisition: Any) -> Any:
    """Return one of the random candidates, drawn in proportion to the fourth power of its expected improvement."""
    rng = sampler._rng.rng
    candidates = acquisition.search_space.sample_normalized_params(sampler._n_preliminary_samples, rng=rng)
    log_values = acquisition.eval_acqf_no_grad(candidates)
    weights = [math.exp(4 * value) for value in log_values - max(log_values)]
    return candidates[rng.choice(len(candidates), p=[weight / sum(weights) for weight in weights])]


def has_proposal(trial: FrozenTrial) -> bool:
    """Return whether a trial has parameters, or values that a sampler has proposed and that are not stored yet."""
    return bool(trial.params) or any(":relative_params:" in key for key in trial.system_attrs)


def get_study_system_attrs(study: optuna.Study) -> dict[str, Any]:
    """Return a study's system attributes, which hold the figures and artifacts of optuna-dashboard."""
    return dict(study._storage.get_study_system_attrs(study._study_id))


def set_study_system_attr(study: optuna.Study, key: str, value: Any) -> None:
    """Set a system attribute of a study."""
    study._storage.set_study_system_attr(study._study_id, key, value)


def cached_storage(rdb: RDBStorage) -> BaseStorage:
    """Return a storage that keeps finished trials in memory; `optuna.create_study` wraps an RDBStorage the same way."""
    from optuna.storages import get_storage

    return get_storage(rdb)


def get_cached_trial(storage: BaseStorage, trial_id: int) -> FrozenTrial:
    """Return a copy of a trial that a storage of `cached_storage` has created or read.

    Raises:
        KeyError: it has done neither.
    """
    cache: Any = storage
    with cache._lock:
        study_id, number = cache._trial_id_to_study_id_and_number[trial_id]
        return copy.deepcopy(cache._studies[study_id].trials[number])


def cached_unfinished_trials(storage: BaseStorage, study_id: int) -> dict[int, FrozenTrial]:
    """Return the unfinished trials of a study by id, as a storage of `cached_storage` has read them last."""
    cache: Any = storage
    with cache._lock:
        study = cache._studies.get(study_id)
        if study is None:
            return {}
        return {t._trial_id: t for t in study.trials.values() if t._trial_id in study.unfinished_trial_ids}


@contextmanager
def without_reading(storage: BaseStorage, study_id: int, trial_ids: AbstractSet[int]) -> Iterator[None]:
    """Let a storage of `cached_storage` return unfinished trials as it has read them last, in one read."""
    cache: Any = storage
    if not trial_ids:
        yield
        return
    study = cache._studies[study_id]
    with cache._lock:
        study.unfinished_trial_ids -= trial_ids
    try:
        yield
        # Optuna would read every trial after the last finished one. Trials of a study are created one at a time, so
        # this read has seen all trials up to the newest one, and those that are not finished are in the set.
        study.last_finished_trial_id = study.trials[max(study.trials)]._trial_id
    finally:
        with cache._lock:
            study.unfinished_trial_ids |= trial_ids


def rdb_models() -> ModuleType:
    """Return the module with the SQLAlchemy models of Optuna's tables."""
    from optuna.storages._rdb import models

    return models


def add_study(connection: sa.Connection, name: str, direction: str, user_attrs: Mapping[str, Any]) -> None:
    """Create a study with its user attributes in a transaction, which Optuna's own method would do in several."""
    from optuna.study import StudyDirection
    from sqlalchemy.orm import Session

    models = rdb_models()
    attributes = [models.StudyUserAttributeModel(key=k, value_json=attribute_json(v)) for k, v in user_attrs.items()]
    directions = [models.StudyDirectionModel(direction=StudyDirection[direction.upper()], objective=0)]
    with Session(connection) as session:
        session.add(models.StudyModel(study_name=name, directions=directions, user_attributes=attributes))
        session.flush()
