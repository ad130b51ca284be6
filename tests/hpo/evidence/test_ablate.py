"""`hpo ablate`: which combinations it runs, and the effects it estimates."""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hpo.analysis.snapshot import Snapshot
from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.errors import Problem
from hpo.evidence.ablate import AblateRequest, plan_ablation
from hpo.evidence.designs import DESIGNS
from hpo.evidence.effects import effect_table, effect_verdicts, estimate_effects
from hpo.storage.store import Store
from hpo.study.load import load_study
from tests.support.cases import sparse
from tests.support.command import hpo
from tests.support.comparisons import run_study
from tests.support.planted import edit

pytestmark = pytest.mark.usefixtures("here")

MODULE = """
import random
from collections.abc import Iterator
from pydantic import BaseModel


class Config(BaseModel):
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    seed: int = 0
    noise: float = 0.02
    rungs: int = 1


def train(config: Config) -> Iterator[tuple[int, float]]:
    luck = config.noise * random.Random(repr(config)).gauss(0.0, 1.0)
    yield 1, 3.0 - 0.2 * config.a + 0.1 * config.b - 0.15 * config.a * config.b + luck
"""
TARGET = {"a": 1.0, "b": 1.0, "c": 1.0}


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """One kind of storage is enough here; test_confirm.py runs a comparison on Postgres."""
    return f"sqlite:///{tmp_path}/hpo.db"


def search(store: Store, folder: Path, target: dict[str, Any], **keys: Any) -> Snapshot:
    """Search a function of three factors; the second baseline is the target."""
    (folder / "curves.py").write_text(textwrap.dedent(MODULE))
    tree = {
        "train": "curves:train",
        "config": "curves:Config",
        "rungs": 1,
        "space": {name: {"low": 0.0, "high": 1.0} for name in "abc"},
        "baseline": [{}, target],
        "budget": {"trials": 2},
        **keys,
    }
    path = folder / "planted.yaml"
    path.write_text(dump_yaml(tree))
    return run_study(store, load_study(str(path)))


def request(design: str, **keys: Any) -> AblateRequest:
    usual = {"study": None, "before": "baseline", "after": "1", "groups": [], "order": [], "seeds": 5, "tokens": None}
    return AblateRequest(**{**usual, "name": None, "design": design, **keys})


def ablated(store: Store, snapshot: Snapshot, design: str, **keys: Any) -> Snapshot:
    return run_study(store, plan_ablation(snapshot, f"planted-{design}", request(design, **keys), 1000))


WANTED: dict[str, tuple[list[str], dict[str, float]]] = {
    "leave-one-out": (
        ["baseline", "target", "without a", "without b", "without c"],
        {"a": -0.35, "b": -0.05, "c": 0.0, "all together": -0.25},
    ),
    "add-one-in": (
        ["baseline", "target", "with a", "with b", "with c"],
        {"a": -0.2, "b": 0.1, "c": 0.0, "all together": -0.25},
    ),
    "cumulative": (
        ["baseline", "+ a", "+ b", "+ c"],
        {"a": -0.2, "b": -0.05, "c": 0.0, "all together": -0.25},
    ),
    "factorial": (
        ["baseline", "c", "b", "b + c", "a", "a + c", "a + b", "a + b + c"],
        {"a": -0.275, "b": 0.025, "c": 0.0, "a x b": -0.075, "a x c": 0.0, "b x c": 0.0},
    ),
}


@pytest.mark.parametrize("design", sparse(DESIGNS, 2))
def test_design_runs_its_arms_and_finds_the_planted_effects(here: Path, store: Store, design: str) -> None:
    snapshot = ablated(store, search(store, here, TARGET), design)
    arms, effects = WANTED[design]
    assert list(snapshot.spec["arms"]) == arms
    estimated = {e.name: e for e in estimate_effects(snapshot)}
    assert list(estimated) == list(effects)
    for name, wanted in effects.items():
        assert estimated[name].mean == pytest.approx(wanted, abs=0.04), name
        assert estimated[name].n == 5
    assert estimated["a"].verdict == "lowers"
    assert estimated["c"].verdict == "not distinguishable from noise"


def test_effects_are_paired_by_seed_and_have_student_s_interval(here: Path, store: Store) -> None:
    snapshot = ablated(store, search(store, here, TARGET), "add-one-in")
    value = {(t.user_attrs["arm"], t.user_attrs["seed"]): t.values[0] for t in snapshot.trials}
    differences = [value["with a", s] - value["baseline", s] for s in snapshot.spec["seeds"]]
    wanted = stats.ttest_1samp(differences, 0.0)
    effect = next(e for e in estimate_effects(snapshot) if e.name == "a")
    assert effect.mean == pytest.approx(np.mean(differences))
    assert (effect.low, effect.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert effect.p >= wanted.pvalue, "corrected for the number of effects"


def test_cumulative_design_goes_in_the_order_asked_for(here: Path, store: Store) -> None:
    snapshot = ablated(store, search(store, here, TARGET), "cumulative", order=["c", "b"])
    assert list(snapshot.spec["arms"].values()) == [
        {},
        {"c": 1.0},
        {"c": 1.0, "b": 1.0},
        {"c": 1.0, "b": 1.0, "a": 1.0},
    ]


def test_changes_in_one_factor_are_made_together(here: Path, store: Store) -> None:
    snapshot = ablated(store, search(store, here, TARGET), "add-one-in", groups=["both=a,b"])
    assert snapshot.spec["arms"]["with both"] == {"a": 1.0, "b": 1.0}
    assert next(e.mean for e in estimate_effects(snapshot) if e.name == "both") == pytest.approx(-0.25, abs=0.04)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_single_change_is_a_comparison_of_two(here: Path, store: Store, design: str) -> None:
    snapshot = ablated(store, search(store, here, {"a": 1.0}), design)
    assert snapshot.spec["arms"] == {"baseline": {}, "target": {"a": 1.0}}
    assert [e.name for e in estimate_effects(snapshot)] == ["a"]


def test_a_change_that_loses_runs_is_shown_beside_the_others(here: Path, store: Store) -> None:
    snapshot = search(store, here, TARGET)
    edit(here, "yield 1, 3.0", "yield 1, float('nan') if config.c and config.seed else 3.0")
    effects = {e.name: e for e in estimate_effects(ablated(store, snapshot, "add-one-in"))}
    assert list(effects) == ["a", "b", "c", "all together"]
    assert (effects["c"].n, effects["c"].lost, effects["c"].mean) == (0, (5, 0), None)
    assert effects["c"].verdict == "5 runs lost with it, 0 without"
    assert effects["a"].verdict == "lowers"


def test_what_matters_is_stated_in_words_and_noise_is_a_result(here: Path, store: Store) -> None:
    snapshot = ablated(store, search(store, here, TARGET), "add-one-in")
    first, *_, last = effect_verdicts(snapshot)
    assert first.startswith(("a lowers val_loss: -0.", "all together lowers val_loss: -0."))
    assert last.startswith("not distinguishable from noise, with 5 seeds: ")
    assert "c" in last.rpartition(": ")[2].split(", ")
    assert [record["effect"] for record in effect_table(snapshot)] == ["a", "b", "c", "all together"]


def test_the_seeds_of_the_effects_in_the_noise_are_counted(here: Path, store: Store) -> None:
    """The first effect has fewer seeds, and is not listed as noise."""
    snapshot = search(store, here, TARGET)
    failing = "yield 1, float('nan') if config.a and not config.b and config.seed % 2 else 3.0"
    edit(here, "yield 1, 3.0", failing)
    snapshot = ablated(store, snapshot, "add-one-in")
    effects = estimate_effects(snapshot)
    assert effects[0].n < 5
    assert effects[0].verdict.endswith("lost with it, 0 without")
    assert effect_verdicts(snapshot)[-1].startswith("not distinguishable from noise, with 5 seeds: ")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seeds": 2}, "--seeds: must be at least 3, or confidence intervals are too wide to be useful, got 2"),
        ({"after": "0"}, "the two configurations must differ; --from and --to choose others"),
        ({"after": "7"}, "has no trial 7; it has trials 0 to 1"),
        ({"after": "there"}, "--to: must be baseline, best, the number of a trial, or a YAML file, got 'there'"),
        ({"before": "none.yaml"}, "no such file: none.yaml"),
        ({"order": ["aa"]}, "--order: no factor 'aa'; did you mean a"),
        ({"groups": ["both"]}, "--factor: must be NAME=FIELD,FIELD, such as rates=optimizer.lr,schedule.warmup"),
        ({"groups": ["x=a", "y=a"]}, "--factor: a field must be in one factor only, got a twice"),
        ({"groups": ["x=a", "x=b"]}, "--factor: names must be distinct, got x twice"),
        ({"groups": ["b=a"]}, "--factor: must not be the name of a field, .*, got 'b'"),
        (
            {"groups": ["baseline=a"]},
            "--factor: must not be the name of a field, a section, an arm or .*, got 'baseline'",
        ),
        ({"groups": ["x=noise"]}, "--factor: noise is the same in both configurations"),
    ],
    ids=[
        "seeds",
        "same",
        "trial",
        "word",
        "file",
        "order",
        "group",
        "two groups",
        "twice",
        "field",
        "arm",
        "unchanged",
    ],
)
def test_mistake_is_named(here: Path, store: Store, keys: dict[str, Any], message: str) -> None:
    snapshot = search(store, here, TARGET)
    with pytest.raises(Problem, match=message.replace("(", r"\(")):
        plan_ablation(snapshot, "p", request("add-one-in", **keys), 1000)


def test_more_factors_than_a_design_holds_are_refused(here: Path, store: Store) -> None:
    names = [f"k{i}" for i in range(17)]
    snapshot = search(store, here, TARGET)
    (here / "curves.py").write_text(
        MODULE.replace("    seed:", "".join(f"    {n}: float = 0.0\n" for n in names) + "    seed:")
    )
    sys.modules.pop("curves")
    (here / "to.yaml").write_text(dump_yaml(dict.fromkeys(names, 1.0)))
    with pytest.raises(Problem, match="--design factorial: must be at most 16 factors, got 17; --factor"):
        plan_ablation(snapshot, "p", request("factorial", after="to.yaml"), 1000)


def test_configurations_of_different_data_are_refused(here: Path) -> None:
    from tests.support.planted import gpt_study

    path = gpt_study(here / "g.yaml", budget={"trials": 1})
    hpo("launch", "--study", str(path), "--quiet", cwd=here)
    hpo("export", "--study", "g", "-o", "to.yaml", cwd=here)
    tree = parse_yaml((here / "to.yaml").read_text())
    (here / "to.yaml").write_text(dump_yaml(tree | {"data": {"name": "python-docs"}}))
    done = hpo("ablate", "--study", "g", "--to", "to.yaml", cwd=here, status=2)
    assert (
        "--to: data.name: must equal that of --from, 'text', since losses on different data cannot be compared"
        in done.stderr
    )


def test_another_component_comes_with_its_fields_and_lengths_are_the_comparison_s_own(here: Path) -> None:
    from tests.support.planted import gpt_study

    path = gpt_study(here / "g.yaml", budget={"trials": 1})
    hpo("launch", "--study", str(path), "--quiet", cwd=here)
    hpo("export", "--study", "g", "-o", "to.yaml", cwd=here)
    tree = parse_yaml((here / "to.yaml").read_text())
    tree["optimizer"] = {"name": "sgd", "lr": 0.1, "momentum": 0.5}
    tree["run"]["tokens"] *= 2
    tree["run"]["seed"] = 5
    tree["clip"]["max_norm"] = 0.5
    (here / "to.yaml").write_text(dump_yaml(tree))
    done = hpo(
        "ablate", "--study", "g", "--to", "to.yaml", "--seeds", "3", "--design", "add-one-in", "--format", "json",
        cwd=here,
    )  # fmt: skip
    assert [record["effect"] for record in json.loads(done.stdout)] == ["optimizer", "clip.max_norm", "all together"]
    assert {record["n"] for record in json.loads(done.stdout)} == {3}


def test_ablation_continues_under_its_own_plan_alone(here: Path, storage_url: str) -> None:
    from hpo.storage.store import open_store

    with open_store(storage_url, create=True) as store:
        search(store, here, TARGET)
    words = ["ablate", "--to", "1", "--seeds", "3", "--study", "planted", "--storage", storage_url]
    first = hpo(*words, "--format", "json", cwd=here)
    assert hpo(*words, "--format", "json", cwd=here).stdout == first.stdout
    assert hpo(*words[:3], *words[5:], "--format", "json", cwd=here).stdout == first.stdout, "--seeds is as it was"
    other = hpo(*words, "--factor", "both=a,b", cwd=here, status=2)
    assert (
        "--factor: must be empty, with which study planted-leave-one-out was started, got both=a,b; `--as NAME`"
        in other.stderr
    )
