"""What is read without Optuna is what Optuna reads."""

import math
import subprocess
import sys

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from hpo.errors import Problem
from hpo.storage.engine import open_readonly
from hpo.storage.store import open_store
from hpo.storage.studies import resolve_study_name, study_attrs, study_ids
from hpo.storage.trials import read_trials

SPACE = {
    "optimizer.lr": FloatDistribution(1e-5, 1.0, log=True),
    "model.n_layer": IntDistribution(1, 12),
    "model.tied": CategoricalDistribution([True, False, None, "off", 1.5, 3]),
}


def test_reads_trials_as_optuna_does(storage_url: str) -> None:
    with open_store(storage_url, create=True) as store:
        other = optuna.create_study(study_name="other", storage=store.optuna)
        other.tell(other.ask(), 9.0)
        study = optuna.create_study(study_name="s", storage=store.optuna)
        study.set_user_attr("spec", {"a": [1, None, 0.1]})
        for tied in SPACE["model.tied"].choices:  # type: ignore[attr-defined]
            trial = study.ask(SPACE)
            params = {"optimizer.lr": 1e-3 / 3, "model.n_layer": 7, "model.tied": tied}
            study.add_trial(create_trial(params=params, distributions=SPACE, value=1 / 3, user_attrs={"slot": 1}))
            for step, value in ((1, 2.5), (2, math.inf), (3, -math.inf), (4, math.nan)):
                trial.report(value, step)
            trial.set_constraint("memory", -0.5)
        study.tell(0, state=TrialState.FAIL)
        study.tell(2, 0.1)
        study.tell(4, math.inf)
        theirs = study.get_trials(deepcopy=False)
        with open_readonly(storage_url) as at:
            ours = read_trials(at, study_ids(at)["s"])
            assert study_attrs(at, study_ids(at)["s"]) == study.user_attrs
            assert sorted(study_ids(at)) == ["other", "s"]
            assert len(ours) == len(theirs) == 12
            for mine, its in zip(ours, theirs, strict=True):
                assert mine.state.name == its.state.name
                assert (mine.number, mine.params, mine.user_attrs) == (its.number, its.params, its.user_attrs)
                assert [type(v) for v in mine.params.values()] == [type(its.params[k]) for k in mine.params]
                assert mine.values == (its.values or [])
                assert repr(mine.intermediate_values) == repr(its.intermediate_values)
                assert (mine.last_step, mine.duration, mine.constraints) == (
                    its.last_step,
                    its.duration,
                    its.constraints,
                )


def test_names_the_studies_there_are(storage_url: str) -> None:
    with open_store(storage_url, create=True) as store:
        with pytest.raises(Problem, match="holds no study; `hpo launch` creates a study"):
            resolve_study_name(store, None)
        optuna.create_study(study_name="a", storage=store.optuna)
        assert resolve_study_name(store, None) == "a"
        optuna.create_study(study_name="b", storage=store.optuna)
        with pytest.raises(Problem, match=r"holds 2 studies \(a, b\); pass --study NAME"):
            resolve_study_name(store, None)
        with pytest.raises(Problem, match="no study 'c' in the storage; there are a, b"):
            resolve_study_name(store, "c")
        assert resolve_study_name(store, "studies/b.yaml") == "b"


def test_commands_that_look_import_neither_optuna_nor_torch_nor_the_model() -> None:
    code = (
        "import sys, hpo.cli.main, hpo.commands.show, hpo.analysis.snapshot, hpo.storage.engine, hpo.console\n"
        "print(sorted({'optuna', 'torch', 'model', 'alembic', 'pandas', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
