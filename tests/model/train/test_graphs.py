"""Compiled steps: four shapes, each compiled once, which takes about 25 CPU seconds. `make exhaustive` runs all."""

import math

import pytest
import torch

from model.errors import ConfigError
from model.section import updated
from model.train import graphs
from model.train.trainer import Trainer
from tests.support.cases import exhaustive
from tests.support.tiny import alone, curves, timeless, tiny

pytestmark = [
    pytest.mark.xdist_group("compiler"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]
ON = {"run.compile": "on"}
ALL_SITES = ("embedding_dropout", "attention_dropout", "residual_dropout", "mlp_dropout")
# Packs: the runs complete their updates at different micro-steps.
PACK = {
    "run.align": 128,
    "run.rungs": 2,
    "clip.name": "update-rms",
    "model.position": "rope",
    "run.graph_numbers": ALL_SITES,
}
RULES = ["adamw", exhaustive("muon")]
GUARDED = {
    "run.align": 128,
    "run.rungs": 2,
    "recovery.name": "rollback",
    "regularization.ema": 0.9,
    "clip.name": "zclip",
    "run.spike_every": 7,
    "run.spike_scale": 1e38,
    "run.precision": "bf16",
}


@pytest.fixture(scope="module", autouse=True)
def compiler():
    """Skip these tests on a machine without a C++ compiler, and use one thread, so that all processes share code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        next(iter(compiled([tiny(PACK)] * 3)))
    except ConfigError as error:
        pytest.skip(str(error))
    yield
    torch.set_num_threads(threads)


def compiled(configs):
    return Trainer([updated(config, ON) for config in configs])


def losses(of_lane):
    return [m.val_loss for m in of_lane]


def resumed(configs, folder):
    """Return the curves of runs that another trainer resumes from their first rung, in the same lanes."""
    first = compiled(configs)
    next(iter(first))
    for lane in range(len(configs)):
        first.save(lane, folder / str(lane))
    later = compiled(configs)
    for lane in range(len(configs)):
        later.resume(lane, folder / str(lane))
    return curves(later)


def equal(found, wanted):
    return all([*map(timeless, found[lane])] == [*map(timeless, wanted[lane])] for lane in wanted)


@pytest.mark.parametrize("size", [exhaustive(1), 3])
def test_runs_with_and_without_dropout_share_one_graph(size, tmp_path):
    compiled_before = None
    for dropout in (0.0, 0.2):
        config = tiny(PACK | {"regularization.dropout": dropout})
        wanted = curves(compiled([config] * size))
        compiled_before = compiled_before or len(graphs._code)
        assert losses(wanted[0]) == pytest.approx(losses(alone(config)), abs=1e-4)
        assert equal(curves(compiled([config] * size)), wanted)
        rest = resumed([config] * size, tmp_path / str(dropout))
        assert equal(rest, {lane: of_lane[1:] for lane, of_lane in wanted.items()})
    assert len(graphs._code) == compiled_before


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.name": "adamw"},
        exhaustive({"optimizer.name": "muon"}),
        exhaustive({"model.name": "moe", "model.top_k": 3, "model.router_noise": 0.1}),
        exhaustive({"model.name": "moe", "run.precision": "bf16"}),
    ],
    ids=str,
)
def test_a_compiled_pack_equals_its_runs_alone_and_resumes_bit_for_bit(values, tmp_path):
    configs = [tiny(PACK | values | {"run.grad_accum": 1 + lane % 2, "run.seed": lane}) for lane in range(3)]
    wanted = curves(compiled(configs))
    for lane, config in enumerate(configs):
        assert losses(wanted[lane]) == pytest.approx(losses(alone(config)), abs=1e-4)
    assert equal(resumed(configs, tmp_path), {lane: of_lane[1:] for lane, of_lane in wanted.items()})


@pytest.mark.parametrize("rule", RULES)
def test_neither_a_diverging_neighbour_nor_a_refilled_lane_changes_a_bit_or_compiles_again(rule):
    calm = [tiny(PACK | {"optimizer.name": rule, "run.seed": seed}) for seed in range(3)]
    wanted, n_compiled = curves(compiled(calm)), len(graphs._code)
    wild = updated(calm[1], {"run.spike_every": 1, "run.spike_scale": 1e38})
    trainer = compiled([calm[0], wild, calm[2]])
    found = {lane: [] for lane in range(3)}
    for _, metrics in trainer:
        for lane, m in metrics.items():
            found[lane].append(m)
            if lane == 1 and math.isnan(m.val_loss):
                trainer.stop(1)
                trainer.start(1, updated(calm[1], ON))
    assert equal(found, {0: wanted[0], 2: wanted[2]})
    assert math.isnan(found[1][0].val_loss)
    assert [timeless(m) for m in found[1][1:]] == [timeless(m) for m in wanted[1]]
    assert len(graphs._code) == n_compiled


@pytest.mark.exhaustive
def test_compiled_runs_recover_as_eager_runs_do(tmp_path):
    configs = [tiny(GUARDED | {"run.grad_accum": 1 + lane, "run.seed": lane}) for lane in range(2)]
    wanted, eager = curves(compiled(configs)), curves(Trainer(configs))
    for lane in range(2):
        assert [m.recoveries for m in wanted[lane]] == [m.recoveries for m in eager[lane]]
        assert sum(m.recoveries for m in wanted[lane]) > 0
        assert losses(wanted[lane]) == pytest.approx(losses(eager[lane]), abs=2e-3)
        assert [m.ema_val_loss for m in wanted[lane]] == pytest.approx([m.ema_val_loss for m in eager[lane]], abs=2e-3)
        assert [m.grad_norm for m in wanted[lane]] == pytest.approx([m.grad_norm for m in eager[lane]], rel=1e-2)
    assert equal(resumed(configs, tmp_path), {lane: of_lane[1:] for lane, of_lane in wanted.items()})
