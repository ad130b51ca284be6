"""Trials of a CSV file and of Optuna's storages become prior trials that the sampler of a study uses."""

import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hpo.commands.import_trials import study_of_optuna
from hpo.config.yaml import parse_yaml
from hpo.errors import Problem
from tests.support.command import hpo, run_in_process, trivial
from tests.support.postgres import Postgres
from tests.support.schemas import assert_schema_agrees

CSV = """Name,lr,loss,State
a,0.31,0.334,finished
b,2.0,3.0,finished
c,0.5,nan,finished
d,0.5,0.4,crashed
e,0.25,0.336,finished
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study = trivial(tmp_path)
    study.write_text(study.read_text() + "sampler: {name: tpe, startup_trials: 2}\n")
    (tmp_path / "old.csv").write_text(CSV)
    return tmp_path


def optuna_study(storage: Any, name: str = "last", direction: str = "minimize") -> optuna.Study:
    """Return a study of Optuna with three trials, of which one is pruned."""
    study = optuna.create_study(storage=storage, study_name=name, direction=direction)
    for x in 0.2, 0.4:
        study.add_trial(
            optuna.create_trial(
                value=(x - 0.3) ** 2,
                params={"learning_rate": x},
                distributions={"learning_rate": optuna.distributions.FloatDistribution(1e-3, 1, log=True)},
            )
        )
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.PRUNED))
    return study


def trials(folder: Path) -> Any:
    return parse_yaml(run_in_process("trials", "--study", "trivial", "--format", "json", cwd=folder))


def test_rows_of_a_csv_file_are_prior_trials_from_which_the_sampler_learns(folder: Path) -> None:
    said = run_in_process("import", "old.csv", "--study", "trivial.yaml", cwd=folder)
    assert said.splitlines()[0] == "old.csv: not used: Name"
    assert "trivial: has 2 of the 5 trials of old.csv as prior trials" in said
    for reason in ("1 with lr outside its range", "1 without a finite value", "1 with state crashed"):
        assert reason in said
    again = run_in_process("import", "old.csv", "--study", "trivial", cwd=folder)
    assert "trivial: has 0 of the 5" in again
    assert "2 imported before" in again
    hpo("launch", "--study", "trivial.yaml", cwd=folder)
    rows = trials(folder)
    assert [(row["lr"], row["loss"]) for row in rows[:2]] == [(0.31, 0.334), (0.25, 0.336)]
    assert len(rows) == 2 + 4  # in addition to the budget
    assert "was imported: row 2 of old.csv" in run_in_process("why", "0", cwd=folder)
    first_search = next(row["number"] for row in rows if row["kind"] == "search")
    why = run_in_process("why", str(first_search), cwd=folder)
    assert re.search(r"suggested by tpe from [3-9] finished trials", why)  # not at random: two of them are imported


@pytest.mark.parametrize("kind", ["sqlite", "file", "journal"])
def test_complete_trials_of_any_storage_of_optuna_are_prior_trials(folder: Path, kind: str) -> None:
    source = {"sqlite": "sqlite:///old.db", "file": "old.db", "journal": "old.log"}[kind]
    path = folder / ("old.log" if kind == "journal" else "old.db")
    optuna_study(JournalStorage(JournalFileBackend(str(path))) if kind == "journal" else f"sqlite:///{path}")
    before = path.read_bytes()
    missing = hpo("import", source, "--study", "trivial.yaml", cwd=folder, status=2)
    assert "no trial has the parameter lr; --rename THEIRS=lr names it, one of learning_rate" in missing.stderr
    said = run_in_process("import", source, "--study", "trivial.yaml", "--rename", "learning_rate=lr", cwd=folder)
    assert "has 2 of the 3 trials of last as prior trials" in said
    assert "1 with state pruned" in said
    assert [row["lr"] for row in trials(folder)] == [0.2, 0.4]
    assert path.read_bytes() == before


def test_study_of_optuna_becomes_a_study_file_that_passes_the_check(folder: Path) -> None:
    optuna_study(f"sqlite:///{folder}/old.db", direction="maximize")
    optuna_study(f"sqlite:///{folder}/old.db", "other")
    (folder / "train.py").touch()
    several = hpo("import", "old.db", cwd=folder, status=2)
    assert "--from-study: must be one of the studies 'last', 'other'" in several.stderr
    run_in_process("import", "old.db", "--from-study", "last", "-o", "new.yaml", cwd=folder)
    tree = parse_yaml((folder / "new.yaml").read_text())
    assert tree["space"] == {"learning_rate": {"low": 0.001, "high": 1.0, "log": True}}
    assert tree["direction"] == "maximize"
    assert_schema_agrees(tree, accepted=True)
    assert "new.yaml: ok; 1 hyperparameter" in run_in_process("check", "new.yaml", cwd=folder)
    other = hpo("import", "old.db", "--from-study", "last", "--study", "trivial.yaml", cwd=folder, status=2)
    assert "direction: must be maximize, as in study 'last'" in other.stderr


def test_parameters_of_optuna_with_one_name_in_the_study_file_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    kind = optuna.distributions.FloatDistribution(0, 1)
    names = ("train/lr", "train_lr")
    trial = optuna.create_trial(value=1.0, params=dict.fromkeys(names, 0.5), distributions=dict.fromkeys(names, kind))
    optuna.create_study(storage=url, study_name="last").add_trial(trial)
    with pytest.raises(
        Problem, match=r"^study 'last': .* but 'train/lr' and 'train_lr' are both called train_lr; write"
    ):
        study_of_optuna(url, None)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_import_writes_nothing_to_a_postgres_database_of_another_program(postgres: Postgres, scheme: str) -> None:
    address = postgres.url(postgres.database("template1")).partition("://")[2]
    url, psycopg = f"{scheme}://{address}", f"postgresql+psycopg://{address}"
    with pytest.raises(Problem, match="must be a storage that Optuna has created, but it has no table alembic_version"):
        study_of_optuna(url, None)
    assert sa.inspect(sa.create_engine(psycopg, poolclass=sa.NullPool)).get_table_names() == []
    optuna_study(optuna.storages.RDBStorage(psycopg, {"poolclass": sa.NullPool}))
    text, study = study_of_optuna(url, None)
    assert study == "last"
    assert parse_yaml(text)["space"] == {"learning_rate": {"low": 0.001, "high": 1.0, "log": True}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv", "--study", "trivial.yaml"], "no such file: none.csv"),
        (["old.csv"], "--study: required with a CSV file"),
        (["other.csv", "--study", "trivial.yaml"], "other.csv: must have a column loss or value with the results"),
        (["other.csv", "--study", "trivial.yaml", "--rename", "x=loss"], "other.csv: must have a column lr; --rename"),
        (["old.csv", "--study", "trivial.yaml", "--rename", "x"], "--rename: must be THEIRS=OURS"),
        (["sqlite:///none.db"], "sqlite:///none.db: no such file"),
        (["trivial.py"], "trivial.py: cannot be opened as an Optuna storage: "),
        (["old.csv", "--study", "trivial.yaml", "-o", "x.yaml"], "--output: must be omitted with --study"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_a_remedy(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "other.csv").write_text("x\n3\n")
    refused = hpo("import", *arguments, cwd=folder, status=2)
    assert refused.stderr.startswith(f"hpo: {message}")
    assert refused.stdout == ""
