"""What a study has ahead decides whether its steps are compiled, and which numbers the compiled step has."""

import math

import pytest

from hpo.config.yaml import dump_yaml
from hpo.runs.work import n_shapes, possible_numbers, work_ahead
from hpo.study.load import load_study
from tests.support.tiny import UPDATE, tiny

LR = {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}


@pytest.fixture
def study(here):
    def load(space=None, base=None, **keys):
        tree = {
            "base": tiny(base).model_dump(mode="json"),
            **({} if "arms" in keys else {"budget": {"trials": 20}}),
            **keys,
        }
        (here / "s.yaml").write_text(dump_yaml(tree | ({} if "arms" in keys else {"space": space or LR})))
        return load_study("s.yaml")

    return load


def test_the_work_of_a_study_is_its_trials_times_their_tokens(study):
    tokens = 24 * UPDATE
    assert work_ahead(study(pruner={"name": "none"})) == (20 * tokens, math.inf, 1, 20)
    assert work_ahead(study(pruner={"name": "median"})).tokens == 10 * tokens  # weak trials end early
    ahead = work_ahead(study(budget={"hours": 0.5, "tokens": 3 * tokens}, pruner={"name": "none"}))
    assert (ahead.tokens, ahead.seconds) == (3 * tokens, 1800)
    assert work_ahead(study(arms={"a": {}, "b": {"optimizer.lr": 1e-2}}, seeds=[1, 2, 3])).trials == 6


def test_only_fields_that_change_a_shape_count_as_shapes(study):
    assert n_shapes(study({**LR, "optimizer.weight_decay": {"low": 0.0, "high": 0.2}})) == 1
    assert n_shapes(study({**LR, "model.n_embd": {"choices": [16, 32]}, "model.n_layer": {"low": 1, "high": 3}})) == 6
    assert n_shapes(study({"optimizer.name": {"choices": ["adamw", "muon"]}})) == 2
    arms = {"a": {}, "b": {"model.n_embd": 32}, "c": {"model.n_embd": 32, "optimizer.lr": 1e-2}}
    assert n_shapes(study(arms=arms, seeds=[1, 2])) == 2


def test_a_compiled_step_has_the_numbers_that_some_trial_may_have(study):
    sites = ["attention_dropout", "embedding_dropout", "mlp_dropout", "residual_dropout"]
    assert possible_numbers(study()) == []
    assert possible_numbers(study({"regularization.dropout": {"choices": [0.0, 0.1]}})) == sites
    assert possible_numbers(study({"regularization.mlp_dropout": {"low": 0.0, "high": 0.1}})) == ["mlp_dropout"]
    assert possible_numbers(study(base={"regularization.dropout": 0.1})) == sites

    assert possible_numbers(study(baseline=[{"regularization.head_dropout": 0.1}])) == ["head_dropout"]
