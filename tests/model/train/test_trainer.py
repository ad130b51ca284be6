import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import model.train.evaluate
from model.config import TrainConfig
from model.data.prepare import prepare
from model.errors import ConfigError
from model.nn.init import initial_weights
from model.optim.param_groups import group_of
from model.section import updated
from model.train.evaluate import Scores
from model.train.run_state import RunState
from model.train.trainer import Trainer
from tests.support.cases import covering
from tests.support.tiny import UPDATE, alone, curves, timeless, tiny

# Hyperparameters in which the runs of a pack may differ. Marks are rounded to the update of grad_accum 4.
MIXED = [
    {"optimizer.lr": 3e-3, "run.grad_accum": 1},
    {"optimizer.lr": 1e-2, "run.grad_accum": 2, "optimizer.beta2": 0.999, "run.seed": 1, "schedule.name": "wsd"},
    {"optimizer.lr": 3e-2, "run.grad_accum": 4, "optimizer.weight_decay": 0.0, "clip.max_norm": 1e6, "run.seed": 2},
    {"optimizer.lr": 1e-3, "optimizer.beta1": 0.5, "clip.max_norm": 0.1, "schedule.warmup": 0.5, "run.seed": 3},
    {"optimizer.lr": 5e-3, "run.grad_accum": 2, "optimizer.eps": 1e-4, "schedule.name": "constant", "run.tokens": 1024},
]
DIVERGING = {"optimizer.lr": 1e30, "clip.max_norm": 1e30, "schedule.warmup": 0.0}

gpu = pytest.mark.gpu
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def mixed(dropout: float, values: dict | None = None) -> list[TrainConfig]:
    common = {"run.align": 4 * UPDATE, "regularization.dropout": dropout} | (values or {})
    configs = [tiny(common | own) for own in MIXED]
    if dropout:  # The dropout sites may differ too, except attention: fused attention is part of the shape.
        configs[1] = updated(configs[1], {"regularization.residual_dropout": 0.0})
        configs[2] = updated(configs[2], {"regularization.dropout": 0.3})
    return configs


def assert_close(found, wanted, tolerance=1e-5):
    assert [(m.rung, m.tokens, m.updates, m.lr) for m in found] == [(m.rung, m.tokens, m.updates, m.lr) for m in wanted]
    for field in ("val_loss", "val_bpb", "train_loss", "grad_norm"):
        a, b = ([getattr(m, field) for m in ms] for ms in (found, wanted))
        assert a == pytest.approx(b, abs=tolerance, rel=tolerance, nan_ok=True), field


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


def test_the_score_of_given_weights_does_not_depend_on_the_training_batch():
    scores = [Trainer([tiny({"run.batch_size": B})]).validation.evaluate() for B in (1, 4, 16)]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("tokens", [1, 100, 1600])
def test_the_score_does_not_depend_on_the_evaluation_batch(tokens, monkeypatch):
    (wanted,), wanted_hits = Trainer([tiny()]).validation.evaluate()
    monkeypatch.setattr(model.train.evaluate, "EVAL_TOKENS", tokens)
    (nats,), hits = Trainer([tiny()]).validation.evaluate()
    assert nats == pytest.approx(wanted, rel=1e-6)
    assert hits == wanted_hits


@pytest.mark.parametrize("layout", ["stream", "documents"])
def test_val_loss_is_the_mean_over_every_target_once(layout):
    config = tiny({"data.layout": layout, "data.val_fraction": 0.05, "regularization.dropout": 0.2})
    trainer = Trainer([config])
    trainer._train(5)
    split, pack, T = trainer.prepared.splits["val"], trainer.pack, config.model.context
    tokens = split.tokens.astype(np.int64)
    ends = split.starts if layout == "documents" else [0, len(tokens) - 1]
    nats, hits, seen = 0.0, 0, 0
    for start, end in pairwise(ends):
        for first in range(start, end, T):
            last = min(first + T, end)
            with torch.no_grad():
                logits = pack.network(pack.leaves, torch.from_numpy(tokens[None, None, first:last]))[0].double()
            for row, target in zip(logits, tokens[first + 1 : last + 1], strict=True):
                nats += float(row.logsumexp(0) - row[target])
                hits += int(row.argmax() == target)
                seen += 1
    assert seen == split.n_targets
    (found,), (found_hits,) = trainer.validation.evaluate()
    assert found == pytest.approx(nats, rel=1e-5)
    assert found_hits == hits
    m = trainer._metrics(0, Scores([found], [found_hits]), None)
    assert m.val_loss == pytest.approx(nats / seen, rel=1e-5)
    assert m.val_accuracy == pytest.approx(hits / seen)
    assert m.val_perplexity == pytest.approx(math.exp(nats / seen), rel=1e-4)
    text = trainer.prepared.vocabulary().decode(tokens).encode()
    assert m.val_bpb == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)


def test_validation_reads_the_validation_split_and_no_other():
    config = tiny()
    prepared = prepare(config.data, config.tokenizer)
    without = prepared.splits | {"train": prepared.splits["val"], "test": prepared.splits["train"]}
    wanted = Trainer([config], prepared).validation.evaluate()
    assert (
        Trainer([config], type(prepared)(prepared.folder, "", prepared.vocab_size, without)).validation.evaluate()
        == wanted
    )


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


def test_train_loss_is_the_mean_since_the_last_rung():
    fine = alone(tiny({"run.rungs": 6}))
    coarse = alone(tiny({"run.rungs": 3}))
    assert [m.val_loss for m in coarse] == [m.val_loss for m in fine[1::2]]
    means = [(a.train_loss + b.train_loss) / 2 for a, b in zip(fine[::2], fine[1::2], strict=True)]
    assert [m.train_loss for m in coarse] == pytest.approx(means, rel=1e-9)


def test_grad_norm_and_clipped_are_means_over_the_updates_since_the_last_rung():
    loose = alone(tiny({"clip.max_norm": 1e6}))
    tight = alone(tiny({"clip.max_norm": 1e-6}))
    assert [m.clipped for m in loose] == [0.0] * 3
    assert [m.clipped for m in tight] == [1.0] * 3
    assert all(0.1 < m.grad_norm < 10 for m in loose + tight)


def test_training_lowers_the_loss_below_the_unigram_table():
    from model.data.ngrams import anchors

    config = tiny({"run.tokens": 300 * UPDATE, "optimizer.lr": 1e-2})
    last = alone(config)[-1]
    assert last.val_loss < anchors(prepare(config.data, config.tokenizer))["unigram"]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_of_the_weights_is_scored_beside_them(decay):
    config = tiny({"regularization.ema": decay, "optimizer.lr": 1e-2})
    trainer, plain = Trainer([config]), alone(updated(config, {"regularization.ema": None}))
    trainer.validation.evaluate()  # changes no state
    average = trainer.pack.params.weights.clone()
    for t in range(1, 9):
        trainer._train(1)
        rate = min(decay, (1 + t) / (10 + t))
        average = rate * average + (1 - rate) * trainer.pack.params.weights
    torch.testing.assert_close(trainer.pack.params.state["average"], average, rtol=1e-5, atol=1e-7)
    raw = trainer.pack.params.weights.clone()
    _, ((nats,), _) = trainer._scores([0])
    assert torch.equal(trainer.pack.params.weights, raw)
    trainer.pack.params.weights.copy_(average)
    assert nats == pytest.approx(trainer.validation.evaluate()[0][0], rel=1e-5)
    found = alone(config)
    assert [m.val_loss for m in found] == [m.val_loss for m in plain]
    assert found[0].ema_val_loss == pytest.approx(nats / trainer.prepared.splits["val"].n_targets, rel=1e-6)
    assert found[0].ema_val_loss != found[0].val_loss or decay == 0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_and_updates_are_measured_by_group_at_the_last_update_of_a_rung(optimizer):
    values = {"optimizer.name": optimizer, "model.tied": False, "clip.max_norm": 0.01}
    trainer = Trainer([tiny(values)])
    trainer._train(7)
    before, grads = trainer.pack.params.weights.clone(), []
    update = trainer.pack.params.update

    def spy(*arguments):
        grads.append(trainer.pack.params.grads.clone())  # before clipping
        return update(*arguments)

    trainer.pack.params.update = spy
    _, metrics = next(iter(trainer))
    groups = {"matrix": [], "embedding": [], "head": [], "scalar": []}
    for name, (a, b) in trainer.pack.params.spans.items():
        groups[group_of(name, trainer.pack.params.shapes[name])] += range(a, b)
    for group, at in groups.items():
        moved = (trainer.pack.params.weights - before)[0, at].norm() / before[0, at].norm()
        assert metrics[0].grad_norms[group] == pytest.approx(float(grads[-1][0, at].norm()), rel=1e-5)
        assert metrics[0].update_ratios[group] == pytest.approx(float(moved), rel=1e-4)


@pytest.mark.parametrize("model", ["gpt", "moe"])
@pytest.mark.parametrize("size", [1, 2])
def test_diagnostics_change_no_bit(model, size):
    configs = [tiny({"model.name": model, "model.n_layer": 2, "run.seed": seed}) for seed in range(size)]
    plain, found = (curves(Trainer([updated(c, {"run.diagnostics": on}) for c in configs])) for on in (False, True))
    for lane in plain:
        for m, wanted in zip(found[lane], plain[lane], strict=True):
            assert m._replace(attention_entropy=None, expert_load=None, kurtosis=None) == wanted
            assert len(m.attention_entropy) == len(m.kurtosis) == 2
            assert all(0 < entropy < math.log(16) for entropy in m.attention_entropy)
            assert (m.expert_load is None) == (model == "gpt")
            for load in m.expert_load or []:
                assert len(load) == 8
                assert sum(load) == pytest.approx(1.0)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("size", [1, 2])
def test_the_test_split_is_scored_once_at_the_end(ema, size):
    configs = [tiny({"regularization.ema": ema, "run.seed": seed}) for seed in range(size)]
    plain = curves(Trainer(configs))
    scored = curves(Trainer([updated(c, {"run.test": True}) for c in configs]))
    prepared = prepare(configs[0].data, configs[0].tokenizer)
    swapped = dataclasses.replace(prepared, splits=prepared.splits | {"val": prepared.splits["test"]})
    other = curves(Trainer(configs, swapped))
    for lane in plain:
        *early, last = scored[lane]
        assert early == plain[lane][:-1]
        end = other[lane][-1]
        assert (last.test_loss, last.test_bpb) == (end.val_loss, end.val_bpb)
        assert (last.ema_test_loss, last.ema_test_bpb) == (end.ema_val_loss, end.ema_val_bpb)
        assert last.test_loss != last.val_loss
        unscored = {"test_loss": None, "test_bpb": None, "ema_test_loss": None, "ema_test_bpb": None}
        assert last._replace(**unscored) == plain[lane][-1]


def test_diagnostics_do_not_depend_on_who_shares_the_pack(monkeypatch):
    config = tiny({"run.diagnostics": True})
    monkeypatch.setattr(model.train.evaluate, "EVAL_LOGITS", 257 * 16 * 4)  # four rows alone, one in a pack of three
    together, wanted = curves(Trainer([config] * 3))[0], alone(config)
    for m, w in zip(together, wanted, strict=True):
        assert m.attention_entropy == pytest.approx(w.attention_entropy, abs=1e-5)
        assert m.kurtosis == pytest.approx(w.kurtosis, abs=1e-4)


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


def test_metrics_are_plain_numbers():
    (_, metrics), *_ = Trainer([tiny()])
    numbers = dict(metrics[0]._asdict())
    for by_group in (numbers.pop("grad_norms"), numbers.pop("update_ratios")):
        assert set(by_group) == {"matrix", "embedding", "scalar"}
        assert {type(value) for value in by_group.values()} == {float}
    optional = {"ema_val_loss", "ema_val_bpb", "attention_entropy", "expert_load", "kurtosis"}
    optional |= {"test_loss", "test_bpb", "ema_test_loss", "ema_test_bpb"}
    assert {key for key, value in numbers.items() if value is None} == optional
    assert {type(value) for key, value in numbers.items() if key not in optional} == {int, float}
    assert metrics[0].seconds > 0
    assert metrics[0].tokens_per_second > 0


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


@gpu
@no_gpu
@pytest.mark.parametrize("size", [1, 5])
def test_a_run_in_a_pack_equals_the_run_alone_on_a_gpu(size):
    configs = mixed(0.1, {"run.device": "cuda", "run.precision": "fp32", "run.compile": "off"})[:size]
    together = curves(Trainer(configs))
    for lane, config in enumerate(configs):
        assert_close(together[lane], alone(config), 1e-3)
        on_cpu = alone(updated(config, {"run.device": "cpu"}))
        assert_close(together[lane], on_cpu, 1e-2)


@gpu
@no_gpu
def test_the_defaults_of_a_gpu_train():
    found = alone(tiny({"run.device": "auto", "run.tokens": 60 * UPDATE, "optimizer.lr": 1e-2}))
    assert found[-1].val_loss < found[0].val_loss
