"""Tables and keys of Optuna's storage, and how they hold numbers and parameters.

The module does not import Optuna: `hpo status` reads the tables without it, because the import takes half of the
command's time.
"""

import functools
import json
import math
from typing import Any

import sqlalchemy as sa

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
ALEMBIC_TABLE = "alembic_version"  # the same, and of every other program that uses alembic
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
