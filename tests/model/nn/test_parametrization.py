"""The rules of model.parametrization against written-out tables: EleutherAI/nanoGPT-mup@b2a5e60 (mup), and the same
repository @6f8bc3b with table 1 of Dey et al. 2025, arXiv:2505.01618 (completep, alpha = 1)."""

import math

import pytest
import torch
from pydantic import ValidationError

from model.config import TrainConfig
from model.data.batches import TrainingBatches
from model.nn.architecture import GPT
from model.nn.init import initial_weights
from model.nn.parametrization import Factors, attention_scale, factors
from model.section import updated
from model.train.trainer import Trainer
from tests.support.packs import build_network, perturbed
from tests.support.small_gpt import VOCAB, tokens
from tests.support.tiny import UPDATE, alone, curves, tiny

WIDE = GPT(n_layer=6, n_head=16, n_embd=256)  # 4 times as wide and 3 times as deep as the base
MUP, COMPLETEP = {"parametrization": "mup", "base_width": 64}, {"parametrization": "completep", "base_width": 64}
COMPLETEP["base_depth"] = 2
SMALL = {
    "mup": {"model.parametrization": "mup", "model.base_width": 8},
    "completep": {"model.parametrization": "completep", "model.base_width": 8, "model.base_depth": 1},
}
SIZE = {"model.n_layer": 3, "model.n_embd": 32, "model.n_head": 4, "model.bias": True, "model.tied": False}
M, L = 4, 3  # of SIZE: ratios of width and depth


def test_factors_are_those_of_the_tables():
    assert factors(WIDE) == Factors(1, 1, 1, 1, 1, 1)
    assert factors(WIDE.model_copy(update=MUP)) == Factors(0.5, 1 / 4, 1, 1, 1, 1 / 4)
    assert factors(WIDE.model_copy(update=COMPLETEP)) == Factors(0.5, 1 / 4, 4, 1 / 12, 1 / 3, 1 / 4)
    assert [attention_scale(WIDE.model_copy(update=values)) for values in ({}, MUP, COMPLETEP)] == [
        None,
        1 / 16,
        1 / 16,
    ]


@pytest.mark.parametrize("init", ["normal", "scaled", "kaiming", "glorot"])
@pytest.mark.parametrize("values", [MUP, COMPLETEP], ids=["mup", "completep"])
def test_hidden_matrices_start_with_the_variance_of_the_base_divided_by_the_width_ratio(values, init):
    wide = initial_weights(WIDE.model_copy(update=values | {"init": init, "embedding_projection": True}), 97, 0)
    base = initial_weights(WIDE.model_copy(update={"init": init, "n_embd": 64, "n_head": 4}), 97, 0)
    for name in ("blocks.0.attn.qkv.weight", "blocks.5.mlp.fc.weight", "blocks.1.attn.proj.weight"):
        wanted = base[name].std() / 2
        if values is COMPLETEP and init == "scaled" and "proj" in name:
            wanted *= math.sqrt(2 * 6)
        assert wide[name].std() == pytest.approx(wanted, rel=0.03), name
    assert wide["wte.weight"].std() == pytest.approx(0.02, rel=0.03)
    assert wide["embedding_projection.weight"].std() == pytest.approx(1 / 16, rel=0.03)  # orthogonal: spectral norm 1


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_multipliers_in_the_network_equal_those_written_into_its_weights(kind, tied):
    shape = GPT(n_layer=L, n_head=4, n_embd=32, context=8, bias=True, mlp="swiglu", tied=tied)
    config = shape.model_copy(update={key.removeprefix("model."): value for key, value in SMALL[kind].items()})
    network, plain = perturbed(build_network(config, VOCAB, 0)), build_network(shape, VOCAB, 0)
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(weights[name])
            if ".qkv." in name:  # queries: q.k / 8 = (q / sqrt(8)).k / sqrt(8)
                p[:32] /= math.sqrt(8)
            if ".proj." in name and kind == "completep":
                p /= L
        logits = plain(tokens()) / M
    torch.testing.assert_close(network(tokens()), logits, rtol=1e-4, atol=1e-5)


def written_out(kind: str, config: TrainConfig, network: torch.nn.Module) -> torch.optim.AdamW:
    """Return PyTorch's AdamW with the groups of the tables: learning rate and weight decay of each parameter."""
    lr, decay = config.optimizer.lr, config.optimizer.weight_decay
    groups = []
    for name, p in network.named_parameters():
        hidden = name.startswith("blocks.") and p.ndim == 2
        own = {"lr": lr / M if hidden else lr, "weight_decay": 0.0 if p.ndim == 1 else decay}
        if hidden and kind == "completep":
            own["weight_decay"] *= M
        groups.append({"params": [p], **own})
    eps = config.optimizer.eps / (M * L) if kind == "completep" else config.optimizer.eps
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=eps)


@pytest.mark.parametrize("recovery", ["stop", "skip"])  # two ways to compute the numbers of a step
@pytest.mark.parametrize("kind", SMALL)
def test_two_runs_of_a_pack_train_as_by_torch_with_the_groups_of_the_table(kind, recovery):
    values = SIZE | SMALL[kind] | {"clip.name": "none", "schedule.name": "constant", "schedule.warmup": 0.0}
    values |= {"recovery.name": recovery, "run.tokens": 6 * UPDATE, "optimizer.eps": 1e-3}
    own = [{"optimizer.lr": 0.01, "optimizer.weight_decay": 0.5}, {"optimizer.lr": 0.02, "optimizer.weight_decay": 2.0}]
    configs = [tiny(values | more) for more in own]
    trainer = Trainer(configs)
    curves(trainer)
    for lane, config in enumerate(configs):
        network = build_network(config.model, trainer.prepared.vocab_size, config.run.seed)
        optimizer = written_out(kind, config, network)
        batches = TrainingBatches(trainer.prepared.splits["train"], config.data, config.model.context, config.run.seed)
        for update in range(6):
            x, y = (torch.from_numpy(part) for part in batches.batch(4 * update, 4))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x).flatten(0, 1), y.flatten()).backward()
            optimizer.step()
        for name, p in network.named_parameters():
            found = trainer.pack.params.tensors(lane)[f"weights.{name}"]
            torch.testing.assert_close(found, p.detach(), rtol=2e-4, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("kind", SMALL)
def test_muon_keeps_its_rate_and_decay_for_matrices(kind):
    config = tiny(SIZE | SMALL[kind] | {"optimizer.name": "muon"})
    rule, plain = config.update_rule(), config.optimizer
    assert rule == plain.model_copy(update={"eps": plain.eps / (M * L) if kind == "completep" else plain.eps})
    assert tiny(SIZE | {"optimizer.name": "muon"}).update_rule() == plain
    assert all(metrics.val_loss < 5.6 for metrics in alone(config)[1:])


def test_own_rates_of_groups_and_a_decay_horizon_come_before_the_factors():
    own = {"optimizer.embedding_lr": 0.3, "optimizer.scalar_lr": 0.2, "optimizer.head_decay": 0.7}
    config = tiny(SIZE | SMALL["completep"] | own | {"optimizer.lr": 0.1, "optimizer.decay_horizon": 1000.0})
    rule = config.with_raw_fields().update_rule()
    rates = [rule.rate(group) for group in ("matrix", "embedding", "head", "scalar")]
    decays = [rule.decay(group) for group in ("matrix", "embedding", "head", "scalar")]
    decay = UPDATE / (0.1 * 1000)
    assert rates == pytest.approx([0.1 / M, 0.3, 0.1, 0.2])
    assert decays == pytest.approx([decay * M, decay, 0.7, 0.0])


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_in_a_pack_equals_the_run_alone_and_resumes(kind, tmp_path):
    configs = [tiny(SIZE | SMALL[kind] | {"optimizer.lr": lr}) for lr in (0.003, 0.01)]
    trainer = Trainer(configs)
    first = next(iter(trainer))
    trainer.save(1, tmp_path)
    rest = [first[1][1], *[metrics[1] for _, metrics in trainer]]
    resumed = Trainer([configs[1]])
    resumed.resume(0, tmp_path)
    after = [metrics[0] for _, metrics in resumed]
    assert [m.val_loss for m in after] == pytest.approx([m.val_loss for m in rest[1:]], rel=1e-5)
    assert [m.val_loss for m in rest] == pytest.approx([m.val_loss for m in alone(configs[1])], rel=1e-5)


def test_runs_of_different_width_or_base_do_not_share_a_pack():
    key = tiny(SIZE | SMALL["mup"]).pack_key()
    assert tiny(SIZE | SMALL["mup"] | {"optimizer.lr": 0.1}).pack_key() == key
    for other in ({"model.base_width": 16}, {"model.n_embd": 64, "model.n_head": 8}, SMALL["completep"]):
        assert tiny(SIZE | SMALL["mup"] | other).pack_key() != key


def test_a_stored_configuration_without_the_fields_is_standard():
    tree = tiny().model_dump(mode="json")
    stored = {key: tree["model"].pop(key) for key in ("parametrization", "base_width", "base_depth")}
    assert stored == {"parametrization": "standard", "base_width": None, "base_depth": None}
    assert TrainConfig.model_validate(tree) == tiny()
    assert tiny().update_rule() == tiny().optimizer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.parametrization": "mup"}, "base_width is required with parametrization mup"),
        (SMALL["mup"] | {"model.base_depth": 2}, "base_depth has no effect with parametrization mup.*got 2"),
        ({"model.base_width": 8}, "base_width has no effect with parametrization standard, leave it out, got 8"),
        ({"model.parametrization": "completep", "model.base_width": 8}, "base_depth is required"),
        (SMALL["mup"] | {"model.base_width": 12}, "base_width must be a multiple of n_embd / n_head = 8.*got 12"),
        (SMALL["completep"] | {"model.skips": "convex", "model.n_layer": 2}, "skips must be none.*got convex"),
        (SMALL["mup"] | {"model.name": "moe"}, "parametrization must be standard in a mixture of experts.*got mup"),
        (SMALL["mup"] | {"optimizer.name": "lion"}, "optimizer.name: must be adamw or muon with .*mup, got lion"),
        (SMALL["completep"] | {"optimizer.scalar_decay": 0.1}, "optimizer.scalar_decay: must be 0 .*got 0.1"),
    ],
    ids=str,
)
def test_what_has_no_rule_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        updated(tiny(), values)
