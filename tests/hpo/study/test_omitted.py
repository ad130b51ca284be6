"""What a study file omits is taken from the study in the storage, so that no changed default changes a study."""

from pathlib import Path
from typing import Any

import pytest

from hpo.config.yaml import dump_yaml
from hpo.errors import Problem
from hpo.queue.compatibility import check_same
from hpo.study.load import load_study
from hpo.study.omitted import omitted_note, with_stored_values
from hpo.study.spec import Study
from hpo.study.stored import study_from_spec
from model.section import flatten
from tests.support.tiny import corpus

pytestmark = pytest.mark.usefixtures("here")

# What a file states, and a study that differs in every kind of field that the file omits: as if the defaults of the
# version that stored it had been these.
STATED: dict[str, Any] = {
    "base": {"data": {"name": "text"}, "tokenizer": {"name": "bytes"}, "run": {"tokens": 8192, "rungs": 2}},
    "space": {"optimizer.lr": {"low": 1e-3, "high": 1e-2}, "run.batch_size": {"choices": [4, 8]}},
}
OTHER: dict[str, Any] = {
    "sampler": {"name": "gp", "startup_trials": 7},
    "pruner": {"name": "percentile", "percentile": 60, "peers": "finished"},
    "budget": {"trials": 31, "hours": 9},
    "limits": {"seconds": 60},
    "baseline": [],
    "keep_best": 5,
    "seed": 4,
    "objective": "val_bpb",
    "equal": "updates",
    "targets": {"low": 1.5},
    "milestones": {0.5: 2.0},
}
OTHER_BASE: dict[str, Any] = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16, "position": "rope"},
    "optimizer": {"lr": 2e-3, "beta2": 0.9},
    "schedule": {"name": "linear", "warmup": 0.2},
    "run": {"tokens": 8192, "rungs": 2, "grad_accum": 1, "precision": "fp32"},
}


def study(tree: dict[str, Any], *overrides: str) -> Study:
    data = {**tree["base"].get("data", {}), "path": str(corpus())}
    Path("a.yaml").write_text(dump_yaml({**tree, "base": {**tree["base"], "data": data}}))
    return load_study("a.yaml", overrides)


def stored_study(**changes: Any) -> Study:
    space = STATED["space"] | {"optimizer.lr": {"low": 1e-3, "high": 1e-2, "log": True}}
    tree = STATED | OTHER | {"space": space, "base": STATED["base"] | OTHER_BASE} | changes
    return study_from_spec(study(tree).spec())


def test_every_field_that_a_file_omits_keeps_its_stored_value() -> None:
    stored = stored_study()
    new = study(STATED)
    one, other = flatten(new.spec()), flatten(stored.spec())
    assert len([key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]) > 25
    kept = with_stored_values(new, stored)
    assert kept.spec() == stored.spec()
    check_same(kept, stored.spec(), kept.spec())
    assert kept.slots() == stored.slots()


@pytest.mark.parametrize(
    ("stated", "key"),
    [
        ({"sampler": {"name": "gp", "startup_trials": 8}}, "sampler.startup_trials"),
        ({"sampler": {"name": "tpe"}}, "sampler.name"),
        ({"pruner": {"name": "percentile", "peers": "all"}}, "pruner.peers"),
        ({"pruner": {"name": "percentile", "percentile": 75}}, "pruner.percentile"),
        ({"limits": {"seconds": 61}}, "limits.seconds"),
        ({"keep_best": 3}, "keep_best"),
        ({"space": STATED["space"] | {"optimizer.lr": {"low": 2e-3, "high": 1e-2}}}, "space.optimizer.lr.low"),
        ({"base": STATED["base"] | {"optimizer": {"beta2": 0.95}}}, "base.optimizer.beta2"),
        ({"base": STATED["base"] | {"model": {"position": "learned"}}}, "base.model.position"),
        ({"base": STATED["base"] | {"schedule": {"name": "cosine"}}}, "base.schedule.name"),
    ],
)
def test_a_stated_value_that_differs_is_refused_by_its_key_and_alone(stated: dict[str, Any], key: str) -> None:
    stored, new = stored_study(), study(STATED | stated)
    kept = with_stored_values(new, stored)
    with pytest.raises(Problem) as refused:
        check_same(kept, stored.spec(), kept.spec())
    named = [line.split(": ")[1] for line in refused.value.lines[:-1]]
    assert key in named
    assert {name.rpartition(".")[0] for name in named} == {key.rpartition(".")[0]}


def test_a_field_of_the_space_or_an_arm_that_a_file_omits_is_a_change() -> None:
    stored = stored_study()
    kept = with_stored_values(study(STATED | {"space": {"run.batch_size": {"choices": [4, 8]}}}), stored)
    with pytest.raises(Problem, match=r"space\.optimizer\.lr\.high: the study in the storage has 0\.01"):
        check_same(kept, stored.spec(), kept.spec())


def test_a_value_of_the_command_line_or_of_a_base_of_the_user_is_stated() -> None:
    stored = stored_study()
    kept = with_stored_values(study(STATED, "optimizer.beta2=0.8"), stored)
    assert kept.base.model_dump()["optimizer"]["beta2"] == 0.8
    Path("studies/bases").mkdir(parents=True)
    Path("studies/bases/mine.yaml").write_text("optimizer: {beta2: 0.7}\n")
    kept = with_stored_values(study(STATED | {"base": STATED["base"] | {"from": "mine"}}), stored)
    assert kept.base.model_dump()["optimizer"]["beta2"] == 0.7
    assert kept.base.model_dump()["schedule"]["name"] == "linear"


def test_a_base_that_ships_with_hpo_may_change_under_a_study() -> None:
    stored = stored_study()
    new = study(STATED | {"base": STATED["base"] | {"from": "microgpt-small"}})
    assert with_stored_values(new, stored).base == stored.base


def test_a_study_that_ships_with_hpo_may_change_under_its_stored_study() -> None:
    stored = study_from_spec(load_study("quickstart", ["optimizer.lr=4e-3", "run.seed=5"], {"trials": 9}).spec())
    new = load_study("quickstart")
    kept = with_stored_values(new, stored)
    assert kept.spec() == stored.spec()
    assert omitted_note(new, kept).startswith(
        "the study quickstart that ships with this version of hpo differs from the stored study of that name, "
        "for example in base.optimizer.lr; "
    )
    for changed in load_study("quickstart", ["run.seed=6"]), load_study("quickstart", seed=stored.file.seed + 1):
        kept = with_stored_values(changed, stored)
        with pytest.raises(Problem, match="seed: the study in the storage has"):
            check_same(kept, stored.spec(), kept.spec())


def test_a_budget_that_is_omitted_keeps_its_current_limits_and_a_stated_one_is_taken() -> None:
    stored = stored_study(budget={"trials": 31, "hours": 9})
    assert with_stored_values(study(STATED), stored).file.budget == stored.file.budget
    stated = with_stored_values(study(STATED | {"budget": {"trials": 40}}), stored).file.budget
    assert (stated.trials, stated.hours) == (40, None)


def test_the_note_names_what_a_new_study_would_have() -> None:
    stored = stored_study()
    new = study(
        STATED | OTHER | {"base": STATED["base"] | OTHER_BASE, "pruner": {"name": "percentile", "percentile": 60}}
    )
    note = omitted_note(new, with_stored_values(new, stored))
    assert note == (
        "a.yaml does not state these fields, so the study keeps its values: "
        'pruner.peers "finished" (default "all"), space.optimizer.lr.log true (default false)'
    )
    assert omitted_note(new, new) == ""
