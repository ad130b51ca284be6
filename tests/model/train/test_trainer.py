"""Training: seeds, marks, rates, dropout, precision and devices."""

import math

import numpy as np
import pytest
import torch

from model.data.prepare import prepare
from model.errors import ConfigError
from model.nn.init import initial_weights
from model.train.run_state import RunState
from model.train.trainer import Trainer
from tests.support.cases import covering
from tests.support.tiny import UPDATE, alone, assert_close, curves, tiny


def test_equal_configs_give_equal_losses_to_the_last_bit():
    config = tiny({"regularization.dropout": 0.1})
    assert alone(config) == alone(config)
    twins = curves(Trainer([config, config]))
    assert twins[0] == twins[1]


def test_another_seed_gives_other_losses():
    assert alone(tiny())[0].val_loss != alone(tiny({"run.seed": 1}))[0].val_loss


@pytest.mark.parametrize("layout", ["stream", "documents"])
def test_accumulating_four_batches_of_four_equals_a_batch_of_sixteen(layout):
    common = {"data.name": "lines", "data.layout": layout, "run.tokens": 12 * 4 * UPDATE, "schedule.warmup": 0.0}
    four = alone(tiny(common | {"run.batch_size": 4, "run.grad_accum": 4}))
    sixteen = alone(tiny(common | {"run.batch_size": 16}))
    assert_close(four, sixteen, 2e-5)


@pytest.mark.parametrize("batch_size", [4, 8])
@pytest.mark.parametrize("grad_accum", [1, 2, 4])
def test_rungs_come_at_the_same_tokens_for_every_update_size(batch_size, grad_accum):
    align = 8 * 4 * 16
    values = {"run.tokens": 3000, "run.rungs": 3, "run.align": align}
    found = alone(tiny(values | {"run.batch_size": batch_size, "run.grad_accum": grad_accum}))
    assert [(m.rung, m.tokens) for m in found] == [(rung, rung * 2 * align) for rung in (1, 2, 3)]


def test_without_a_common_multiple_a_rung_is_the_first_update_past_its_mark():
    values = {"run.tokens": 1600, "run.rungs": 4, "run.align": 100, "run.batch_size": 3}  # updates of 48
    found = alone(tiny(values))
    assert [m.tokens for m in found] == [432, 816, 1200, 1632]
    assert [m.rung for m in found] == [1, 2, 3, 4]


def test_training_lowers_the_loss_below_the_unigram_table():
    from model.data.ngrams import anchors

    config = tiny({"run.tokens": 300 * UPDATE, "optimizer.lr": 1e-2})
    last = alone(config)[-1]
    assert last.val_loss < anchors(prepare(config.data, config.tokenizer))["unigram"]


def test_attention_written_out_equals_fused():
    assert_close(alone(tiny({"run.attention": "explicit"})), alone(tiny()))


def test_the_loss_of_every_so_many_updates_is_multiplied():
    spiking = Trainer([tiny({"run.spike_every": 3, "run.spike_scale": 50.0, "run.grad_accum": 2})])
    plain = Trainer([tiny({"run.grad_accum": 2})])
    for update in range(1, 7):
        norms = []
        for trainer in (spiking, plain):
            trainer.optimizer.measured.zero_()
            trainer._train(2)
            norms.append(float(trainer.optimizer.measured[0, 0]))
            trainer.pack.params.load(0, Trainer([trainer.runs[0].config]).pack.params.tensors(0))
        assert norms[0] / norms[1] == pytest.approx(50.0 if update % 3 == 0 else 1.0, rel=1e-4)


def test_batches_do_not_depend_on_the_model_or_the_optimizer():
    split = prepare(tiny().data, tiny().tokenizer).splits["train"]

    def batches(values):
        run, found = RunState(tiny(values), split), []
        for _ in range(8):
            found.append(run.next_batches(1))
            run.advance()
        run.micro_step = 0
        np.testing.assert_array_equal(np.concatenate(found, 1), run.next_batches(8))
        return np.array(found)

    wanted = batches({})
    for values in ({"model.n_layer": 2}, {"optimizer.lr": 0.5}, {"regularization.dropout": 0.5}, {"run.tokens": 9999}):
        np.testing.assert_array_equal(batches(values), wanted)
    assert (batches({"run.seed": 1}) != wanted).any()
    by_eight = batches({"run.batch_size": 8})[:4]
    np.testing.assert_array_equal(by_eight.swapaxes(1, 2).reshape(32, 2, 16), wanted.swapaxes(1, 2).reshape(32, 2, 16))


def test_dropout_masks_differ_by_micro_step_and_seed_and_by_nothing_else():
    split = prepare(tiny().data, tiny().tokenizer).splits["train"]

    def keys(values):
        run, found = RunState(tiny(values), split), []
        wanted = run.dropout_keys(50)
        for _ in range(50):
            found += run.dropout_keys(1)
            run.advance()
        assert found == wanted
        return found

    assert keys({"run.batch_size": 2, "model.n_layer": 3, "optimizer.lr": 0.5}) == keys({})
    assert len(set(keys({}) + keys({"run.seed": 1}))) == 100
    assert all(-(2**31) <= key < 2**31 for key in keys({}))


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_an_update_has_the_rate_of_the_middle_of_its_share_of_the_run(grad_accum):
    config = tiny({"run.grad_accum": grad_accum, "schedule.warmup": 0.5, "run.rungs": 6})
    total = 24 // grad_accum
    for m in alone(config):
        wanted = config.schedule.multiplier((m.updates - 0.5) / total) * config.optimizer.lr
        assert m.lr == pytest.approx(wanted, rel=1e-12)
    trainer = Trainer([config])
    trainer._train(grad_accum)
    assert trainer.runs[0].lr() == pytest.approx(config.optimizer.lr * 0.5 / total / 0.5)


def test_one_more_layer_changes_no_initial_weight_of_another():
    one, two = (initial_weights(tiny({"model.n_layer": n}).model, 257, seed=3) for n in (1, 2))
    shared = [name for name in one if name in two]
    assert "blocks.0.attn.qkv.weight" in shared
    for name in shared:
        scale = 2**0.5 if name.endswith("proj.weight") else 1.0  # residual projections shrink with depth
        torch.testing.assert_close(two[name] * scale, one[name], rtol=0 if scale == 1 else 1e-6, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(ConfigError, match=r"run\.device: no cuda device on this machine.*got cuda"):
        Trainer([tiny({"run.device": "cuda"})])


def test_tf32_is_refused_where_the_device_has_none():
    with pytest.raises(ConfigError, match=r"run\.precision: this device has no TF32; use auto or fp32, got tf32"):
        Trainer([tiny({"run.precision": "tf32"})])


@pytest.mark.parametrize(
    ("precision", "values"),
    covering(["bf16", "fp16"], [{}, {"regularization.dropout": 0.1, "model.position": "rope"}]),
)
def test_half_precision_trains_near_fp32(precision, values):
    values = values | {"run.tokens": 60 * UPDATE, "optimizer.lr": 1e-2}
    half, full = alone(tiny(values | {"run.precision": precision})), alone(tiny(values))
    assert [m.val_loss for m in half] == pytest.approx([m.val_loss for m in full], abs=0.02)
    assert half[-1].val_loss < half[0].val_loss
    assert half != full
    pair = curves(Trainer([tiny(values | {"run.precision": precision, "run.seed": seed}) for seed in (1, 0)]))
    assert [m.val_loss for m in pair[1]] == pytest.approx([m.val_loss for m in half], abs=0.02)


def test_an_overflowing_fp16_gradient_is_dropped_and_the_scale_halved():
    trainer = Trainer([tiny({"run.precision": "fp16"})])
    before = trainer.pack.params.weights.clone()
    trainer.pack.params.grads.fill_(math.inf)
    trainer.optimizer.load(trainer.runs)
    trainer.optimizer.prepare(trainer.runs, 1)
    trainer.runs[0].advance()
    trainer.optimizer.step(trainer.runs, [0])
    trainer.optimizer.store(trainer.runs)
    assert torch.equal(trainer.pack.params.weights, before)
    assert not trainer.pack.params.grads.any()
    assert trainer.runs[0].steps == 0
    assert trainer.pack.loss_scales == [2.0**15]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_defaults_of_a_gpu_train():
    found = alone(tiny({"run.device": "auto", "run.tokens": 60 * UPDATE, "optimizer.lr": 1e-2}))
    assert found[-1].val_loss < found[0].val_loss
