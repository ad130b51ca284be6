"""The configuration of a run: its fields, their combinations, and what a pack may mix."""

import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from model.config import TrainConfig
from model.optim.optimizers import SGD
from model.section import component, flat, updated
from tests.support.field_changes import SECTIONS
from tests.support.tiny import tiny

EXAMPLES = [
    {},
    {"optimizer.beta2_half_life": 5e4, "optimizer.decay_horizon": 1e6, "regularization.ema_half_life": 2e4},
    {"optimizer.name": "sgd", "optimizer.nesterov": True, "clip.name": "none"},
    {"schedule.name": "wsd", "schedule.floor": 0.25, "regularization.mlp_dropout": 0.1},
    {"data.name": "lines", "data.path": "some/file.txt", "tokenizer.name": "chars", "run.rungs": 3},
    {"model.mlp": "swiglu", "model.init_std": 0.1, "run.seed": 2**63 - 1},
]


@pytest.mark.parametrize("values", EXAMPLES, ids=str)
def test_a_config_survives_json(values):
    config = updated(TrainConfig(), values)
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("values", EXAMPLES, ids=str)
def test_flat_and_updated_are_inverse(values):
    config = updated(TrainConfig(), values)
    assert updated(TrainConfig(), flat(config)) == config
    assert flat(updated(TrainConfig(), flat(config))) == flat(config)
    assert {path: flat(config)[path] for path in values} == values
    assert updated(config, {}) == config


def test_a_config_is_two_levels_deep():
    assert all(path.count(".") == 1 for path in flat(TrainConfig()))


def test_another_component_keeps_the_explicit_fields_that_it_has():
    explicit = {"optimizer.lr": 0.02, "optimizer.beta1": 0.8, "optimizer.weight_decay": 0.3}
    config = updated(updated(TrainConfig(), explicit), {"optimizer.name": "sgd"})
    assert config.optimizer.model_dump() == {
        **SGD().model_dump(),
        "lr": 0.02,
        "weight_decay": 0.3,
    }
    # what was not said takes the new component's default
    assert updated(TrainConfig(), {"optimizer.name": "sgd"}).optimizer.lr == 0.1
    both = updated(TrainConfig(), {"optimizer.momentum": 0.5, "optimizer.name": "sgd"})
    assert both.optimizer.momentum == 0.5


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.lrr": 0.1},
        {"optimizr.lr": 0.1},
        {"optimizer.momentum": 0.9},
        {"optimizer.lr.peak": 0.1},
        {"optimizer.name": "adagrad"},
        {"run.tokens": 0},
        {"optimizer.beta2": 1.0},
        {"regularization.dropout": 1.0},
        {"optimizer.lr": math.inf},
        {"optimizer.lr": math.nan},
        {"model.n_head": 5},
        {"model.n_embd": 12, "model.n_head": 4, "model.position": "rope"},
        {"run.tokens": 100},
        {"run.align": 700, "run.tokens": 8 * 800, "run.batch_size": 12},
        {"optimizer.scale_lr": "linear"},
        {"optimizer.scale_lr_tokens": 512},
        {"optimizer.scale_lr": 1.5, "optimizer.scale_lr_tokens": 512},
        {"optimizer.beta2": None},
        {"optimizer.name": "sgd", "optimizer.weight_decay": None},
        {"run.spike_every": 5},
        {"run.spike_scale": 5.0},
        {"optimizer.name": "sgd", "optimizer.momentum": 0.0, "optimizer.nesterov": True},
        {"model.parametrization": "mup"},
    ],
    ids=str,
)
def test_a_wrong_value_or_key_is_refused(values):
    with pytest.raises(ValidationError):
        updated(TrainConfig(), values)


def test_a_config_cannot_be_written_to():
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().run.seed = 1


def test_messages_say_the_rule_and_the_value():
    with pytest.raises(ValidationError, match="n_embd must be a multiple of n_head, got 96 and 5"):
        updated(TrainConfig(), {"model.n_head": 5})
    with pytest.raises(ValidationError, match=r"rungs x batch_size x grad_accum x context = 4096.*got 100"):
        updated(TrainConfig(), {"run.tokens": 100})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer.head_lr": 0.1}, "optimizer.head_lr: has no effect on a tied head.*got 0.1"),
        ({"optimizer.head_decay": 0.1}, "optimizer.head_decay: has no effect on a tied head.*got 0.1"),
        (
            {"schedule.name": "onecycle", "schedule.beta1_dip": 0.8, "optimizer.name": "sgd"},
            "schedule.beta1_dip: sgd has no beta1.*got 0.8",
        ),
        ({"model.document_mask": True, "data.layout": "documents"}, "model.document_mask: .*data.layout=stream"),
        (
            {"model.norm_gain": "none", "optimizer.scalar_lr": 0.1},
            "optimizer.scalar_lr: the model has no gains.*got 0.1",
        ),
        ({"model.norm_gain": "none", "optimizer.scalar_decay": 0.1}, "optimizer.scalar_decay: the model has no gains"),
        (
            {"schedule.name": "onecycle", "schedule.beta1_dip": 0.9},
            "schedule.beta1_dip: must be below optimizer.beta1 = 0.9, got 0.9",
        ),
        (
            {"schedule.name": "onecycle", "schedule.warmup": 0.0, "schedule.start": 0.2},
            "start has no effect if warmup is 0",
        ),
        ({"schedule.name": "wsd", "schedule.floor": 1.0, "schedule.decay": 0.5}, "decay has no effect if floor is 1"),
        (
            {"optimizer.name": "lion", "optimizer.beta1": 0.0, "optimizer.beta2": 0.5},
            "beta2 has no effect if beta1 is 0",
        ),
        (
            {f"regularization.{site}_dropout": 0.1 for site in ("embedding", "attention", "residual", "mlp")}
            | {"regularization.dropout": 0.2},
            "dropout has no effect if every site has a probability",
        ),
        (
            {
                "optimizer.name": "muon",
                "optimizer.adam_lr": 0.1,
                "optimizer.embedding_lr": 0.1,
                "optimizer.scalar_lr": 0.1,
            },
            "optimizer.adam_lr: has no effect if every group has its own rate.*got 0.1",
        ),
        ({"run.attention": "explicit", "regularization.dropout": 0.1}, "run.attention: .*leave it auto, got explicit"),
    ],
    ids=str,
)
def test_a_field_that_means_nothing_in_a_combination_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        updated(TrainConfig(), values)


def test_every_field_says_what_it_means():
    for key, kinds in SECTIONS.items():
        for kind in kinds:
            assert (kind.__doc__ or "").strip(), kind
            for name, field in kind.model_fields.items():
                assert name == "name" or (field.description or "").strip(), f"{key}.{name} of {kind.__name__}"


def test_every_field_has_a_bounded_type():
    for kinds in SECTIONS.values():
        for kind in kinds:
            for name, field in kind.model_fields.items():
                numbers = {int, float} & {field.annotation, *get_args(field.annotation)}
                bounded = field.metadata or get_origin(field.annotation) is Literal or not numbers
                bounded = bounded or any(hasattr(a, "__metadata__") for a in get_args(field.annotation))
                assert bounded, f"{kind.__name__}.{name}"


def test_a_word_finds_its_component():
    config = TrainConfig()
    for key, kinds in SECTIONS.items():
        for kind in kinds:
            if "name" in kind.model_fields and len(kinds) > 1:
                assert component(config, key, kind.model_fields["name"].default) is kind
    assert component(config, "optimizer", "adagrad") is None


LOOSE = [
    {"data.drop_documents": 0.1, "data.shuffle_documents": True},
    {"data.curriculum": "short"},
    {"optimizer.lr": 0.3},
    {"optimizer.beta2": 0.5},
    {"optimizer.weight_decay": 0.0},
    {"schedule.name": "wsd"},
    {"schedule.warmup": 0.3},
    {"clip.max_norm": 3.0},
    {"optimizer.embedding_lr": 0.1},
    {"optimizer.scale_lr": "linear", "optimizer.scale_lr_tokens": 512},
    {"optimizer.scale_lr": 0.25, "optimizer.scale_lr_tokens": 512},
    {"optimizer.beta1_half_life": 2e4, "optimizer.beta2_half_life": 5e4, "optimizer.decay_horizon": 1e6},
    {"schedule.name": "onecycle", "schedule.beta1_dip": 0.5},
    {"run.spike_every": 10, "run.spike_scale": 50.0},
    {"regularization.mlp_dropout": 0.3},
    {"regularization.dropout": 0.3, "regularization.attention_dropout": 0.0},
    {"run.tokens": 800_000},
    {"run.rungs": 3},
    {"run.align": 1024},
    {"run.grad_accum": 2},
    {"run.seed": 7},
    {"run.keep_checkpoints": "none"},
]
TIGHT = [
    {"data.synthetic": 0.1},
    {"data.layout": "documents"},
    {"tokenizer.vocab_size": 300},
    {"model.n_layer": 1},
    {"model.n_head": 2},
    {"model.norm_eps": 1e-3},
    {"model.init_std": 0.1},
    {"optimizer.name": "adam"},
    {"optimizer.name": "muon"},
    {"optimizer.layer_decay": 0.9},
    {"clip.name": "none"},
    {"clip.name": "zclip"},
    {"regularization.ema": 0.9},
    {"recovery.name": "skip"},
    {"recovery.spike": 5.0},
    {"run.attention": "explicit"},
    {"regularization.dropout": 0.1},
    {"regularization.attention_dropout": 0.1},
    {"run.batch_size": 4},
    {"run.precision": "bf16"},
    {"run.device": "cpu"},
    {"run.compile": "on"},
]


@pytest.mark.parametrize("values", LOOSE, ids=str)
def test_runs_that_differ_in_numbers_share_a_pack(values):
    assert updated(TrainConfig(), values).pack_key() == TrainConfig().pack_key()


@pytest.mark.parametrize("values", TIGHT, ids=str)
def test_runs_that_differ_in_shape_do_not_share_a_pack(values):
    assert updated(TrainConfig(), values).pack_key() != TrainConfig().pack_key()


def test_marks_are_the_first_updates_at_or_past_equal_shares():
    for tokens, rungs, batch_size, align in product((640, 999, 1000, 5000), (1, 3, 7, 10), (1, 3, 4), (0, 48, 64, 100)):
        values = {"run.tokens": tokens, "run.rungs": rungs, "run.batch_size": batch_size, "run.align": align}
        try:
            config = tiny(values)
        except ValidationError:
            continue
        update, marks = config.update_tokens(), config.marks()
        spacing = Fraction(tokens, rungs)
        step = align or update
        if step <= spacing:
            spacing = Fraction(max(1, round(spacing / step)) * step)
        assert marks == [math.ceil(rung * spacing / update) for rung in range(1, rungs + 1)], values
        assert len(set(marks)) == rungs, values
        assert abs(marks[-1] * update - tokens) <= rungs * step / 2 + update, values


def test_reading_a_config_does_not_load_torch():
    code = "import sys, model.config; model.config.TrainConfig(); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=root, env=dict(os.environ))
    assert done.returncode == 0
