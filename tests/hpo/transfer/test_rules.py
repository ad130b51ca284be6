"""The rules against the formulas of their sources, written out here, and against what they keep."""

import math

import pytest

from hpo.transfer.rule import Rule
from hpo.transfer.rules import Move, rule_values
from model.config import TrainConfig
from model.section import flat, updated
from tests.support.tiny import UPDATE, tiny

D0 = 24 * UPDATE
OWN_RATES = {"optimizer.embedding_lr": 0.02, "optimizer.embedding_decay": 0.05, "optimizer.scalar_decay": 0.01}


def moved(values: dict[str, object], rule: Rule, goal: dict[str, object]) -> tuple[TrainConfig, TrainConfig]:
    """Return a configuration as it was found, and as a rule carries it over to another scale."""
    found = tiny(values)
    move = Move(found, updated(found, goal), frozenset(goal))
    return found, updated(move.goal, rule_values(move, rule, {}))


def share(config: TrainConfig, group: str = "matrix") -> float:
    """Return the fraction of the run over which weight decay averages a group of weights (arXiv:2405.13698)."""
    raw = config.with_raw_fields().optimizer
    rate = raw.rate(group) * raw.scale(config.update_tokens())
    return config.update_tokens() / (rate * raw.decay(group) * config.run.tokens)


def half_life(decay: float, config: TrainConfig) -> float:
    """Return the tokens after which half of a moving average is left (arXiv:2507.07101)."""
    return config.update_tokens() * math.log(0.5) / math.log(decay)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "stable-adamw", "sgd"])
def test_nanochat_changes_batch_rates_and_decay_as_its_script_does(name: str) -> None:
    values = OWN_RATES | {"optimizer.name": name, "optimizer.weight_decay": 0.2, "run.batch_size": 8}
    found, config = moved({**values, "run.tokens": 16 * D0}, Rule.nanochat, {"run.tokens": 1024 * D0})
    assert config.run.batch_size == round(8 * 64**0.383) == 39
    # scripts/base_train.py: batch_ratio = total_batch_size / B_REF; batch_lr_scale = batch_ratio ** 0.5;
    # weight_decay_scaled = weight_decay * math.sqrt(total_batch_size / B_REF) * (D_REF / target_tokens)
    batch_ratio = config.update_tokens() / found.update_tokens()
    for group in ("matrix", "embedding", "scalar"):
        assert config.optimizer.rate(group) == pytest.approx(found.optimizer.rate(group) * batch_ratio**0.5)
        expected = found.optimizer.decay(group) * math.sqrt(batch_ratio) / 64
        assert config.optimizer.decay(group) == pytest.approx(expected)
        assert share(config, group) == pytest.approx(share(found, group))  # and so the horizon's share stays
    untouched = {"beta1", "beta2", "momentum", "eps"} & set(type(found.optimizer).model_fields)
    assert {f: getattr(config.optimizer, f) for f in untouched} == {f: getattr(found.optimizer, f) for f in untouched}


@pytest.mark.parametrize("kind", ["sqrt", "linear", 0.25])
def test_nanochat_leaves_to_scale_lr_what_scale_lr_does(kind: str | float) -> None:
    scaled = {"optimizer.scale_lr": kind, "optimizer.scale_lr_tokens": 128, "run.batch_size": 8}
    found, config = moved({**scaled, "run.tokens": 16 * D0}, Rule.nanochat, {"run.tokens": 256 * D0})
    rates = [c.optimizer.lr * c.optimizer.scale(c.update_tokens()) for c in (config, found)]
    assert rates[0] / rates[1] == pytest.approx(math.sqrt(config.update_tokens() / found.update_tokens()))
    assert share(config) == pytest.approx(share(found))
    assert (config.optimizer.lr == found.optimizer.lr) == (kind == "sqrt")


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adam", "rmsprop", "sgd"])
def test_horizon_keeps_half_lives_in_tokens_and_the_share_of_the_run(name: str) -> None:
    values = {"optimizer.name": name, "optimizer.weight_decay": 0.2, "regularization.ema": 0.9}
    values |= {"optimizer.momentum": 0.8} if name == "rmsprop" else {}
    goal = {"run.tokens": 40 * D0, "run.batch_size": 12}
    found, config = moved(values, Rule.horizon, goal)
    assert config.optimizer.lr == found.optimizer.lr
    assert half_life(config.regularization.ema or 0, config) == pytest.approx(half_life(0.9, found))
    moments = {"beta1", "beta2", "momentum", "alpha"} - ({"beta1"} if name == "lion" else set())
    for field in moments & set(type(found.optimizer).model_fields):
        before, after = (getattr(c.optimizer, field) for c in (found, config))
        assert half_life(after, config) == pytest.approx(half_life(before, found)), field
    if name in ("adam", "rmsprop"):  # an L2 penalty averages no weights
        assert config.optimizer.weight_decay == found.optimizer.weight_decay
    else:
        assert share(config) == pytest.approx(share(found))
    if name == "lion":
        assert config.optimizer.beta1 == found.optimizer.beta1


@pytest.mark.parametrize("rule", [Rule.nanochat, Rule.horizon])
@pytest.mark.parametrize("goal", [{"run.tokens": 50 * D0}, {"run.tokens": 50 * D0, "run.batch_size": 16}], ids=str)
def test_searched_half_lives_and_horizons_are_carried_over_as_the_raw_values_are(rule: Rule, goal: dict) -> None:
    searched = {"optimizer.beta2_half_life": 2000.0, "optimizer.beta1_half_life": 300.0, "optimizer.decay_horizon": 5e3}
    searched |= {"regularization.ema_half_life": 900.0, "optimizer.scale_lr": 0.3, "optimizer.scale_lr_tokens": 200}
    raw_form = flat(tiny(searched).with_raw_fields())
    config, direct = (moved(values, rule, goal)[1].with_raw_fields() for values in (searched, raw_form))
    if rule is Rule.horizon:  # a half-life is kept by construction, and by nanochat's rule only where it is searched
        assert flat(config) == pytest.approx(flat(direct))
    assert config.optimizer.weight_decay == pytest.approx(direct.optimizer.weight_decay)
    assert config.optimizer.lr == direct.optimizer.lr


@pytest.mark.parametrize("rule", list(Rule))
def test_a_rule_changes_nothing_at_the_scale_of_the_search_and_never_what_the_user_set(rule: Rule) -> None:
    found = tiny(OWN_RATES | {"regularization.ema": 0.9})
    predicted = {"optimizer.lr": 0.5, "optimizer.beta2": 0.5}
    if rule is not Rule.fitted:
        assert rule_values(Move(found, found), rule, {}) == {}
    own = {"run.tokens": 30 * D0, "run.batch_size": 5, "optimizer.lr": 0.007, "optimizer.weight_decay": 0.3}
    values = rule_values(Move(found, updated(found, own), frozenset(own)), rule, predicted)
    assert not values.keys() & own.keys()
    assert values if rule is not Rule.copy else not values


def test_a_rule_carries_no_value_over_to_another_optimizer() -> None:
    goal = {"run.tokens": 30 * D0, "optimizer.name": "sgd"}
    _, config = moved({"optimizer.lr": 0.003}, Rule.nanochat, goal)
    assert config.optimizer == updated(tiny({"optimizer.lr": 0.003}), goal).optimizer
    assert config.run.batch_size == round(4 * 30**0.383)
