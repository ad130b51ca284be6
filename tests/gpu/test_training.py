"""The trainer on a GPU, and the same tests on a CPU where they mean something there."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from model.nn.dropout import random_bits
from model.nn.moe import grouped_linear
from model.section import updated
from model.train.tables import build_batches
from model.train.trainer import Trainer
from tests.support.tiny import UPDATE, alone, curves, timeless, tiny

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
gpu = pytest.param("cuda", marks=GPU)
both = pytest.mark.parametrize("device", ["cpu", gpu])
only_gpu = pytest.mark.parametrize("device", [gpu])

RULES = [
    {},
    {"regularization.dropout": 0.1, "regularization.ema": 0.9, "model.position": "rope"},
    {"optimizer.name": "muon", "clip.name": "update-rms"},
    {"run.precision": "fp16", "clip.name": "zclip"},
    {"recovery.name": "rollback", "recovery.spike": 3.0},
    {"model.name": "moe", "run.precision": "bf16"},
]
DIVERGING = {"optimizer.lr": 1e30, "clip.max_norm": 1e30, "schedule.warmup": 0.0}


def on(device, values=None):
    """Return the tiny run on a device, in fp32 and without torch.compile unless the values say otherwise."""
    return tiny({"run.device": device, "run.precision": "fp32", "run.compile": "off"} | (values or {}))


@contextmanager
def no_syncs() -> Iterator[None]:
    """Fail at the first operation that makes the CPU wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def guarded_curves(trainer):
    """Return the metrics of each rung. Between the start and the end of a rung, no step and no table may synchronize.

    The first rung is not guarded, because it compiles.
    """
    load, store, found = trainer.optimizer.load, trainer.optimizer.store, []

    def start(runs):
        load(runs)
        torch.cuda.set_sync_debug_mode("error" if found else "default")

    def end(runs):
        torch.cuda.set_sync_debug_mode("default")
        store(runs)

    trainer.optimizer.load, trainer.optimizer.store = start, end
    try:
        for _, metrics in trainer:
            found.append(metrics)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found


@only_gpu
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
@pytest.mark.parametrize("size", [1, 3])
def test_a_rung_makes_no_sync(device, rule, size):
    # The runs of the pack complete their updates at different micro-steps. CPU twin: tests/model/train/test_tables.py.
    common = rule | {"model.n_layer": 2, "run.align": 2 * UPDATE}
    runs = [on(device, common | {"run.grad_accum": 1 + lane % 2, "run.seed": lane}) for lane in range(size)]
    found = guarded_curves(Trainer(runs))
    assert len(found) == 3
    assert all(math.isfinite(m.val_loss) for metrics in found for m in metrics.values())


@only_gpu
def test_the_guard_sees_a_sync(device):
    with no_syncs(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones((), device=device).item()
    with no_syncs(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.tensor([1.0], device=device)


@only_gpu
@pytest.mark.parametrize("size", [1, 3])
def test_a_step_copies_nothing_between_host_and_device(device, size):
    trainer = Trainer([on(device, {"run.seed": seed}) for seed in range(size)])
    train, names = trainer._train_on, []

    def watched(table, live):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            live = train(table, live)
            torch.cuda.synchronize()
        names.append([event.name for event in profiler.events()])
        return live

    trainer._train_on = watched
    curves(trainer)
    assert any("aten::" in name for name in names[-1])
    assert [name for name in names[-1] if "HtoD" in name or "DtoH" in name] == []


@only_gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "values", [{"regularization.dropout": 0.1}, {"model.name": "moe", "run.precision": "bf16"}], ids=["gpt", "moe"]
)
def test_a_compiled_pack_equals_eager_runs_and_makes_no_sync(device, values):
    eager = [alone(on(device, values | {"run.seed": seed})) for seed in range(2)]
    runs = [on(device, values | {"run.seed": seed, "run.compile": "on"}) for seed in range(2)]
    for rung, metrics in enumerate(guarded_curves(Trainer(runs))):
        for lane in range(2):
            assert metrics[lane].val_loss == pytest.approx(eager[lane][rung].val_loss, abs=1e-3)


@pytest.mark.parametrize(
    ("device", "precision", "tolerance"),
    [
        ("cpu", "fp32", 1e-4),
        pytest.param("cuda", "fp32", 1e-3, marks=GPU),  # one product or a batch of three: other kernels
        pytest.param("cuda", "bf16", 0.02, marks=GPU),
        pytest.param("cuda", "fp16", 0.02, marks=GPU),
    ],
)
def test_a_run_in_a_pack_equals_the_run_alone(device, precision, tolerance):
    values = {"run.precision": precision, "regularization.dropout": 0.1, "model.norm": "rmsnorm"}
    runs = [on(device, values | {"run.seed": seed, "optimizer.lr": lr}) for seed, lr in enumerate((1e-3, 3e-3, 1e-2))]
    together = curves(Trainer(runs))
    for lane, config in enumerate(runs):
        wanted = [m.val_loss for m in alone(config)]
        assert [m.val_loss for m in together[lane]] == pytest.approx(wanted, abs=tolerance)


@only_gpu  # CPU twin: tests/model/train/test_trainer.py
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_near_fp32(device, precision):
    values = {"run.tokens": 60 * UPDATE, "optimizer.lr": 1e-2}
    half, full = alone(on(device, values | {"run.precision": precision})), alone(on(device, values))
    assert [m.val_loss for m in half] == pytest.approx([m.val_loss for m in full], abs=0.02)
    assert half[-1].val_loss < half[0].val_loss
    assert half != full


@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_curve_of_an_uninterrupted_one(device, precision, tmp_path):
    values = {"run.precision": precision, "regularization.dropout": 0.1, "optimizer.name": "muon"}
    config = on(device, values)
    wanted = [m.val_loss for m in alone(config)]
    first = Trainer([config])
    next(iter(first))
    first.save(0, tmp_path)
    second = Trainer([on(device, values)])
    assert second.resume(0, tmp_path) == 1
    assert [m.val_loss for m in curves(second)[0]] == pytest.approx(wanted[1:], abs=1e-4)


@only_gpu  # CPU twin: tests/model/train/test_resident.py
@pytest.mark.parametrize("layout", ["stream", "documents"])
def test_batches_of_a_gpu_are_those_of_the_cpu(device, layout):
    trainer = Trainer([on(device, {"data.name": "lines", "data.layout": layout})])
    assert trainer.resident is not None
    shape = (1, 4, 16)
    found = build_batches(trainer.runs, shape, 8, trainer.device, trainer.resident)
    for a, b in zip(found, build_batches(trainer.runs, shape, 8, torch.device("cpu")), strict=True):
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize(
    ("device", "dtype", "tolerance"),
    [
        ("cpu", torch.bfloat16, 1e-2),
        ("cpu", torch.float32, 1e-5),
        pytest.param("cuda", torch.bfloat16, 1e-2, marks=GPU),
        pytest.param("cuda", torch.float32, 1e-5, marks=GPU),
    ],
)
def test_the_product_of_each_expert_equals_one_of_its_own(device, dtype, tolerance):
    counts = [5, 0, 17, 1, 9, 32]  # two runs of three experts; no number is a multiple of the alignment
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(sum(counts), 20, generator=rng).to(device, dtype).requires_grad_()
    weight = torch.randn(2, 3, 12, 20, generator=rng).to(device, dtype).requires_grad_()
    probe = torch.randn(sum(counts), 12, generator=rng).to(device)
    found = grouped_linear(x, weight, torch.tensor(counts, device=device))
    parts = zip(x.float().split(counts), weight.float().flatten(0, 1), strict=True)
    wanted = torch.cat([part @ matrix.T for part, matrix in parts])
    pairs = [(found, wanted)]
    grads = [torch.autograd.grad((y.float() * probe).sum(), (x, weight)) for y in (found, wanted)]
    pairs += zip(*grads, strict=True)
    for a, b in pairs:
        assert (a.float() - b.float()).norm() < tolerance * b.float().norm()


@both
def test_a_diverging_run_does_not_change_its_neighbours(device):
    runs = [on(device, {"run.seed": seed}) for seed in range(3)]
    calm = curves(Trainer(runs))
    runs[1] = updated(runs[1], DIVERGING)
    stormy = curves(Trainer(runs))
    for lane in (0, 2):
        assert [m.val_loss for m in stormy[lane]] == pytest.approx([m.val_loss for m in calm[lane]], abs=1e-5)
    assert [math.isnan(m.val_loss) for m in stormy[1]] == [True]


@both
def test_a_probe_changes_no_bit_of_its_run(device):
    config = on(device, RULES[1])
    trainer, found = Trainer([config]), []
    for _, metrics in trainer:
        found.append(timeless(metrics[0]))
        if metrics[0].rung == 1:
            trainer.probe({0: 0.25})
    assert found == [timeless(m) for m in alone(config)]


@only_gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("compiled", [False, True])
def test_random_numbers_are_those_of_a_cpu(device, compiled):
    keys = torch.tensor([1, -7, 2**31 - 1, -(2**31)], dtype=torch.int32)
    wanted = random_bits(10_007, keys, 65_538)
    draw = torch.compile(random_bits) if compiled else random_bits
    assert torch.equal(draw(10_007, keys.to(device), 65_538).cpu(), wanted)


def test_the_time_of_a_rung_ends_when_its_values_have_been_read(monkeypatch):
    # A GPU still computes after the last step has been launched. Reading a value waits for it.
    trainer, order = Trainer([on("cpu")]), []
    trainer.reads_divergence = False  # as on a GPU
    clock, read, train = time.perf_counter, torch.Tensor.tolist, trainer._train
    monkeypatch.setattr("model.train.trainer.time.perf_counter", lambda: order.append("clock") or clock())
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: order.append("read") or read(tensor))
    trainer._train = lambda micro_steps: order.append("launched") or train(micro_steps)
    next(iter(trainer))
    assert order[:4] == ["clock", "launched", "read", "clock"]
