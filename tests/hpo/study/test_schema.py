"""The JSON schemas accept what the checks accept, refuse what they refuse by one key, and are what editors find."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from pydantic import ValidationError

from hpo.config.discovery import list_studies, shipped_folder
from hpo.config.files import config_text
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.study.schema import configuration_schema
from hpo.study.spec import StudyFile
from model.config import TrainConfig
from tests.support.command import run_in_process, trivial
from tests.support.schemas import study_validator
from tests.support.study_files import GONE, VALID, edited

STUDIES = list_studies(shipped_folder())
BASES = sorted((shipped_folder() / "bases").glob("*.yaml"))
LR = "space/optimizer.lr"
CONFIG = Draft7Validator(configuration_schema())


def accepts(tree: Any) -> bool:
    return study_validator().is_valid(json.loads(json.dumps(tree)))


@pytest.mark.parametrize("path", [*STUDIES, *BASES], ids=lambda path: path.stem)
def test_editor_line_of_every_shipped_file_names_the_schema_that_accepts_it(path: Path) -> None:
    text = path.read_text("utf-8")
    named = re.findall(r"^# yaml-language-server: \$schema=(.*)$", text, re.M)
    assert len(named) == 1
    schema = json.loads((path.parent / named[0]).read_text("utf-8"))
    assert list(Draft7Validator(schema).iter_errors(parse_yaml(text))) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(LR, {"low": low, "high": 1, "log": True}) for low in (0.1, 1e-3)],
        (LR, {"min": 0.1, "max": 1, "distribution": "log_uniform_values"}),
        (LR, {"min": 0, "max": 1, "q": 0.5, "distribution": "q_uniform"}),
        (LR, {"low": 0.1, "high": 1, "prior": {"at": 0.3}}),
        *[(LR, {key: [0.1, 0.2]}) for key in ("choices", "values")],
        *[("sampler", value) for value in ("gp", {"name": "gp", "startup_trials": 3})],
        *[("pruner", value) for value in ("none", {"name": "percentile", "percentile": 40})],
        ("base", {"from": "unet-small", "optimizer": {"momentum": 0.9}, "run.tokens": 1000}),
        ("base", {"optimizer": {"name": "muon", "momentum": 0.9}}),
        ("baseline", [{"optimizer.lr": 1e-3}, {}]),
        ("milestones", {"0.5": 4.2}),
        ("config", "waves:Config"),
        *[("command", words) for words in ("python train.py {flags}", ["python", "train.py", "{flags}"])],
    ],
)
def test_every_form_of_a_key_that_the_checks_accept_passes(key: str, value: Any) -> None:
    tree = edited(key, value)
    StudyFile.model_validate(tree)
    assert accepts(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(LR, {"low": 0.1}), (LR, {"low": "0.1", "high": 1}), (LR, {"low": 0.1, "high": 1, "lo": 3}), (LR, [1, 2])],
        *[(LR, {"choices": []}), (LR, {"choices": [[1]]}), (LR, {"min": 1, "max": 2, "distribution": "normal"})],
        *[("space/optimizer.lrr", {"low": 0.1, "high": 1}), ("space", GONE), ("spaces", {})],
        *[("sampler", "tp"), ("sampler", {}), ("sampler", {"name": "gp", "points": 3}), ("pruner", None)],
        *[("base/optimizer", {"momentum": 0.9}), ("base/optimizer", {"beta2": 1.0}), ("base/lr", 3)],
        ("base", {"from": "unet-small", "optimizer": {"momentumm": 0.9}}),
        ("base", {"data": {"name": "text"}}),
        *[("budget", {}), ("budget", {"trials": 0}), ("budget", {"trials": 1.5}), ("baseline", [{"optimizer.lr": 0}])],
    ],
)
def test_every_wrong_key_type_and_bound_is_refused(key: str, value: Any) -> None:
    assert not accepts(edited(key, value))


def test_a_study_of_other_training_code_may_have_other_fields() -> None:
    tree = VALID | {"base": {"degree": 3}, "space": {"degree": {"low": 1, "high": 9}}}
    assert not accepts(tree)
    assert accepts(tree | {"config": "waves:Config"})


def test_an_exported_configuration_passes_and_a_changed_one_does_not() -> None:
    exported = parse_yaml(config_text(TrainConfig(), {"study": "s", "trial": 3}))
    assert CONFIG.is_valid(exported)
    exported["run"]["tokens"] = 0
    assert not CONFIG.is_valid(exported)


def test_schema_of_ones_own_configuration_knows_its_fields(tmp_path: Path) -> None:
    trivial(tmp_path)
    study = run_in_process("schema", "--study", "trivial.yaml", cwd=tmp_path)
    config = run_in_process("schema", "config", "--study", "trivial.yaml", cwd=tmp_path)
    own = parse_yaml((tmp_path / "trivial.yaml").read_text())
    validator = Draft7Validator(json.loads(study))
    assert validator.is_valid(own)
    assert not validator.is_valid({**own, "space": {"lrr": {"low": 0.0, "high": 1.0}}})
    assert not Draft7Validator(json.loads(config)).is_valid({"lr": "x"})
    assert Draft7Validator(json.loads(config)).is_valid(parse_yaml(dump_yaml({"lr": 3})))


@pytest.mark.parametrize("command", [[], "", [""], [3]])
def test_a_command_without_words_is_refused_by_schema_and_checker(command: Any) -> None:
    tree = {"command": command, "space": {"x": {"low": 0.0, "high": 1.0}}}
    assert list(study_validator().iter_errors(tree))
    with pytest.raises(ValidationError):
        StudyFile.model_validate(tree)
