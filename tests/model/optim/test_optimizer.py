"""Half-lives, decay horizon and exponents of the batch against the raw fields, computed by hand."""

import math

import pytest
from pydantic import ValidationError

from model.config import TrainConfig
from model.section import changes, flat, updated
from model.train.trainer import Trainer
from tests.support.cases import sparse
from tests.support.tiny import UPDATE, alone, curves, tiny

HALF_LIVES = {"optimizer.beta1_half_life": 500.0, "optimizer.beta2_half_life": 3000.0, "optimizer.decay_horizon": 9e3}
EMA = {"regularization.ema_half_life": 60.0}
WATCHED = {"recovery.name": "skip"}
CASES = {
    "adamw": HALF_LIVES | EMA,
    "stable-adamw": HALF_LIVES | {"run.grad_accum": 2},
    "muon": HALF_LIVES | EMA | WATCHED | {"optimizer.momentum_half_life": 900.0, "optimizer.lr": 0.01},
    "lion": {k: v for k, v in HALF_LIVES.items() if "beta1" not in k} | {"optimizer.scale_lr": 0.25},
    "adam": {k: v for k, v in HALF_LIVES.items() if "decay" not in k} | WATCHED | EMA,
    "sgd": EMA,
}


def by_hand(config: TrainConfig, given: dict[str, float]) -> dict[str, float]:
    """Return the raw fields of half-lives and a horizon, from the formulas of the papers."""
    tokens = config.run.batch_size * config.run.grad_accum * config.model.context
    lr = config.optimizer.lr * (tokens / 1024) ** 0.25 if "optimizer.scale_lr" in given else config.optimizer.lr
    values = {}
    for path, value in given.items():
        if path.endswith("_half_life"):  # arXiv:2507.07101
            values[path.removesuffix("_half_life")] = 0.5 ** (tokens / value)
        elif path.endswith("decay_horizon"):  # arXiv:2405.13698, with tau in tokens
            values["optimizer.weight_decay"] = tokens / (lr * value)
    return values


@pytest.mark.parametrize("name", sparse(CASES, 2))
def test_half_lives_and_horizon_equal_direct_values_to_the_last_bit_alone_and_packed(name):
    given = CASES[name]
    scaled = {"optimizer.scale_lr_tokens": 1024} if "optimizer.scale_lr" in given else {}
    config = tiny({"optimizer.name": name} | given | scaled)
    raw = by_hand(config, given)
    direct = updated(config, raw)
    expected = {f"optimizer.{field}" for field in ("beta1_half_life", "beta2_half_life", "decay_horizon")}
    assert not expected & {path for path, value in flat(direct).items() if value is not None}
    wanted = alone(direct)
    assert alone(config) == wanted
    other = updated(config, {"run.seed": 1})
    assert curves(Trainer([other, config])) == curves(Trainer([other, direct]))
    assert (
        alone(updated(config, {path: 2 * value for path, value in given.items() if path.endswith(("life", "horizon"))}))
        != wanted
    )


def test_a_half_life_is_the_tokens_after_which_half_of_a_mean_is_left():
    for batch in (1, 4, 32):
        config = tiny({"run.batch_size": batch, "optimizer.beta2_half_life": 4096.0, "run.tokens": 512 * 1024})
        beta2 = config.derived()["optimizer.beta2"]
        assert beta2 ** (4096 / config.update_tokens()) == pytest.approx(0.5, rel=1e-12)
    # Table of arXiv:2507.07101, section 4: beta2 0.95 at batch size 512 becomes 0.9999 at batch size 1.
    half_life = 512 * 1024 * math.log(0.5) / math.log(0.95)
    assert updated(
        TrainConfig(), {"optimizer.beta2_half_life": half_life, "run.batch_size": 1, "model.context": 1024}
    ).derived()["optimizer.beta2"] == pytest.approx(0.9999, abs=2e-6)


def test_a_decay_horizon_is_the_tokens_after_which_a_weight_without_gradients_has_fallen_to_1_in_e():
    config = tiny({"optimizer.decay_horizon": 64_000.0, "optimizer.lr": 1e-2})
    shrink = 1 - config.optimizer.lr * config.derived()["optimizer.weight_decay"]
    assert shrink ** (64_000 / UPDATE) == pytest.approx(math.exp(-1), rel=1e-3)


@pytest.mark.parametrize(("name", "exponent"), [("sqrt", 0.5), ("linear", 1.0)])
def test_the_named_exponents_of_scale_lr_equal_their_numbers(name, exponent):
    scaled = {"optimizer.scale_lr_tokens": 96, "run.batch_size": 5, "run.tokens": 7 * 16 * 100}
    one, other = (tiny(scaled | {"optimizer.scale_lr": kind}) for kind in (name, exponent))
    factors = [config.optimizer.scale(config.update_tokens()) for config in (one, other)]
    assert factors[0] == pytest.approx((80 / 96) ** exponent, rel=1e-15)
    assert factors[1] == pytest.approx(factors[0], rel=1e-15)


def test_a_pack_trains_named_and_numeric_exponents_beside_each_other():
    """Recovery computes the numbers of all runs on the device, where a name is no number."""
    scaled = WATCHED | {"optimizer.scale_lr_tokens": 128}
    configs = [tiny(scaled | {"optimizer.scale_lr": kind}) for kind in (0.25, "sqrt")]
    together = curves(Trainer(configs))
    for lane, config in enumerate(configs):
        assert [m.val_loss for m in together[lane]] == pytest.approx([m.val_loss for m in alone(config)], rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"optimizer.beta2": 0.9, "optimizer.beta2_half_life": 1e4},
            "beta2 and beta2_half_life must not both be given, because beta2 follows from beta2_half_life; leave one "
            "of them out, got 0.9 and 10000.0",
        ),
        ({"regularization.ema": 0.9, "regularization.ema_half_life": 1e4}, "ema and ema_half_life must not both"),
        ({"optimizer.weight_decay": 0.1, "optimizer.decay_horizon": 1e5}, "weight_decay and decay_horizon must not"),
        ({"optimizer.beta2": None}, "beta2 must be a number, unless beta2_half_life is given, got null"),
        ({"optimizer.decay_horizon": 63.0}, "optimizer.decay_horizon: must be at least the 64 tokens of an update"),
        (
            {"optimizer.beta2_half_life": 1e30},
            r"optimizer.beta2_half_life: must be shorter, because beta2 would round to 1, got 1e\+30",
        ),
        (
            {"optimizer.name": "lion", "optimizer.beta1": 0.0, "optimizer.beta2_half_life": 1e4},
            "beta2_half_life has no",
        ),
        (
            {"schedule.name": "onecycle", "schedule.beta1_dip": 0.8, "optimizer.beta1_half_life": 64.0},
            "schedule.beta1_dip: must be below optimizer.beta1 = 0.5, got 0.8",
        ),
    ],
    ids=str,
)
def test_two_forms_and_values_out_of_bounds_are_refused_by_their_key(values, message):
    with pytest.raises(ValidationError, match=message):
        tiny(values)


def test_a_later_value_replaces_the_other_form_of_its_field():
    searched = tiny({"optimizer.beta2_half_life": 1e4, "optimizer.decay_horizon": 1e5})
    assert searched.optimizer.beta2 is None
    direct = updated(searched, {"optimizer.beta2": 0.9})
    assert (direct.optimizer.beta2, direct.optimizer.beta2_half_life) == (0.9, None)
    assert updated(tiny({"optimizer.beta2": 0.9}), {"optimizer.beta2_half_life": 1e4}) == tiny(
        {"optimizer.beta2_half_life": 1e4}
    )
    # A component without the other form takes its own default.
    plain = updated(searched, {"optimizer.name": "sgd"}).optimizer
    assert plain.weight_decay == 0
    assert updated(searched, {"optimizer.name": "lion"}).optimizer.beta2_half_life == 1e4


def test_applying_the_changes_between_two_configurations_gives_the_second_in_any_form():
    raw, searched = tiny({"optimizer.beta2": 0.9}), tiny({"optimizer.beta2_half_life": 1e4} | EMA)
    assert changes(raw, searched) == {"optimizer.beta2_half_life": 1e4, **EMA}
    assert changes(searched, raw) == {"optimizer.beta2": 0.9, "regularization.ema_half_life": None}
    for one, other in ((raw, searched), (searched, raw)):
        assert updated(one, changes(one, other)) == other
