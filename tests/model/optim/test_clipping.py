import math

import numpy as np
import pytest
import torch

from model.optim.clipping import AdaGC, ClippingRule, NoClip, Norm, UpdateRMS, Value, ZClip
from model.optim.param_groups import ParamGroup, merge_groups, param_groups

INF = float("inf")
SHAPES = {"blocks.0.mlp.fc.weight": (3, 5), "blocks.0.mlp.proj.weight": (5, 3), "norm.weight": (7,)}
SIZES = [15, 15, 7]
PARAMS = merge_groups(param_groups(SHAPES, 1, by_depth=False))


class Harness:
    """One rule, or several of one kind, applied to rows of gradients again and again."""

    def __init__(self, *rules: ClippingRule) -> None:
        first = rules[0].initial_state(len(SIZES))
        self.rule = rules[0]
        self.state = {key: torch.full((len(rules), n), value) for key, (n, value) in first.items()}
        numbers = [rule.numbers() for rule in rules]
        self.numbers = (
            numbers[0] if len(rules) == 1 else {k: torch.tensor([n[k] for n in numbers])[:, None] for k in numbers[0]}
        )

    def clip(self, g: torch.Tensor) -> list[float]:
        found = self.rule.clip(g, g.norm(dim=1), self.state, self.numbers, PARAMS)
        return [0.0] * len(g) if found is None else found.tolist()


def gradient(norm: float, seed: int = 0) -> torch.Tensor:
    """Return a row of that L2 norm, (1, P)."""
    g = torch.randn(1, sum(SIZES), generator=torch.Generator().manual_seed(seed))
    return g * (norm / g.norm())


@pytest.mark.parametrize("limit", [1e-3, 1.0, 5.0, 1e6])
def test_clipping_by_norm_equals_that_of_torch(limit):
    tensors = list(gradient(6.0).split(SIZES, dim=1))
    parameters = [torch.nn.Parameter(torch.zeros_like(t)) for t in tensors]
    for p, t in zip(parameters, tensors, strict=True):
        p.grad = t.clone()
    wanted_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    row = torch.cat(tensors, dim=1)
    grad = torch.cat([row, 10 * row])  # a neighbour with another norm and limit
    clipped = Harness(Norm(max_norm=limit), Norm(max_norm=1e9)).clip(grad)
    torch.testing.assert_close(grad[:1], torch.cat([p.grad for p in parameters], dim=1), rtol=1e-6, atol=0)
    assert clipped == [float(wanted_norm > limit), 0.0]
    assert torch.equal(grad[1], 10 * row[0])


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e30])
def test_a_norm_below_the_limit_changes_no_bit(scale):
    # 1e30: the norm itself overflows
    grad = torch.randn(2, sum(SIZES), generator=torch.Generator().manual_seed(0)) * scale
    before = grad.clone()
    if scale < 1e30:
        Harness(Norm(max_norm=1e38), Norm(max_norm=1e38)).clip(grad)
    Harness(NoClip(), NoClip()).clip(grad)
    Harness(ZClip(), ZClip()).clip(grad)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("rule", [Norm(), Value(), ZClip(warmup=2), AdaGC(warmup=2)], ids=lambda rule: rule.name)
def test_a_gradient_that_is_not_finite_does_not_change_its_neighbour(rule):
    together, alone = Harness(rule, rule), Harness(rule)
    for seed in range(6):
        row = gradient(3.0 + seed, seed)
        pair = torch.cat([row * (torch.nan if seed == 3 else 1.0), row])
        found, wanted = together.clip(pair), alone.clip(row)
        assert found[1] == wanted[0]
        torch.testing.assert_close(pair[1:], row, rtol=1e-6, atol=1e-9)


def test_clipping_by_value_equals_that_of_torch():
    row = gradient(6.0)
    p = torch.nn.Parameter(torch.zeros_like(row))
    p.grad = row.clone()
    torch.nn.utils.clip_grad_value_([p], 0.5)
    rows = torch.cat([row, row])
    assert Harness(Value(max_value=0.5), Value(max_value=100.0)).clip(rows) == [1.0, 0.0]
    assert torch.equal(rows[:1], p.grad)
    assert torch.equal(rows[1:], row)


def series(n: int = 120, spikes: dict[int, float] | None = None) -> list[float]:
    """Return gradient norms around 1 with an sd of 0.1, some of them times a factor."""
    norms = 1 + 0.1 * np.random.default_rng(0).standard_normal(n)
    for at, factor in (spikes or {}).items():
        norms[at] *= factor
    return [float(norm) for norm in norms]


def zclip(norms: list[float], z: float = 2.5, alpha: float = 0.97, warmup: int = 25, cap: float = INF) -> list[float]:
    """Return the norms after clipping, as arXiv:2504.02507 writes it, in double precision."""
    collected, kept = [], []
    mean = var = 0.0
    for norm in norms:
        if len(collected) < warmup:
            collected.append(norm)
            mean, var = float(np.mean(collected)), float(np.var(collected))
            kept.append(min(norm, cap))
            continue
        sd = math.sqrt(var)
        score = (norm - mean) / (sd + 1e-6)
        clipped = mean + (z / score) * z * sd if score > z else norm
        mean = alpha * mean + (1 - alpha) * clipped
        var = alpha * var + (1 - alpha) * (clipped - mean) ** 2
        kept.append(min(clipped, cap))
    return kept


@pytest.mark.parametrize("cap", [None, 1.05])
def test_zclip_follows_its_paper_on_a_series_with_spikes(cap):
    norms = series(spikes={10: 3.0, 40: 50.0, 41: 5.0, 90: 1e4})
    rule, wanted = Harness(ZClip(max_norm=cap)), zclip(norms, cap=cap or INF)
    for i, norm in enumerate(norms):
        row = gradient(norm, seed=i)
        (share,) = rule.clip(row)
        assert float(row.norm()) == pytest.approx(wanted[i], rel=1e-4)
        assert share == float(norm > wanted[i] * (1 + 1e-5))


def test_a_spike_of_fifty_leaves_the_statistics_of_zclip_as_they_were():
    rule = Harness(ZClip())
    for i, norm in enumerate(series(spikes={60: 50.0})):
        before = [float(rule.state[key]) for key in ("mean", "var")]
        rule.clip(gradient(norm, i))
        if i == 60:
            assert float(rule.state["mean"]) == pytest.approx(before[0], rel=0.02)
            assert math.sqrt(float(rule.state["var"])) < 0.2


def adagc(rows: list[torch.Tensor], rule: AdaGC) -> list[torch.Tensor]:
    """Return gradients after clipping as arXiv:2502.11034 writes it, tensor by tensor in double precision."""
    gamma, found = [math.inf] * len(SIZES), []
    for t, row in enumerate(rows):
        tensors = [x.double() for x in row[0].split(SIZES)]
        if t < rule.warmup:
            h = min(rule.absolute / float(row.double().norm()), 1.0)
            tensors = [x * h for x in tensors]
            gamma = [min(g, float(x.norm())) for g, x in zip(gamma, tensors, strict=True)]
        else:
            for i, x in enumerate(tensors):
                tensors[i] = x * min(rule.relative * gamma[i] / float(x.norm()), 1.0)
                gamma[i] = rule.beta * gamma[i] + (1 - rule.beta) * float(tensors[i].norm())
        found.append(torch.cat(tensors))
    return found


def test_adagc_follows_its_paper_on_a_series_with_spikes():
    rule = AdaGC(warmup=20)
    rows = [gradient(norm, i) for i, norm in enumerate(series(60, {5: 10.0, 30: 50.0, 45: 200.0}))]
    for i in (30, 50):  # a spike in one tensor alone
        rows[i][0, :15] *= 30
    wanted, harness = adagc(rows, rule), Harness(rule)
    for i, row in enumerate(rows):
        (share,) = harness.clip(row.clone() if i < 0 else row)
        torch.testing.assert_close(row[0].double(), wanted[i], rtol=1e-3, atol=1e-6)
        if i == 50:
            assert share >= 1 / 3
    assert float(harness.state["gamma"].max()) < 2  # no spike raised its own bound


def test_a_tensor_without_gradient_is_not_frozen_by_adagc():
    harness = Harness(AdaGC(warmup=3))
    for i in range(6):
        row = gradient(1.0, i)
        row[0, :15] = 0
        harness.clip(row)
    row = gradient(1.0, 9)
    before = row.clone()
    harness.clip(row)
    assert torch.equal(row[0, :15], before[0, :15])


def test_update_rms_bounds_each_tensor_by_itself_in_units_of_the_rate():
    rule, group = UpdateRMS(max_rms=0.5), ParamGroup("matrix", 0, 0, 37, PARAMS.slices)
    before = torch.randn(2, 37, generator=torch.Generator().manual_seed(0))
    step = torch.randn(2, 37, generator=torch.Generator().manual_seed(1)) * 1e-3
    step[:, 15:30] *= 100
    p = before + step
    rates = torch.tensor([[1e-2], [1e3]])
    over = rule.bound_update(p, before, rule.numbers(), rates, group)
    assert over.tolist() == [[False, True, False], [False, False, False]]
    assert torch.equal(p[1], (before + step)[1])
    assert torch.equal(p[0, :15], (before + step)[0, :15])
    moved = (p - before)[0, 15:30]
    assert float(moved.square().mean().sqrt()) / 1e-2 == pytest.approx(0.5, rel=1e-3)
    torch.testing.assert_close(moved / moved.norm(), step[0, 15:30] / step[0, 15:30].norm(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [ZClip, AdaGC, Norm, Value])
def test_rules_of_a_pack_keep_their_own_numbers_and_memory(kind):
    options = {
        ZClip: [{"z": 1.5, "warmup": 3}, {"alpha": 0.5, "max_norm": 0.9}, {}],
        AdaGC: [{"warmup": 2}, {"relative": 1.5, "warmup": 5}, {"beta": 0.1, "absolute": 0.3}],
        Norm: [{"max_norm": 0.5}, {}, {"max_norm": 9.0}],
        Value: [{"max_value": 0.05}, {}, {"max_value": 0.2}],
    }[kind]
    together, alone = Harness(*(kind(**o) for o in options)), [Harness(kind(**o)) for o in options]
    for i, norm in enumerate(series(40, {20: 20.0})):
        rows = torch.cat([gradient(norm * (1 + k), i + k) for k in range(3)])
        each = [rows[k : k + 1].clone() for k in range(3)]
        found = together.clip(rows)
        for k, harness in enumerate(alone):
            assert harness.clip(each[k]) == pytest.approx([found[k]])
            torch.testing.assert_close(rows[k : k + 1], each[k], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", [ZClip(warmup=3), ZClip(warmup=30), AdaGC(warmup=3), AdaGC(warmup=30)], ids=str)
def test_a_norm_that_overflows_where_no_gradient_does_is_not_remembered(rule):
    harness = Harness(rule)
    for i, norm in enumerate(series(20, {10: 1e30})):
        row = gradient(1.0, i) * norm
        harness.clip(row)
        assert row.isfinite().all()
    assert all(block.isfinite().all() for block in harness.state.values())
    assert float(harness.state.get("mean", harness.state.get("gamma")).max()) < 10
