"""What is measured at a rung, on which split, and over which updates."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import model.train.evaluate
from model.data.prepare import prepare
from model.optim.param_groups import group_of
from model.section import updated
from model.train.evaluate import Scores
from model.train.trainer import Trainer
from tests.support.tiny import alone, curves, tiny


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
