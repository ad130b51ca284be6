import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.data.prepare import prepare
from model.nn.shapes import parameter_shapes
from model.optim.param_groups import param_groups
from model.train.run_state import RunState
from model.train.tables import MAX_STEPS, MAX_TOKENS, build_batches, build_steps, table_size
from model.train.trainer import Trainer
from tests.support.cases import covering
from tests.support.tiny import curves, tiny

CPU = torch.device("cpu")
aten = torch.ops.aten
SYNCS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.equal.default}


class NoCopies(TorchDispatchMode):
    """Fail at the first tensor that is made from Python numbers, and at the first value that Python reads."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not aten.lift_fresh.default, "a tensor was made from Python numbers in a step"
        assert func not in SYNCS, f"a step reads a value by {func}"
        if func is aten._to_copy.default:
            assert (kwargs or {}).get("device") in (None, args[0].device), "a step copies between devices"
        return func(*args, **(kwargs or {}))


FAULT = {"run.spike_every": 7, "run.spike_scale": 1e38}
RULES = [
    {},
    {"optimizer.name": "muon", "clip.name": "update-rms"},
    {"optimizer.name": "stable-adamw", "clip.name": "value", "regularization.ema": 0.9},
    {"optimizer.name": "lion", "clip.name": "adagc", "clip.warmup": 2},
    {"clip.name": "zclip", "clip.warmup": 2, "regularization.dropout": 0.1, "model.position": "rope"},
    {"recovery.name": "skip", "recovery.spike": 3.0} | FAULT,
    {"recovery.name": "rollback", "optimizer.name": "muon", "regularization.ema": 0.9, "clip.name": "zclip"} | FAULT,
    {"recovery.name": "rollback", "optimizer.name": "lion", "run.precision": "fp16", "clip.name": "adagc"} | FAULT,
    {"recovery.name": "skip", "optimizer.name": "sgd", "clip.name": "update-rms", "regularization.dropout": 0.1}
    | FAULT,
    {"recovery.name": "skip", "optimizer.name": "rmsprop", "clip.name": "none"} | FAULT,
    {"recovery.spike": 90.0, "optimizer.name": "adam", "schedule.name": "onecycle", "schedule.beta1_dip": 0.8},
    {"run.precision": "fp16", "optimizer.name": "stable-adamw", "optimizer.layer_decay": 0.9, "clip.name": "value"},
    {"model.name": "moe", "model.router_noise": 0.1},
    {"model.name": "moe", "model.mlp": "swiglu", "model.top_k": 2, "run.precision": "bf16", "recovery.name": "skip"},
    {"model.document_mask": True, "regularization.mask_tokens": 0.1, "run.precision": "bf16", "model.skips": "convex"},
]


@pytest.mark.parametrize(("rule", "size"), covering(RULES, [1, 3]))
def test_a_step_copies_nothing_to_the_device_and_reads_nothing_from_it(rule, size, monkeypatch):
    # The runs of the pack complete their updates at different micro-steps.
    common = rule | {"model.n_layer": 2, "run.align": 128, "run.rungs": 2}
    trainer = Trainer([tiny(common | {"run.grad_accum": 1 + lane % 2, "run.seed": lane}) for lane in range(size)])
    trainer.reads_divergence = False
    train, guarded = trainer._train_on, []

    def watched(table, live):
        with NoCopies(), monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", lambda tensor: pytest.fail("a step reads values by tolist"))
            guarded.append(len(table.x))
            return train(table, live)

    trainer._train_on = watched
    found = curves(trainer)
    assert sum(guarded) == 24
    assert all(math.isfinite(m.val_loss) for of_lane in found.values() for m in of_lane)


@pytest.mark.parametrize(
    "read", [lambda t: t.item(), lambda t: bool(t), lambda t: torch.tensor([1.0]), lambda t: t.nonzero()]
)
def test_the_guard_sees_copies_and_reads(read):
    with NoCopies(), pytest.raises(AssertionError, match="step"):
        read(torch.ones(()))


def test_a_run_that_diverges_between_rungs_is_reported_at_the_rung():
    wild = tiny({"optimizer.lr": 1e30, "clip.max_norm": 1e30, "schedule.warmup": 0.0})
    calm = [tiny({"run.seed": seed}) for seed in range(2)]
    wanted = curves(Trainer(calm))
    trainer = Trainer([calm[0], wild])
    trainer.reads_divergence = False
    found = curves(trainer)
    assert found[0] == wanted[0]
    assert [(m.rung, math.isnan(m.val_loss)) for m in found[1]] == [(1, True)]


@pytest.mark.parametrize("layout", ["stream", "documents"])
def test_a_table_holds_what_each_micro_step_reads_alone(layout):
    values = {"data.name": "lines", "data.layout": layout, "run.grad_accum": 2, "run.spike_every": 3}
    config = tiny(values | {"run.spike_scale": 50.0})
    split = prepare(config.data, config.tokenizer).splits["train"]
    groups = param_groups(parameter_shapes(config.model, 257), 1, False)
    together, alone = RunState(config, split), RunState(config, split)
    batches, steps = (
        build_batches({1: together}, (2, 4, 16), 12, CPU),
        build_steps({1: together}, 2, groups, 1, 12, CPU),
    )
    assert not batches.token_weights[:, 0].any()
    assert (batches.y[:, 0] == -1).all()
    for row in range(12):
        update = row // 2 + 1
        for found, wanted in zip(batches, build_batches({1: alone}, (2, 4, 16), 1, CPU), strict=True):
            assert torch.equal(found[row], wanted[0])
        scale = 50.0 if update % 3 == 0 else 1.0
        assert float(batches.micro_step_weights[row, 1]) == scale / 2
        targets = sum(int((batches.y[at, 1] >= 0).sum()) for at in (2 * update - 2, 2 * update - 1))
        assert float(batches.token_weights[row, 1]) == pytest.approx(scale / targets, rel=1e-6)
        alone.advance()
        if row % 2:
            rule, step = config.optimizer, steps.at(row)
            lr = rule.lr * config.schedule.multiplier((update - 0.5) / 12)
            wanted = rule.coefficients("matrix", lr, update) | {"rate": lr}
            for key, number in wanted.items():
                assert float(step.optimizer[0][key][1]) == pytest.approx(number, rel=1e-6), key
            assert float(step.clip["max_norm"][1]) == 1.0


def test_adam_counts_the_steps_that_were_taken_and_the_schedule_all_updates():
    values = {"recovery.name": "skip", "run.spike_every": 5, "run.spike_scale": 1e38, "recovery.at_most": 9}
    trainer = Trainer([tiny(values)])
    taken, update = [], trainer.pack.params.update
    trainer.pack.params.update = lambda lanes, step, *rest: taken.append(step) or update(lanes, step, *rest)
    trainer._train(12)
    rule, done = trainer.shared.optimizer, [n for n in range(1, 13) if n % 5]
    taken = [taken[n - 1] for n in done]  # the others are not used
    for number, (at, step) in enumerate(
        zip(done, taken, strict=True), 1
    ):  # Adam counts the steps, the rate the updates
        lr = rule.lr * trainer.shared.schedule.multiplier((at - 0.5) / 24)
        wanted = rule.coefficients("matrix", lr, number)
        assert float(step.optimizer[0]["step_size"]) == pytest.approx(wanted["step_size"], rel=1e-6)


def test_a_table_is_bounded_in_steps_and_tokens():
    assert table_size(10, 64) == 10
    assert table_size(10**6, 64) == MAX_STEPS
    assert table_size(10**6, MAX_TOKENS // 4) == 4
    assert table_size(10**6, 10 * MAX_TOKENS) == 1
