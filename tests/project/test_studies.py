"""The shipped studies: each states one question, uses a fast base, and names the claims that it is about."""

import re
from pathlib import Path

import pytest

from hpo.config.discovery import list_studies, shipped_folder
from hpo.study.load import load_study
from model.config import TrainConfig
from tests.support.ledger import shipped

PATHS = list_studies(shipped_folder())
OF_REPORTS = [path for path in PATHS if path.stem.startswith(("mainrun_", "blueberry_", "microgpt_", "unet_"))]


def comment(path: Path) -> str:
    lines = path.read_text("utf-8").splitlines()
    return " ".join(line[2:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_shipped_study_passes_and_begins_with_its_question(path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith("?")
    study = load_study(path.stem)
    assert study.file.baseline[0] == {}
    assert study.rungs >= 4


def test_the_studies_that_the_manual_names_are_shipped() -> None:
    names = {path.stem for path in PATHS}
    assert names >= {"quickstart", "beta2_sweep", "lr_schedule", "regularization", "architecture"}
    assert names >= {"mainrun_lr", "mainrun_regularization", "blueberry_ablation", "blueberry_schedule"}
    assert names >= {"microgpt_capacity", "unet_beta2", "unet_stability"}
    assert "claims" not in names


@pytest.mark.parametrize("path", OF_REPORTS, ids=lambda path: path.stem)
def test_study_of_a_report_says_which_claims_it_bears_on(path: Path) -> None:
    named = set(re.findall(r"C\d{3}-\d\d", comment(path)))
    assert named
    assert named <= set(shipped().claims)
    base = load_study(path.stem).base
    assert isinstance(base, TrainConfig)
    assert base.run.tokens < 10**6


def test_every_report_has_studies() -> None:
    assert {path.stem.split("_")[0] for path in OF_REPORTS} == {"mainrun", "blueberry", "microgpt", "unet"}
