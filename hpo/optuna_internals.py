"""Private attributes, table columns and key formats of Optuna that hpo relies on.

Written for Optuna 5.0.0 and optuna-dashboard 0.21. Optuna may change any of these names without notice, so no other
module of hpo uses them directly. tests/hpo/test_optuna_internals.py compares every assumption with the installed
version; when the test fails after an upgrade, this module is the place to change.

Some classes of `hpo.search.study_view` and `hpo.search.optuna_samplers` must also override private methods.
`OVERRIDDEN_METHODS` lists these methods, and the same test checks their signatures.

The module does not import Optuna when it is loaded: `hpo status` reads the tables without Optuna, whose import takes
half of the command's time.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

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


# Keys of system attributes. The first is Optuna's, the others are those of optuna-dashboard.
CONSTRAINT_PREFIX = "constraints:"  # of a trial: prefix + name of the constraint -> a float, feasible up to 0
STUDY_ARTIFACT_PREFIX = "artifacts:"  # of a study: prefix + id of the artifact -> JSON


def figure_prefix(name: str) -> str:
    """Return the prefix of the keys that hold the parts of a figure; the number of the part follows."""
    return f"dashboard:plot_data:{name}:"


def trial_artifact_prefix(trial_id: int) -> str:
    """Return the prefix of the keys that hold the artifacts of a trial in the attributes of its study."""
    return f"dashboard:artifacts:{trial_id}:"


# Optuna's tables, with the columns that hpo reads or writes.
VERSION_TABLE = "version_info"  # exists where Optuna has created its tables
OPTUNA_TABLES = frozenset(
    """
    studies study_directions study_system_attributes study_user_attributes trial_heartbeats trial_intermediate_values
    trial_params trial_system_attributes trial_user_attributes trial_values trials version_info
    """.split()  # noqa: SIM905
)

STUDIES = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
STUDY_USER_ATTRS = sa.table(
    "study_user_attributes", sa.column("study_id"), sa.column("key"), sa.column("value_json", sa.String)
)
TRIALS = sa.table(
    "trials",
    sa.column("trial_id", sa.Integer),
    sa.column("number", sa.Integer),
    sa.column("study_id", sa.Integer),
    sa.column("state"),  # on Postgres an enumeration: compare with `trial_state`, read with `state_name`
    sa.column("datetime_start", sa.DateTime),
    sa.column("datetime_complete", sa.DateTime),
)
TRIAL_VALUES = sa.table(
    "trial_values",
    sa.column("trial_id", sa.Integer),
    sa.column("objective", sa.Integer),
    sa.column("value", sa.Double),
    sa.column("value_type"),  # on Postgres an enumeration
)
TRIAL_CURVES = sa.table(
    "trial_intermediate_values",
    sa.column("trial_intermediate_value_id", sa.Integer),  # ascends in the order of writing
    sa.column("trial_id", sa.Integer),
    sa.column("step", sa.Integer),
    sa.column("intermediate_value", sa.Double),
    sa.column("intermediate_value_type"),
)
TRIAL_PARAMS = sa.table(
    "trial_params",
    sa.column("trial_id"),
    sa.column("param_name"),
    sa.column("param_value"),
    sa.column("distribution_json"),
)
TRIAL_USER_ATTRS = sa.table(
    "trial_user_attributes", sa.column("trial_id"), sa.column("key", sa.String), sa.column("value_json", sa.String)
)
TRIAL_SYSTEM_ATTRS = sa.table(
    "trial_system_attributes", sa.column("trial_id"), sa.column("key", sa.String), sa.column("value_json", sa.String)
)
TABLES = (
    STUDIES,
    STUDY_USER_ATTRS,
    TRIALS,
    TRIAL_VALUES,
    TRIAL_CURVES,
    TRIAL_PARAMS,
    TRIAL_USER_ATTRS,
    TRIAL_SYSTEM_ATTRS,
)

# Names of optuna.trial.TrialState, as the column trials.state holds them.
RUNNING, WAITING = "RUNNING", "WAITING"
FINISHED = ("COMPLETE", "PRUNED", "FAIL")

# Values of the column value_type that stand for numbers that SQL does not have.
SPECIAL_VALUES = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


def state_name() -> sa.ColumnElement[str]:
    """Return the state of a trial as text, for use in a statement on `TRIALS`."""
    return sa.cast(TRIALS.c.state, sa.String(16))


def trial_state(name: str) -> sa.ColumnElement[Any]:
    """Return a state as a literal: on Postgres the column is an enumeration, to which no text parameter converts."""
    assert name in (RUNNING, WAITING, *FINISHED)
    return sa.literal_column(f"'{name}'")


def finite_value() -> sa.ColumnElement[Any]:
    """Return the value of `TRIAL_VALUES.value_type` of a finite number, as a literal as in `trial_state`."""
    return sa.literal_column("'FINITE'")


def attribute_json(value: Any) -> str:
    """Return the text with which the column value_json holds a user attribute."""
    return json.dumps(value)


def stored_number(value: float | None, value_type: Any) -> float:
    """Return the number that a row holds; value_type is "FINITE" or a key of `SPECIAL_VALUES`."""
    special = SPECIAL_VALUES.get(str(value_type))
    return float(value or 0.0) if special is None else special


def stored_parameter(value: float, distribution_json: str) -> Any:
    """Return the suggested value of a stored parameter.

    value: the float in the parameter's database row. distribution_json: the distribution in that row, which decodes the
    float.
    """
    kind, choices = _distribution(distribution_json)
    match kind:
        case "CategoricalDistribution":
            return choices[int(value)]
        case "IntDistribution":
            return int(value)
    return float(value)


@functools.lru_cache
def _distribution(distribution_json: str) -> tuple[str, list[Any]]:
    """Return the class and the choices of a distribution. Cached: the trials of a study share a few distributions."""
    tree = json.loads(distribution_json)
    return tree["name"], tree["attributes"].get("choices", [])
