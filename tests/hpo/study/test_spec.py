"""What a valid study file means: components, rungs, slots, and its form in the storage."""

import itertools
from typing import Any, get_args

import pytest

from hpo.config.yaml import dump_yaml, parse_yaml
from hpo.search.pruners import Pruner
from hpo.search.samplers import Sampler
from hpo.study.fingerprint import spec_fingerprint
from hpo.study.stored import study_from_spec
from model.config import TrainConfig
from tests.support.study_files import RANGE, VALID, edited, valid

pytestmark = pytest.mark.usefixtures("here")


def test_section_without_a_name_is_the_default_component() -> None:
    base = valid(edited("base/optimizer", {"lr": 5e-3})).base
    assert isinstance(base, TrainConfig)
    assert (base.optimizer.name, base.optimizer.lr, base.data.name) == ("adamw", 5e-3, "python-docs")


@pytest.mark.parametrize(
    ("space", "align"),
    [
        ({}, 4 * 32),
        ({"run.grad_accum": {"choices": [1, 2, 4]}}, 4 * 4 * 32),
        ({"run.batch_size": {"choices": [4, 6]}}, 12 * 32),
        ({"run.batch_size": {"choices": [2, 3]}, "run.grad_accum": {"low": 1, "high": 3}}, 36 * 32),
        ({"run.batch_size": {"choices": [7, 8, 9]}}, 1),  # 504 x 32 is longer than a rung
        ({"model.context": {"choices": [16, 32]}}, 4 * 32),
    ],
)
def test_rungs_are_marks_that_every_trial_reaches_exactly(space: dict[str, Any], align: int) -> None:
    study = valid({**VALID, "space": {**VALID["space"], **space}})
    assert isinstance(study.base, TrainConfig)
    assert study.base.run.align == align
    paths = [path for path in space if path != "optimizer.lr"]
    entries = [study.file.space[path] for path in paths]
    choices = [getattr(entry, "choices", (1, 2, 3)) for entry in entries]
    marks = set()
    for values in itertools.product(*choices):
        config = study.configured(dict(zip(paths, values, strict=True)))
        assert isinstance(config, TrainConfig)
        marks.add(tuple(n * config.update_tokens() for n in config.marks()))
    assert (len(marks) == 1) == (align > 1)


@pytest.mark.parametrize(
    "tree",
    [
        VALID,
        edited("space/optimizer.beta2", {"low": 0.5, "high": 0.999, "complement_log": True}),
        edited("space/run.grad_accum", {"low": 1, "high": 4}),
        edited("baseline", [{}, {"optimizer.lr": 1, "run.compile": "off"}]),
        edited("base/run/compile", "off"),
        {**VALID, "sampler": {"name": "grid"}, "pruner": {"name": "hyperband"}, "budget": {"hours": 1}},
    ],
)
def test_study_survives_as_text(tree: dict[str, Any]) -> None:
    study = valid(tree)
    spec = parse_yaml(dump_yaml(study.spec()))
    again = study_from_spec(spec)
    assert again.spec() == study.spec()
    assert (again.name, again.base, again.rungs, again.slots()) == (study.name, study.base, study.rungs, study.slots())
    assert spec_fingerprint(spec) == spec_fingerprint(study.spec())


@pytest.mark.parametrize(("key", "union"), [("sampler", Sampler), ("pruner", Pruner)])
def test_name_alone_is_a_sampler_or_pruner_with_its_defaults(key: str, union: Any) -> None:
    for kind in get_args(get_args(union)[0]):
        name = get_args(kind.model_fields["name"].annotation)[0]
        if name not in ("threshold", "list", "brute-force"):  # need a field; needs another space
            assert valid({**VALID, key: name}).spec() == valid({**VALID, key: {"name": name}}).spec()


def test_fingerprint_ignores_the_budget_and_nothing_else() -> None:
    one = spec_fingerprint(valid().spec())
    assert spec_fingerprint(valid(edited("budget", {"trials": 50, "hours": 2})).spec()) == one
    others: list[tuple[str, Any]] = [
        ("base/run/tokens", 9000),
        ("base/optimizer", {"lr": 1e-2}),
        ("space/optimizer.lr", RANGE),
        ("baseline", []),
        ("sampler", {"name": "random"}),
        ("pruner", {"name": "none"}),
        ("objective", "val_bpb"),
        ("seed", 1),
    ]
    prints = {spec_fingerprint(valid(edited(key, value)).spec()) for key, value in others}
    assert len(prints - {one}) == len(others)


def test_baselines_come_first_and_slots_are_the_budget() -> None:
    slots = valid(edited("baseline", [{}, {"optimizer.lr": 1}])).slots()
    assert slots == [("baseline", {}), ("baseline", {"optimizer.lr": 1}), ("search", None), ("search", None)]
