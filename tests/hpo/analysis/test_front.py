"""A study with several objectives searches and prunes by the first and shows the front of all of them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.front import front, noise_of
from hpo.analysis.snapshot import Snapshot
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.report.build import read_report, report_page
from hpo.storage.store import Store, open_store
from hpo.study.load import load_study
from hpo.study.stored import study_file_tree
from tests.support.command import hpo, run_in_process
from tests.support.comparisons import run_study

pytestmark = pytest.mark.usefixtures("here")

MODULE = """
import random
from pydantic import BaseModel


class Config(BaseModel):
    x: float = 0.5
    seed: int = 0


def train(config):
    noise = random.Random(config.seed).gauss(0, 0.01) if config.seed else 0.0
    for rung in 1, 2:
        yield rung, {"loss": config.x + 1 / rung + noise, "cost": round((1 - config.x) * 8 + noise, 3)}
"""


def run(store: Store, folder: Path, objective: Any = ("loss", "cost"), **keys: Any) -> Snapshot:
    (folder / "curves.py").write_text(MODULE)
    tree: dict[str, Any] = {"train": "curves:train", "config": "curves:Config", "rungs": 2, "pruner": "none"}
    tree |= {"space": {"x": {"low": 0.0, "high": 1.0}}, "baseline_seeds": 3, "budget": {"trials": 9}}
    tree |= {"sampler": "random", "objective": list(objective) if isinstance(objective, tuple) else objective} | keys
    (folder / "two.yaml").write_text(dump_yaml(tree))
    return run_study(store, load_study(str(folder / "two.yaml")))


def test_front_holds_the_trials_that_no_trial_dominates(here: Path) -> None:
    with open_store("runs/hpo.db", create=True) as store:
        snapshot = run(store, here)
        points = {t.number: (t.values[0], t.user_attrs["hpo:metrics"]["cost"]) for t in snapshot.feasible}
        dominated = {
            b for a, b in itertools.permutations(points, 2)
            if points[a][0] <= points[b][0] and points[a][1] <= points[b][1] and points[a] != points[b]
        }  # fmt: skip
        found = [t.number for t in front(snapshot)]
        assert set(found) == points.keys() - dominated
        assert found == sorted(found, key=lambda n: points[n])
        assert noise_of(snapshot).keys() == {"loss", "cost"}
        assert store.optuna.get_study_directions(1)[0].name == "MINIMIZE"
        assert len(store.optuna.get_study_directions(1)) == 1, "in Optuna, the study has the first objective alone"
        tree = study_file_tree(snapshot.spec, snapshot.budget)
        assert tree["objective"] == ["loss", "cost"]
        assert "objectives" not in tree
        page = report_page(read_report(store, None), Path("runs"))
    assert "Several objectives" in page
    assert '"error_x"' in page, "noise bars"
    cheapest = min(points, key=lambda n: points[n][1])
    text = hpo("best", cwd=here, status=2).stderr
    assert "--by: required, because study two has the objectives loss, cost" in text
    assert "--by: required" in hpo("export", cwd=here, status=2).stderr
    assert (
        "--by: must be an objective of study two, loss, cost, got 'size'"
        in hpo("best", "--by", "size", cwd=here, status=2).stderr
    )
    record = json.loads(run_in_process("best", "--by", "cost", "--format", "json", cwd=here))
    assert (record["number"], record["cost"]) == (cheapest, points[cheapest][1])
    assert json.loads(run_in_process("best", "--by", "loss", "--format", "json", cwd=here))["number"] == found[0]
    exported = parse_yaml(
        hpo(
            "export", "--by", "cost", "--allow-train", "curves:train", "--allow-train", "curves:Config", cwd=here
        ).stdout
    )
    assert exported["provenance"]["trial"] == cheapest
    assert "front of loss and cost: trials" in run_in_process("status", cwd=here)


@pytest.mark.parametrize("objective", [[], ["loss", "loss"], [1]])
def test_wrong_list_of_objectives_is_refused(here: Path, objective: list[Any]) -> None:
    (here / "curves.py").write_text(MODULE)
    tree: dict[str, Any] = {"train": "curves:train", "config": "curves:Config", "rungs": 2}
    (here / "two.yaml").write_text(dump_yaml({**tree, "space": {"x": {"low": 0, "high": 1}}, "objective": objective}))
    assert (
        "objective: must be a name, or a list of different names" in hpo("check", "two.yaml", cwd=here, status=2).stderr
    )


def test_gpt_study_may_list_what_the_trainer_measures(here: Path) -> None:
    tree = {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "objective": ["val_loss", "size"]}
    (here / "gpt.yaml").write_text(dump_yaml(tree))
    said = hpo("check", "gpt.yaml", cwd=here, status=2).stderr
    assert "'seconds', 'tokens', 'parameters', 'memory', got 'size'" in said
    (here / "gpt.yaml").write_text(dump_yaml({**tree, "objective": ["val_loss", "parameters", "memory", "seconds"]}))
    hpo("check", "gpt.yaml", cwd=here)
    (here / "gpt.yaml").write_text(dump_yaml({**tree, "objective": "val_loss", "objectives": ["seconds", "val_loss"]}))
    assert (
        "objectives: must be omitted; write the list as objective"
        in hpo("check", "gpt.yaml", cwd=here, status=2).stderr
    )
