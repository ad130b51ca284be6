import math

import pytest
import torch

from model.section import updated
from model.train.coordinates import activation_sizes, layer_names
from model.train.trainer import Trainer
from tests.support.packs import build_network
from tests.support.tiny import tiny


def test_sizes_are_mean_absolute_values_of_each_layer_at_the_start():
    config = tiny({"model.n_layer": 2, "model.tied": False, "data.layout": "stream"})
    sizes = activation_sizes(config, 1, [0, 7])
    assert len(sizes) == 2
    assert list(sizes[0]) == layer_names(config.model)
    assert layer_names(config.model)[:4] == ["embedding", "blocks.0.attn", "blocks.0.mlp", "blocks.0"]
    trainer = Trainer([config])
    x, _ = trainer.validation.dataset.gather(range(config.run.batch_size))
    x = torch.from_numpy(x)
    for lane, seed in enumerate((0, 7)):
        network = build_network(config.model, trainer.prepared.vocab_size, seed)
        with torch.no_grad():
            embedded = network.embed(x, network.context(config.model.context))
            logits = network(x)
        assert sizes[0]["embedding"][lane] == pytest.approx(embedded.abs().mean().item(), rel=1e-5)
        assert sizes[0]["logits"][lane] == pytest.approx(logits.abs().mean().item(), rel=1e-5)


def test_an_update_at_the_peak_rate_moves_the_activations_and_a_tiny_rate_does_not():
    config = tiny({"schedule.warmup": 0.9, "regularization.dropout": 0.5, "run.grad_accum": 2})
    small = activation_sizes(updated(config, {"optimizer.lr": 1e-9}), 2, [0])
    large = activation_sizes(updated(config, {"optimizer.lr": 0.1}), 2, [0])
    assert small[2]["logits"][0] == pytest.approx(small[0]["logits"][0], rel=1e-4)
    assert large[0]["logits"][0] == small[0]["logits"][0]
    assert abs(math.log(large[2]["logits"][0] / large[1]["logits"][0])) > 0.1


def test_measuring_changes_no_bit_of_a_run():
    config = tiny({"run.rungs": 1})
    plain, measured = Trainer([config]), Trainer([config])
    measured.validation.activation_sizes()
    assert [m[0].val_loss for _, m in plain] == [m[0].val_loss for _, m in measured]
