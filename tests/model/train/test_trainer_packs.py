"""Runs that train side by side: each equals the run alone, and changes no bit of its neighbours."""

import math

import pytest
import torch

import model.train.evaluate
from model.config import TrainConfig
from model.section import updated
from model.train.trainer import Trainer
from tests.support.cases import covering
from tests.support.tiny import UPDATE, alone, assert_close, curves, timeless, tiny

# Hyperparameters in which the runs of a pack may differ. Marks are rounded to the update of grad_accum 4.
MIXED = [
    {"optimizer.lr": 3e-3, "run.grad_accum": 1},
    {"optimizer.lr": 1e-2, "run.grad_accum": 2, "optimizer.beta2": 0.999, "run.seed": 1, "schedule.name": "wsd"},
    {"optimizer.lr": 3e-2, "run.grad_accum": 4, "optimizer.weight_decay": 0.0, "clip.max_norm": 1e6, "run.seed": 2},
    {"optimizer.lr": 1e-3, "optimizer.beta1": 0.5, "clip.max_norm": 0.1, "schedule.warmup": 0.5, "run.seed": 3},
    {"optimizer.lr": 5e-3, "run.grad_accum": 2, "optimizer.eps": 1e-4, "schedule.name": "constant", "run.tokens": 1024},
]
DIVERGING = {"optimizer.lr": 1e30, "clip.max_norm": 1e30, "schedule.warmup": 0.0}


def mixed(dropout: float, values: dict | None = None) -> list[TrainConfig]:
    common = {"run.align": 4 * UPDATE, "regularization.dropout": dropout} | (values or {})
    configs = [tiny(common | own) for own in MIXED]
    if dropout:  # The dropout sites may differ too, except attention: fused attention is part of the shape.
        configs[1] = updated(configs[1], {"regularization.residual_dropout": 0.0})
        configs[2] = updated(configs[2], {"regularization.dropout": 0.3})
    return configs


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_run_in_a_pack_equals_the_run_alone(size, dropout):
    configs = mixed(dropout)[:size]
    together = curves(Trainer(configs))
    for lane, config in enumerate(configs):
        assert_close(together[lane], alone(config))


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_run_in_a_pack_equals_the_run_alone_in_every_shape(position):
    shape = {"model.position": position, "model.norm": "rmsnorm", "model.mlp": "swiglu", "model.n_layer": 2}
    configs = mixed(0.1, shape | {"model.bias": True, "model.tied": False, "optimizer.scalar_decay": 0.1})[:2]
    together = curves(Trainer(configs))
    for lane, config in enumerate(configs):
        assert_close(together[lane], alone(config))


def test_a_diverging_run_changes_no_bit_of_its_neighbours():
    good = tiny({"regularization.dropout": 0.1})
    neighbours = [updated(good, {"run.seed": seed}) for seed in range(3)]
    calm = curves(Trainer(neighbours))
    neighbours[1] = updated(good, DIVERGING)
    stormy = curves(Trainer(neighbours))
    assert stormy[0] == calm[0]
    assert stormy[2] == calm[2]
    assert [math.isnan(m.val_loss) for m in stormy[1]] == [True]
    assert stormy[1][0].rung == 1


@pytest.mark.parametrize(
    "values", [DIVERGING, DIVERGING | {"optimizer.name": "sgd", "optimizer.lr": 1e12}], ids=["adamw", "sgd"]
)
def test_a_diverging_run_alone_is_reported_at_once(values):
    found = alone(tiny(values))
    assert len(found) == 1
    assert found[0].rung == 1
    assert found[0].tokens < 8 * UPDATE
    for value in (found[0].val_loss, found[0].val_bpb, found[0].val_accuracy, found[0].val_perplexity):
        assert math.isnan(value)


def test_the_lane_of_a_diverged_run_can_be_given_to_another():
    trainer = Trainer([tiny(DIVERGING), tiny()])
    found = []
    for _, metrics in trainer:
        if 0 in metrics and math.isnan(metrics[0].val_loss):
            trainer.stop(0)
            trainer.start(0, tiny({"run.seed": 5}))
        elif 0 in metrics:
            found.append(timeless(metrics[0]))
    assert_close(found, alone(tiny({"run.seed": 5})))


@pytest.mark.parametrize("lane", [0, 1])
def test_a_refilled_lane_gives_the_curve_of_the_run_alone(lane):
    configs = [tiny(), tiny({"run.seed": 1, "optimizer.lr": 1e-2})]
    late = tiny({"run.seed": 2, "optimizer.lr": 3e-3, "schedule.warmup": 0.5})
    trainer, other = Trainer(configs), 1 - lane
    found = {0: [], 1: []}
    for rung, metrics in trainer:
        assert rung == max(m.rung for m in metrics.values())
        for at, m in metrics.items():
            found[at].append(timeless(m))
        if len(found[lane]) == 1:
            trainer.stop(lane)
            trainer.start(lane, late)
    assert_close(found[other], alone(configs[other]))
    assert_close(found[lane][:1], alone(configs[lane])[:1])
    assert_close(found[lane][1:], alone(late))


def test_an_empty_lane_changes_nothing_for_the_others():
    configs = [tiny({"run.seed": seed}) for seed in range(3)]
    trainer = Trainer(configs)
    found = []
    for rung, metrics in trainer:
        found.append(timeless(metrics[2]))
        if rung == 1:
            trainer.stop(0)
            trainer.stop(1)
    assert_close(found, alone(configs[2]))


def test_iteration_ends_when_no_run_is_left():
    trainer = Trainer([tiny(), tiny({"run.seed": 1})])
    rungs = []
    for rung, _ in trainer:
        rungs.append(rung)
        trainer.stop(0)
        trainer.stop(1)
    assert rungs == [1]
    assert list(trainer) == []


def test_diagnostics_do_not_depend_on_who_shares_the_pack(monkeypatch):
    config = tiny({"run.diagnostics": True})
    monkeypatch.setattr(model.train.evaluate, "EVAL_LOGITS", 257 * 16 * 4)  # four rows alone, one in a pack of three
    together, wanted = curves(Trainer([config] * 3))[0], alone(config)
    for m, w in zip(together, wanted, strict=True):
        assert m.attention_entropy == pytest.approx(w.attention_entropy, abs=1e-5)
        assert m.kurtosis == pytest.approx(w.kurtosis, abs=1e-4)


RULES = [
    {},
    {"optimizer.name": "adam"},
    {"optimizer.name": "sgd"},
    {"optimizer.name": "rmsprop", "optimizer.momentum": 0.5},
    {"optimizer.name": "muon", "optimizer.layer_decay": 0.8, "clip.name": "update-rms"},
    {"optimizer.name": "stable-adamw", "clip.name": "value", "clip.max_value": 0.01},
    {"optimizer.name": "lion", "clip.name": "adagc", "clip.warmup": 4, "regularization.ema": 0.9},
    {"clip.name": "zclip", "clip.warmup": 4, "clip.z": 1.0, "regularization.ema": 0.99},
    {"schedule.name": "onecycle", "schedule.beta1_dip": 0.5},
]


def named(rule: dict) -> str:
    return " ".join(str(value) for path, value in rule.items() if path.endswith(".name")) or "adamw"


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_a_run_in_a_pack_equals_the_run_alone_under_every_rule(rule):
    configs = [tiny(rule | {"run.seed": seed, "optimizer.lr": lr}) for seed, lr in enumerate((3e-3, 1e-3))]
    together = curves(Trainer(configs))
    for lane, config in enumerate(configs):
        wanted = alone(config)
        assert_close(together[lane], wanted)
        for field in ("clipped", "ema_val_loss"):
            a, b = ([getattr(m, field) or 0.0 for m in ms] for ms in (together[lane], wanted))
            assert a == pytest.approx(b, abs=1e-5), field
        for field in ("grad_norms", "update_ratios"):
            for m, w in zip(together[lane], wanted, strict=True):
                assert getattr(m, field) == pytest.approx(getattr(w, field), rel=1e-3), field


@pytest.mark.parametrize(("rule", "size"), covering(RULES, [1, 3]), ids=str)
def test_a_resumed_run_continues_as_if_nothing_had_happened(rule, size, tmp_path):
    common = rule | {"regularization.dropout": 0.1, "run.grad_accum": 2, "run.rungs": 4}
    configs = [tiny(common | {"run.seed": seed}) for seed in range(size)]
    wanted = curves(Trainer(configs))
    first = Trainer(configs)
    for rung, _ in first:
        if rung == 2:
            for lane in range(size):
                first.save(lane, tmp_path / str(lane))
            break
    second = Trainer(configs)
    for lane in range(size):
        second.resume(lane, tmp_path / str(lane))
    found = curves(second)
    assert found == {lane: ms[2:] for lane, ms in wanted.items()}


def test_a_run_resumed_at_its_end_is_over(tmp_path):
    trainer = Trainer([tiny()])
    for _ in trainer:
        trainer.save(0, tmp_path)
    again = Trainer([tiny()])
    again.resume(0, tmp_path)
    assert list(again) == []


def test_runs_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="pack_key"):
        Trainer([tiny(), tiny({"model.n_embd": 32})])
    trainer = Trainer([tiny()])
    for values in ({"run.precision": "bf16"}, {"run.compile": "on"}, {"regularization.dropout": 0.1}):
        with pytest.raises(ValueError, match="pack_key"):
            trainer.start(0, tiny(values))
    trainer.start(0, tiny({"run.device": "auto", "run.precision": "fp32", "run.compile": "off"}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", [1, 5])
def test_a_run_in_a_pack_equals_the_run_alone_on_a_gpu(size):
    configs = mixed(0.1, {"run.device": "cuda", "run.precision": "fp32", "run.compile": "off"})[:size]
    together = curves(Trainer(configs))
    for lane, config in enumerate(configs):
        assert_close(together[lane], alone(config), 1e-3)
        on_cpu = alone(updated(config, {"run.device": "cpu"}))
        assert_close(together[lane], on_cpu, 1e-2)
