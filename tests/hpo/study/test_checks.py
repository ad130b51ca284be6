"""A study file that gives one value in two forms is refused; a form of the file replaces that of its base."""

from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from model.config import TrainConfig
from model.section import flat, updated
from tests.support.study_files import VALID, valid

HALF_LIFE = {"low": 1e3, "high": 1e6, "log": True}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of_optimizer(base: dict[str, Any], **space: Any) -> dict[str, Any]:
    fields = {f"optimizer.{field}": entry for field, entry in space.items()}
    return VALID | {"base": VALID["base"] | base, "space": VALID["space"] | fields}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            of_optimizer({}, beta2={"low": 0.9, "high": 0.99}, beta2_half_life=HALF_LIFE),
            "s.yaml: space.optimizer.beta2: must be left out, because beta2 follows from "
            "space.optimizer.beta2_half_life; remove one of them",
        ),
        (
            of_optimizer({"optimizer": {"beta2": 0.99}}, beta2_half_life=HALF_LIFE),
            "s.yaml: base.optimizer.beta2: must be left out, because beta2 follows from "
            "space.optimizer.beta2_half_life; remove one of them",
        ),
        (
            of_optimizer({"optimizer": {"decay_horizon": 1e6}}, weight_decay={"low": 0.01, "high": 1.0}),
            "s.yaml: space.optimizer.weight_decay: must be left out, because weight_decay follows from "
            "base.optimizer.decay_horizon; remove one of them",
        ),
        (
            of_optimizer({"optimizer": {"beta2": 0.99, "beta2_half_life": 1e4}}),
            "s.yaml: base.optimizer: beta2 and beta2_half_life must not both be given, because beta2 follows from "
            "beta2_half_life; leave one of them out, got 0.99 and 10000.0",
        ),
        (
            of_optimizer({"optimizer": {"scale_lr": "cubic", "scale_lr_tokens": 512}}),
            "s.yaml: base.optimizer.scale_lr: must be one of 'none', 'linear', 'sqrt', got 'cubic'",
        ),
        (
            of_optimizer({"optimizer": {"scale_lr": 1.5, "scale_lr_tokens": 512}}),
            "s.yaml: base.optimizer.scale_lr: must be at most 1, got 1.5",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_one_value_in_two_forms_is_refused_by_the_keys_of_both(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem) as refused:
        valid(tree)
    assert list(refused.value.lines) == [message]


def test_a_searched_half_life_replaces_the_raw_value_that_only_the_base_of_the_file_gives() -> None:
    config = updated(TrainConfig(), {"optimizer.beta2": 0.99})
    Path("found.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    study = valid(VALID | {"base": {"from": "found.yaml"}, "space": {"optimizer.beta2_half_life": HALF_LIFE}})
    assert flat(study.base)["optimizer.beta2"] == 0.99  # the baseline keeps it
    trial = flat(study.configured({"optimizer.beta2_half_life": 5e4}))
    assert (trial["optimizer.beta2"], trial["optimizer.beta2_half_life"]) == (None, 5e4)
