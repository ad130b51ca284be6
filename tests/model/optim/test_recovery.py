import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from model.optim.recovery import PATIENCE, Health, RollBack, Skip, Stop
from model.section import updated
from model.train.trainer import Trainer
from tests.support.tiny import UPDATE, alone, curves, timeless, tiny

# Update 10 of 24 is a fault, in the second of three rungs.
FAULT = {"run.spike_every": 10, "run.spike_scale": 1e38, "run.tokens": 18 * UPDATE, "clip.name": "none"}


def test_without_recovery_a_step_that_is_not_finite_ends_the_run():
    found = alone(tiny(FAULT))
    assert [m.rung for m in found] == [1, 2]
    assert math.isnan(found[-1].val_loss)


@pytest.mark.parametrize("name", ["skip", "rollback"])
def test_a_run_that_recovers_continues_to_its_end(name):
    found = alone(tiny(FAULT | {"recovery.name": name}))
    assert [m.rung for m in found] == [1, 2, 3]
    assert [m.recoveries for m in found] == [0, 1, 1]
    assert all(math.isfinite(m.val_loss) and math.isfinite(m.train_loss) for m in found)
    assert found[-1].val_loss < found[0].val_loss


def weights_after(trainer: Trainer, updates: int) -> list[torch.Tensor]:
    found = []
    for _ in range(updates):
        trainer._train(1)
        found.append(trainer.pack.params.weights.clone())
    return found


def test_skipping_leaves_one_update_out_and_nothing_else():
    rows = weights_after(Trainer([tiny(FAULT | {"recovery.name": "skip"})]), 12)
    assert torch.equal(rows[9], rows[8])
    assert not torch.equal(rows[10], rows[9])
    sound = weights_after(Trainer([tiny(FAULT | {"run.spike_every": 1000})]), 12)
    assert torch.equal(rows[8], sound[8])


def test_rolling_back_takes_weights_and_optimizer_state_of_the_last_rung_and_cuts_the_rate():
    config = tiny(FAULT | {"recovery.name": "rollback", "recovery.lr_factor": 0.25, "regularization.ema": 0.9})
    trainer = Trainer([config])
    steps = iter(trainer)
    next(steps)  # six updates
    weights = trainer.pack.params
    saved = {name: block.clone() for name, block in weights.blocks().items()}
    usual = trainer.runs[0].health.mean_norm
    trainer._train(3)
    assert trainer.runs[0].health.mean_norm != usual
    assert not torch.equal(weights.weights, saved["weights"])
    taken = trainer.runs[0].steps
    trainer._train(1)
    for name, block in weights.blocks().items():
        assert torch.equal(block, saved[name]), name
    assert trainer.runs[0].health.mean_norm == usual  # what is usual for those weights
    assert (taken, trainer.runs[0].steps) == (9, 6)  # Adam's correction for its zero start goes back too
    before = config.schedule.multiplier(9.5 / 18) * config.optimizer.lr
    assert trainer.runs[0].lr() == pytest.approx(0.25 * before)
    assert trainer.runs[0].micro_step == 10  # and on with the next batch, not the same again


@pytest.mark.parametrize("rule", [Skip(at_most=2), RollBack(at_most=2)], ids=lambda r: r.name)
def test_one_failure_more_than_at_most_ends_the_run(rule):
    health = Health(rule)
    assert [health.respond(math.nan) for _ in range(3)] == [rule.name, rule.name, "stop"]
    assert health.recoveries() == 2
    found = alone(tiny(FAULT | {"run.spike_every": 2, "recovery.name": rule.name, "recovery.at_most": 2}))
    assert len(found) == 1
    assert math.isnan(found[0].val_loss)


def test_a_spike_is_measured_against_the_running_mean_of_good_steps():
    health = Health(Skip(spike=5.0, at_most=10))
    assert {health.respond(100.0 if i == 3 else 1.0) for i in range(PATIENCE)} == {"go"}  # no mean to trust yet
    mean = (100 + PATIENCE - 1) / PATIENCE
    assert health.mean_norm == pytest.approx(mean)
    assert health.respond(5.01 * mean) == "skip"
    assert health.mean_norm == pytest.approx(mean)  # a spike says nothing of what is usual
    assert health.respond(4.99 * mean) == "go"
    assert health.mean_norm == pytest.approx(mean + 3.99 * mean / (PATIENCE + 1))
    for _ in range(400):
        health.respond(2.0)
    before = health.mean_norm
    health.respond(3.0)
    assert health.mean_norm == pytest.approx(0.98 * before + 0.02 * 3.0)


@pytest.mark.parametrize("rule", [Stop(spike=2.0), Skip(spike=1.5, at_most=1), RollBack(spike=2.0, at_most=1)])
def test_the_device_decides_as_the_rule_does_on_the_host(rule):
    # Runs that differ in their norms; a lane that is not due, and a run that has ended, do not change.
    rng, K = np.random.default_rng(0), 5
    config = tiny({f"recovery.{key}": value for key, value in rule})
    trainer = Trainer([config] * K)
    guard, runs, finite = trainer.optimizer.guard, trainer.runs, torch.ones(K, dtype=torch.bool)
    guard.load(runs)
    healths, steps = [Health(rule) for _ in range(K)], [0] * K
    alive, answers = [True] * K, set()
    for _ in range(60):
        due = sorted(rng.choice(K, size=4, replace=False).tolist())
        norms = rng.choice([0.9, 1.0, 1.1, 4.0, math.inf, math.nan], size=4, p=[0.3, 0.3, 0.34, 0.02, 0.02, 0.02])
        verdict = guard.judge(
            torch.tensor(due),
            torch.tensor(norms, dtype=torch.float32),
            torch.ones(K, dtype=torch.bool),
            finite,
            None,
            None,
        )
        for i, lane in enumerate(due):
            if not alive[lane]:
                assert not verdict.accepted[i]
                continue
            action = healths[lane].respond(float(torch.tensor(norms[i], dtype=torch.float32)))
            answers.add(action)
            alive[lane] = action != "stop"
            steps[lane] = {"go": steps[lane] + 1, "rollback": 0}.get(action, steps[lane])
            assert bool(verdict.accepted[i]) == (action == "go")
            assert verdict.rolled_back is None or bool(verdict.rolled_back[i]) == (action == "rollback")
        assert finite.tolist() == alive
    guard.store(runs)
    assert [run.health.state_dict() for run in runs.values()] == [health.state_dict() for health in healths]
    assert [run.steps for run in runs.values()] == steps
    assert answers == {"go", "stop", rule.name}


@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("name", ["skip", "rollback"])
def test_a_loss_that_is_not_finite_is_a_failed_step(name, accum, monkeypatch):
    trainer = Trainer([tiny({"recovery.name": name, "run.grad_accum": accum})])
    accumulate_grads, calls = trainer.pack.accumulate_grads, []

    def faulty(*args):
        calls.append(None)
        nats = accumulate_grads(*args)
        if len(calls) == 10 * accum - accum + 1:  # the first micro-step of an update
            trainer.pack.params.grads[0, 5] = math.nan
            return nats * math.nan
        return nats

    monkeypatch.setattr(trainer.pack, "accumulate_grads", faulty)
    found = curves(trainer)[0]
    assert [m.recoveries for m in found][-1] == 1
    assert [m.rung for m in found] == [1, 2, 3]
    assert all(math.isfinite(m.train_loss) for m in found)


@pytest.mark.parametrize("name", ["stop", "skip", "rollback"])
def test_a_spiking_step_is_a_failed_step_where_a_bound_is_given(name):
    spike = {"run.spike_every": 25, "run.spike_scale": 50.0, "run.tokens": 30 * UPDATE, "recovery.spike": 4.0}
    found = alone(tiny(spike | {"recovery.name": name}))
    if name == "stop":
        assert math.isnan(found[-1].val_loss)
        assert found[-1].updates == 25
    else:
        assert [m.recoveries for m in found] == [0, 0, 1]


@pytest.mark.parametrize("name", ["skip", "rollback"])
def test_a_run_that_recovers_in_a_pack_equals_the_run_alone(name):
    sound = FAULT | {"run.spike_every": 1000}
    values = [FAULT, sound | {"run.seed": 1}, FAULT | {"run.seed": 2, "run.spike_every": 7}]
    configs = [tiny(v | {"recovery.name": name}) for v in values]
    together = curves(Trainer(configs))
    for place, config in enumerate(configs):
        wanted = alone(config)
        assert [m.recoveries for m in together[place]] == [m.recoveries for m in wanted]
        assert [m.val_loss for m in together[place]] == pytest.approx([m.val_loss for m in wanted], abs=1e-5)


@pytest.mark.parametrize("name", ["skip", "rollback"])
def test_a_resumed_run_knows_its_failures(name, tmp_path):
    values = FAULT | {"run.spike_every": 4, "recovery.name": name, "recovery.spike": 3.0, "recovery.at_most": 9}
    config = tiny(values | {"clip.name": "zclip", "clip.warmup": 3, "regularization.ema": 0.95})
    uninterrupted = alone(config)
    trainer = Trainer([config])
    for rung, metrics in trainer:
        if rung == 2:
            assert metrics[0].recoveries > 0
            trainer.save(0, tmp_path)
            break
    later = Trainer([config])
    assert later.resume(0, tmp_path) == 2
    assert [timeless(m) for _, ms in later for m in ms.values()] == uninterrupted[2:]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_injected_fault_is_a_failure_in_every_precision(precision):
    values = FAULT | {"run.precision": precision, "run.spike_every": 5, "recovery.name": "skip", "recovery.at_most": 2}
    found = alone(tiny(values))
    assert [m.recoveries for m in found] == [1, 2, 2]
    assert math.isnan(found[-1].val_loss)
    assert found[-1].updates == 15


def test_a_first_overflow_of_fp16_is_no_failure():
    trainer = Trainer([tiny({"run.precision": "fp16", "recovery.name": "skip"})])
    trainer.pack.loss_scales[0] = 2.0**40
    found = curves(trainer)[0]
    assert trainer.pack.loss_scales[0] < 2.0**40
    assert [m.recoveries for m in found] == [0, 0, 0]


@pytest.mark.parametrize("name", ["stop", "skip", "rollback"])
def test_an_fp16_run_whose_every_step_fails_ends(name, monkeypatch):
    trainer = Trainer([tiny({"run.precision": "fp16", "recovery.name": name, "run.rungs": 1})])
    accumulate_grads = trainer.pack.accumulate_grads

    def faulty(*args):
        nats = accumulate_grads(*args)
        trainer.pack.params.grads.fill_(math.inf)
        return nats

    monkeypatch.setattr(trainer.pack, "accumulate_grads", faulty)
    assert math.isnan(curves(trainer)[0][-1].val_loss)


def test_one_loss_of_fp16_that_is_not_finite_costs_one_update(monkeypatch):
    trainer = Trainer([tiny({"run.precision": "fp16", "recovery.name": "rollback"})])
    accumulate_grads, calls = trainer.pack.accumulate_grads, []

    def faulty(*args):
        calls.append(None)
        nats = accumulate_grads(*args)
        if len(calls) == 5:
            trainer.pack.params.grads[0, 5] = math.nan
            return nats * math.nan
        return nats

    monkeypatch.setattr(trainer.pack, "accumulate_grads", faulty)
    next(iter(trainer))
    assert trainer.runs[0].steps == 3  # eight updates; the fifth sent it back to none
    assert trainer.runs[0].health.n_failures == 1


def test_what_was_measured_before_a_rollback_is_forgotten_with_it():
    values = {"recovery.name": "rollback", "recovery.at_most": 9, "run.spike_every": 5, "clip.max_norm": 0.01}
    for m in alone(tiny(FAULT | values | {"clip.name": "norm", "run.tokens": 24 * UPDATE})):
        assert m.clipped == pytest.approx(1.0)
        assert m.grad_norm < 3


@pytest.mark.parametrize(("name", "rungs"), [("stop", 2), ("skip", 2), ("rollback", 3)])
@pytest.mark.parametrize("size", [1e38, math.inf])
def test_a_last_update_that_breaks_the_weights_is_a_failure_of_its_rung(name, rungs, size, monkeypatch):
    trainer = Trainer([tiny({"recovery.name": name, "regularization.ema": 0.5})])
    update, calls = trainer.pack.params.update, []

    def breaking(*args):
        calls.append(None)
        found = update(*args)
        if len(calls) == 16:  # the end of the second rung
            trainer.pack.params.weights.fill_(size)  # 1e38: finite weights that have no finite loss
        return found

    monkeypatch.setattr(trainer.pack.params, "update", breaking)
    found = curves(trainer)[0]
    assert len(found) == rungs
    assert math.isfinite(found[0].val_loss)
    if name == "rollback":  # the second rung has the score of the first
        assert found[1].val_loss == found[0].val_loss
        assert [m.recoveries for m in found] == [0, 1, 1]
        assert math.isfinite(found[2].val_loss)
    else:
        assert math.isnan(found[1].val_loss)


def test_a_failed_last_update_of_a_rung_is_the_same_alone_in_a_pack_and_after_a_resume(tmp_path):
    config = tiny(FAULT | {"recovery.name": "skip", "run.spike_every": 6, "run.rungs": 3})
    neighbour = updated(config, {"run.rungs": 6, "run.spike_every": 1000})
    wanted = alone(config)
    assert set(wanted[0].update_ratios.values()) == {0.0}
    together = curves(Trainer([config, neighbour]))[0]
    assert [m.grad_norms for m in together] == [pytest.approx(m.grad_norms, rel=1e-4) for m in wanted]
    trainer = Trainer([config])
    next(iter(trainer))
    trainer.save(0, tmp_path)
    later = Trainer([config])
    later.resume(0, tmp_path)
    assert curves(later)[0] == wanted[1:]


@pytest.mark.parametrize("name", ["stop", "skip"])
def test_a_diverged_run_has_the_record_of_the_run_alone(name):
    config = tiny(FAULT | {"recovery.name": name, "run.spike_every": 3, "recovery.spike": 9.0})
    config = updated(config, {"recovery.at_most": 1} if name == "skip" else {})
    sound = updated(config, {"run.spike_every": 1000})
    together, wanted = curves(Trainer([config, sound]))[0], alone(config)
    for m, w in zip(together, wanted, strict=True):
        assert (m.tokens, m.updates, m.lr, m.recoveries) == (w.tokens, w.updates, w.lr, w.recoveries)
        assert m.train_loss == pytest.approx(w.train_loss, abs=1e-5, nan_ok=True)


def test_a_rung_without_a_finite_loss_has_no_training_loss():
    trainer = Trainer([tiny({"recovery.name": "skip", "recovery.at_most": 1000})])
    trainer.pack.params.weights.fill_(math.nan)
    _, metrics = next(iter(trainer))
    assert math.isnan(metrics[0].train_loss)


def test_a_bound_that_every_step_exceeds_is_refused():
    for rule in (Stop, Skip, RollBack):
        with pytest.raises(ValidationError, match="greater than 1"):
            rule(spike=1.0)
