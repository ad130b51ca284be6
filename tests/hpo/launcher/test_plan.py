"""The description of a study before its launch."""

from pathlib import Path

import pytest

from hpo.config.yaml import dump_yaml
from hpo.launcher.plan import describe_plan
from hpo.study.load import load_study


@pytest.mark.parametrize(
    ("rungs", "line"),
    [
        (1, "  1 rung, at 8,192 tokens"),
        (2, "  2 rungs, at 4,096, 8,192 tokens"),
        (4, "  4 rungs, at 2,048, 4,096, 6,144, 8,192 tokens"),
        (8, "  8 rungs, at 1,024, 2,048, ... 8,192 tokens"),
    ],
)
def test_plan_says_where_the_rungs_of_a_run_are(tmp_path: Path, rungs: int, line: str) -> None:
    run = {"tokens": 8192, "rungs": rungs, "batch_size": 8}
    study = {
        "base": {"run": run, "model": {"context": 32}},
        "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "budget": {"trials": 2},
    }
    path = tmp_path / "s.yaml"
    path.write_text("# Which lr?\n" + dump_yaml(study))
    assert line in describe_plan(load_study(str(path)), {}).splitlines()
