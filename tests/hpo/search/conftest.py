"""Studies that the tests of pruners and of their records share."""

from pathlib import Path

import optuna
import pytest

from tests.support.pruning import with_crowd


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return optuna.create_study(storage=f"sqlite:///{tmp_path}/hpo.db", study_name="s")


@pytest.fixture
def crowd(study: optuna.Study) -> optuna.Study:
    return with_crowd(study)
