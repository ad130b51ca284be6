"""Cool-down probes: what they return, and that a probed run equals the same run without probes bit for bit."""

import itertools
import math

import pytest

from model.optim.clipping import Clip
from model.optim.optimizers import Optimizer
from model.optim.recovery import Recovery
from model.optim.schedule import WSD, Constant, CoolDown, Cosine, OneCycle
from model.section import updated
from model.train.trainer import Trainer
from tests.model.train.test_resume import names
from tests.support.cases import exhaustive
from tests.support.tiny import UPDATE, alone, curves, timeless, tiny

FAULT = {"run.spike_every": 7, "run.spike_scale": 1e38}  # inside the probes, which follow updates 8 and 16
PAIRS = [
    (optimizer, clip, names(Recovery)[(i + j) % 3])
    for (i, optimizer), (j, clip) in itertools.product(enumerate(names(Optimizer)), enumerate(names(Clip)))
]
FEW = [
    pair for n, pair in enumerate(PAIRS) if n % 7 == 0 or n == len(PAIRS) - 1
]  # each optimizer, clipping rule and recovery
CASES = [pair if pair in FEW else exhaustive(*pair) for pair in PAIRS]
OTHERS = [
    {"regularization.ema": 0.9, "regularization.dropout": 0.1, "run.grad_accum": 2},
    {"run.precision": "fp16", "recovery.name": "skip", "clip.name": "zclip", "clip.warmup": 2} | FAULT,
    exhaustive({"model.name": "moe", "recovery.name": "rollback"} | FAULT),
    exhaustive({"data.layout": "documents", "schedule.name": "onecycle", "schedule.beta1_dip": 0.8}),
]


def probed_curves(trainer, rungs, share=0.25):
    """Train all runs to their end with probes; return the metrics of each lane by rung, and those of the probes."""
    by_lane, probes = {}, {}
    for _, metrics in trainer:
        for lane, m in metrics.items():
            by_lane.setdefault(lane, []).append(timeless(m))
        if due := [lane for lane, m in metrics.items() if m.rung in rungs and math.isfinite(m.val_loss)]:
            for lane, probe in trainer.probe(dict.fromkeys(due, share)).items():
                probes.setdefault(lane, []).append(probe)
    return by_lane, probes


def check_unchanged(values):
    common = {"run.align": 2 * UPDATE} | values
    lanes = [{}, {"run.seed": 1, "optimizer.lr": 3e-2}, {"run.seed": 2, "run.tokens": 18 * UPDATE}]  # other marks
    configs = [tiny(common | own) for own in lanes]
    packed, probes = probed_curves(Trainer(configs), (1, 2))
    assert packed == curves(Trainer(configs))
    found, own = probed_curves(Trainer(configs[:1]), (1, 2))
    assert found[0] == alone(configs[0])
    for a, b in zip(probes[0], own[0], strict=True):
        assert a == pytest.approx(b, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(("optimizer", "clip", "recovery"), CASES)
def test_a_probed_run_equals_the_run_without_probes_bit_for_bit(optimizer, clip, recovery):
    fault = {} if recovery == "stop" else FAULT
    check_unchanged({"optimizer.name": optimizer, "clip.name": clip, "recovery.name": recovery} | fault)


@pytest.mark.parametrize("values", OTHERS, ids=lambda values: "-".join(map(str, values.values())))
def test_a_probe_restores_averages_accumulation_loss_scales_and_random_numbers(values):
    check_unchanged(values)


def test_a_diverged_neighbour_and_a_refilled_lane_do_not_change_a_probe():
    diverging = {"optimizer.lr": 1e30, "clip.max_norm": 1e30, "schedule.warmup": 0.0, "run.seed": 3}
    trainer, found = Trainer([tiny(), tiny(diverging)]), []
    for _, metrics in trainer:
        if 1 in metrics and math.isnan(metrics[1].val_loss):
            trainer.stop(1)
            trainer.start(1, tiny({"run.seed": 5}))
        if 0 in metrics and metrics[0].rung < 3:
            found.append(trainer.probe({0: 0.25})[0]["probe_val_loss"])
    _, probes = probed_curves(Trainer([tiny()]), (1, 2))
    assert found == pytest.approx([probe["probe_val_loss"] for probe in probes[0]], rel=1e-5)


@pytest.mark.parametrize("recovery", ["stop", "rollback"])
def test_a_run_killed_inside_a_probe_resumes_the_same(recovery, tmp_path, monkeypatch):
    config = tiny({"recovery.name": recovery, "regularization.ema": 0.9} | (FAULT if recovery != "stop" else {}))
    wanted, probes = probed_curves(Trainer([config]), (1, 2))
    trainer = Trainer([config])
    next(iter(trainer))
    trainer.save(0, tmp_path)
    monkeypatch.setattr(trainer.validation, "evaluate", lambda: 1 / 0)  # at the end of the probe
    with pytest.raises(ZeroDivisionError):
        trainer.probe({0: 0.25})
    monkeypatch.undo()
    rest = [timeless(metrics[0]) for _, metrics in trainer]  # the interrupted probe has left no trace
    assert rest == wanted[0][1:]
    resumed = Trainer([config])
    assert resumed.resume(0, tmp_path) == 1
    assert resumed.probe({0: 0.25})[0] == probes[0][0]
    found, later = probed_curves(resumed, (2,))
    assert found[0] == wanted[0][1:]
    assert later[0] == probes[0][1:]


def test_the_probe_of_a_wsd_trunk_is_the_wsd_run_that_ends_there_bit_for_bit():
    trunk = tiny({"schedule.name": "wsd", "schedule.warmup": 0.125, "schedule.decay": 0.1, "schedule.floor": 0.05})
    _, probes = probed_curves(Trainer([trunk]), (1,), share=0.25)
    branch = updated(
        trunk,
        # 8 updates of the trunk, 3 of them its warmup, and 6 of the decay
        {"run.tokens": 14 * UPDATE, "run.rungs": 1, "schedule.warmup": 3 / 14, "schedule.decay": 6 / 11},
    )
    assert probes[0][0]["probe_val_loss"] == pytest.approx(alone(branch)[-1].val_loss, rel=1e-9)
    assert probes[0][0]["probe_tokens"] == 6 * UPDATE


def test_the_rate_of_a_probe_falls_linearly_to_the_end_of_the_schedule():
    cosine = Cosine(warmup=0.0, floor=0.1)
    cool_down = CoolDown(cosine, 0.25, 0.5)  # 100 of 400 updates, followed by 100
    rates = [cool_down.multiplier((u + 0.5) / 200) for u in range(100, 200)]
    first = cosine.multiplier(0.25)
    assert rates == pytest.approx([0.1 + (first - 0.1) * (100 - k - 0.5) / 100 for k in range(100)])
    assert CoolDown(Constant(warmup=0.0), 0.5, 0.8).multiplier(0.9) == 1  # a constant rate ends where it is
    assert CoolDown(WSD(warmup=0.5), 0.25, 0.5).multiplier(1.0) == 0
    warming = CoolDown(Cosine(warmup=0.5, floor=0.8), 0.25, 0.5)  # half of the peak, which is below the floor
    assert warming.multiplier(0.5) == warming.multiplier(1.0) == 0.5
    dip = OneCycle(warmup=0.25, beta1_dip=0.8)
    assert CoolDown(dip, 0.25, 0.5).beta1(0.5, 0.9) == pytest.approx(0.8)
    assert CoolDown(dip, 0.25, 0.5).beta1(1.0, 0.9) == pytest.approx(0.9)


def test_a_probe_elsewhere_than_at_a_rung_or_longer_than_the_rest_is_refused():
    trainer, found = Trainer([tiny()]), []
    with pytest.raises(ValueError, match="only at one of its rungs"):
        trainer.probe({0: 0.1})
    for rung, metrics in trainer:
        found.append(timeless(metrics[0]))
        if rung == 2:
            with pytest.raises(ValueError, match="rest of the run, 8 updates, got 12"):
                trainer.probe({0: 0.5})
    assert found == alone(tiny())


def test_a_probe_scores_the_averaged_weights_and_never_the_test_split():
    trainer = Trainer([tiny({"regularization.ema": 0.9, "run.test": True, "data.test_fraction": 0.1})])
    next(iter(trainer))
    probe = trainer.probe({0: 0.25})[0]
    assert set(probe) == {f"probe_{name}" for name in ("val_loss", "val_bpb", "ema_val_loss", "ema_val_bpb", "tokens")}
    assert probe["probe_ema_val_loss"] != probe["probe_val_loss"]
