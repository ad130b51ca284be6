"""The installed versions of Optuna and optuna-dashboard have the internals that hpo relies on."""

import importlib
import inspect
import json
import math
from pathlib import Path

import optuna
import optuna_dashboard
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.trial import TrialState
from packaging.version import Version

from hpo.optuna_internals import objects, tables
from hpo.search.study_view import StudyView


def test_the_installed_version_has_the_major_version_that_the_module_was_written_for() -> None:
    assert Version(optuna.__version__).major == Version(objects.OPTUNA_VERSION).major


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda table: table.name)
def test_tables_have_the_columns(table: sa.TableClause) -> None:
    theirs = objects.rdb_models().BaseModel.metadata.tables[table.name]
    assert set(table.c.keys()) <= set(theirs.c.keys())


def test_tables_are_all_of_optuna() -> None:
    assert set(objects.rdb_models().BaseModel.metadata.tables) == tables.OPTUNA_TABLES
    assert tables.VERSION_TABLE in tables.OPTUNA_TABLES


@pytest.mark.parametrize("owner", objects.OVERRIDDEN_METHODS)
def test_overridden_methods_have_the_parameters(owner: str) -> None:
    module, _, name = owner.rpartition(".")
    for method, parameters in objects.OVERRIDDEN_METHODS[owner].items():
        signature = inspect.signature(getattr(getattr(importlib.import_module(module), name), method))
        assert tuple(signature.parameters) == parameters


def test_states_are_all_of_optuna() -> None:
    assert {tables.RUNNING, tables.WAITING, *tables.FINISHED} == set(TrialState.__members__)
    assert {state.name for state in TrialState if state.is_finished()} == set(tables.FINISHED)


def test_special_values_are_all_value_types_but_finite() -> None:
    types = objects.rdb_models().TrialIntermediateValueModel.TrialIntermediateValueType
    assert set(types.__members__) - {"FINITE"} == set(tables.SPECIAL_VALUES)
    model = objects.rdb_models().TrialIntermediateValueModel
    for number in (1.5, math.inf, -math.inf, math.nan):
        stored, value_type = model.intermediate_value_to_stored_repr(number)
        assert repr(tables.stored_number(stored, value_type.name)) == repr(number)


@pytest.mark.parametrize(
    ("distribution", "value"),
    [
        (FloatDistribution(0.1, 1.0, log=True), 0.25),
        (IntDistribution(1, 9), 7),
        (CategoricalDistribution(["a", None, 2, False]), None),
        (CategoricalDistribution(["a", None, 2, False]), False),
    ],
)
def test_stored_parameter_is_what_was_suggested(distribution: FloatDistribution, value: object) -> None:
    stored = distribution.to_internal_repr(value)
    read = tables.stored_parameter(stored, distribution_to_json(distribution))
    assert (read, type(read)) == (value, type(value))


def test_a_view_has_every_attribute_that_the_constructor_of_a_study_sets() -> None:
    study = optuna.create_study()
    assert set(vars(study)) == set(objects.STUDY_ATTRIBUTES)
    view = StudyView(study, lambda _: [])
    assert set(vars(study)) <= set(vars(view))
    assert objects.get_study_id(view) == objects.get_study_id(study)


def test_constraints_are_system_attributes_of_the_trial(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/o.db")
    study.ask().set_constraint("memory", 1.0)
    engine = sa.create_engine(f"sqlite:///{tmp_path}/o.db")
    with engine.connect() as connection:
        columns = tables.TRIAL_SYSTEM_ATTRS.c
        rows = connection.execute(sa.select(columns.key, columns.value_json)).all()
    engine.dispose()
    assert [(key, json.loads(text)) for key, text in rows] == [(tables.CONSTRAINT_PREFIX + "memory", 1.0)]


def test_user_attributes_are_stored_as_json(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/o.db")
    study.ask().set_user_attr("kind", "seed")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/o.db")
    with engine.connect() as connection:
        text = connection.execute(sa.select(tables.TRIAL_USER_ATTRS.c.value_json)).scalar_one()
    engine.dispose()
    assert text == tables.attribute_json("seed")


def test_keys_of_the_dashboard() -> None:
    plots = importlib.import_module("optuna_dashboard._custom_plot_data")
    artifacts = importlib.import_module("optuna_dashboard.artifact._backend")
    assert Version(optuna_dashboard.__version__) >= Version("0.21")
    assert tables.figure_prefix("name") == f"{plots.SYSTEM_ATTR_PLOT_DATA}name:"
    assert artifacts.ARTIFACTS_ATTR_PREFIX == tables.STUDY_ARTIFACT_PREFIX
    assert artifacts._dashboard_artifact_prefix(7) == tables.trial_artifact_prefix(7)


def test_system_attributes_of_a_study_are_written_and_read() -> None:
    study = optuna.create_study()
    objects.set_study_system_attr(study, "a", [1])
    assert objects.get_study_system_attrs(study) == {"a": [1]}


def test_ids_are_those_of_the_storage() -> None:
    study = optuna.create_study()
    trial = study.ask()
    frozen = study.get_trials()[0]
    assert objects.get_trial_id(frozen) == trial._trial_id
    assert [objects.get_trial_id(t) for t in objects.get_sampler_trials(study)] == [trial._trial_id]
    study.tell(trial, 1.0)
    assert objects.get_best_trial(study).number == 0
