"""`hpo check` and the plan of `hpo launch` warn of a sampler and a pruner that work badly together."""

from pathlib import Path
from typing import Any

import pytest

from hpo.commands.check import check_file
from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.launcher.plan import describe_plan
from hpo.study.load import load_study
from hpo.study.stored import study_file_tree, study_from_spec

SPACE: dict[str, Any] = {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}}


def written(folder: Path, **keys: Any) -> str:
    path = folder / "s.yaml"
    path.write_text(dump_yaml({"base": {"run": {"rungs": 8}}, "space": SPACE} | keys))
    return str(path)


@pytest.mark.parametrize(
    ("keys", "warns"),
    [
        ({"sampler": "tpe", "pruner": "halving"}, True),
        ({"sampler": "auto", "pruner": "halving"}, True),
        ({"sampler": "random", "pruner": "halving"}, False),
        ({"sampler": "tpe", "pruner": {"name": "halving", "min_rungs": 2}}, False),
        ({"sampler": "tpe", "pruner": "median"}, False),
        ({}, False),
    ],
)
def test_pair_that_replay_shows_to_be_harmful_is_named(tmp_path: Path, keys: dict[str, Any], warns: bool) -> None:
    path = written(tmp_path, **keys)
    for text in (check_file(path, []), describe_plan(load_study(path), {})):
        assert ("note: sampler " in text) == warns
        assert ("pruner halving from rung 1" in text) == warns
    assert check_file(path, []).startswith(f"{path}: ok; ")


def test_prior_is_shown_in_the_plan_and_refused_by_samplers_that_enumerate(tmp_path: Path) -> None:
    space = {
        "optimizer.lr": {**SPACE["optimizer.lr"], "prior": {"at": 3e-3, "trust": "strong"}},
        "run.batch_size": {"choices": [4, 8], "prior": {"at": 8}},
    }
    study = load_study(written(tmp_path, space=space))
    stored = study_from_spec(study.spec())
    assert stored.file.space == study.file.space
    exported = study_file_tree(study.spec(), study.spec()["budget"])["space"]
    assert exported["optimizer.lr"]["prior"] == {"at": 3e-3, "trust": "strong"}
    plan = describe_plan(study, {})
    assert "0.001 to 0.01 log prior 0.003 (strong)" in plan
    assert "one of 4, 8, prior 8 (weak)" in plan
    with pytest.raises(Problem) as caught:
        load_study(written(tmp_path, space=space, sampler="grid"))
    assert "space.optimizer.lr.prior: must be omitted with sampler grid, whose points are given in advance" in str(
        caught.value
    )
    with pytest.raises(Problem, match=r"space.run.batch_size.prior.at: must be a whole number, got 4.5"):
        load_study(written(tmp_path, space={"run.batch_size": {"low": 2, "high": 8, "prior": {"at": 4.5}}}))
