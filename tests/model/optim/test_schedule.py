import math
from itertools import pairwise

import pytest
import torch

from model.optim.schedule import WSD, Constant, Cosine, Exponential, Linear, OneCycle

KINDS = [Constant, Cosine, Linear, Exponential, WSD]
DECAYING = [Cosine, Linear, Exponential, WSD]
GRID = [i / 200 for i in range(201)]


@pytest.mark.parametrize("kind", [*KINDS, OneCycle])
@pytest.mark.parametrize("warmup", [0.0, 1e-9, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("updates", [1, 2, 7, 1000])
def test_every_update_has_a_rate_above_zero_and_at_most_the_peak(kind, warmup, updates):
    schedule = kind(warmup=warmup)
    factors = [schedule.multiplier((u + 0.5) / updates) for u in range(updates)]
    assert min(factors) > 0
    assert max(factors) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_rises_linearly_to_the_peak(kind):
    schedule = kind(warmup=0.25)
    for progress in GRID:
        if progress < 0.25:
            assert schedule.multiplier(progress) == pytest.approx(progress / 0.25)
    assert schedule.multiplier(0.25) == 1.0


@pytest.mark.parametrize("kind", DECAYING)
@pytest.mark.parametrize("floor", [0.01, 0.3, 1.0])
def test_the_end_is_the_floor(kind, floor):
    assert kind(floor=floor).multiplier(1.0) == pytest.approx(floor)


@pytest.mark.parametrize("kind", [*KINDS, OneCycle])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_after_warmup_the_rate_never_rises(kind, warmup):
    factors = [kind(warmup=warmup).multiplier(p) for p in GRID if p >= warmup]
    assert all(b <= a + 1e-12 for a, b in pairwise(factors))


CLOSED = {
    "constant": (Constant(warmup=0.2), lambda t: 1.0),
    "cosine": (Cosine(warmup=0.2, floor=0.1), lambda t: 0.1 + 0.9 * math.cos(math.pi * t / 2) ** 2),
    "linear": (Linear(warmup=0.2, floor=0.1), lambda t: 1 - t + 0.1 * t),
    "exponential": (Exponential(warmup=0.2, floor=0.1), lambda t: math.exp(t * math.log(0.1))),
    "wsd": (WSD(warmup=0.2, decay=0.25, floor=0.1), lambda t: 1.0 if t < 0.75 else 1 - 0.9 * (t - 0.75) / 0.25),
    "wsd all decay": (WSD(warmup=0.2, decay=1.0), lambda t: 1 - t),
}


@pytest.mark.parametrize("case", CLOSED)
def test_a_schedule_equals_its_closed_form(case):
    schedule, closed = CLOSED[case]
    for t in GRID:
        assert schedule.multiplier(0.2 + 0.8 * t) == pytest.approx(closed(t), abs=1e-12)


@pytest.mark.parametrize("total", [10, 100, 938])
@pytest.mark.parametrize(
    ("pct", "div", "final"), [(0.3, 25.0, 1e4), (0.15, 25.0, 1e4), (0.2, 5.0, 100.0), (0.5, 10.0, 1e4)]
)
def test_onecycle_equals_that_of_torch(total, pct, div, final):
    """torch counts steps 0 .. total - 1 and has its peak at pct * total - 1; both are fractions of the last step."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([p], lr=1.0, betas=(0.95, 0.99))
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=total, pct_start=pct, div_factor=div, final_div_factor=final
    )
    ours = OneCycle(warmup=(pct * total - 1) / (total - 1), start=1 / div, floor=1 / (div * final), beta1_dip=0.85)
    for step in range(total):
        group = optimizer.param_groups[0]
        progress = step / (total - 1)
        assert 0.01 * ours.multiplier(progress) == pytest.approx(group["lr"], rel=1e-9, abs=1e-15)
        assert ours.beta1(progress, 0.95) == pytest.approx(group["betas"][0], rel=1e-12)
        optimizer.step()
        if step < total - 1:
            torchs.step()


def test_onecycle_leaves_beta1_alone_by_default():
    assert {OneCycle().beta1(p, 0.9) for p in GRID} == {0.9}
    assert {kind().beta1(p, 0.9) for kind in KINDS for p in GRID} == {0.9}
