import gc
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hpo.config.files import read_config
from model.config import TrainConfig
from model.data.prepare import prepare
from model.memory import capacity
from model.memory.estimate import MemoryEstimate, estimate_memory, memory_shortage
from model.nn.shapes import n_parameters
from model.section import updated
from model.train.pack import Pack
from model.train.trainer import Trainer
from tests.support.cases import covering, exhaustive
from tests.support.tiny import alone, tiny

ROOT = Path(__file__).parents[3]
V = 257  # of the tokenizer "bytes"
# Large enough that tensors outweigh Python, small enough to train in a second.
SHAPE = {"model.n_layer": 2, "model.n_embd": 64, "model.context": 32, "run.batch_size": 32, "run.rungs": 1}
LENGTH = {"run.tokens": 2 * 32 * 32}

CASES = {
    "gpt": {},
    "dropout": {"regularization.dropout": 0.1},
    "bf16": {"run.precision": "bf16"},
    "masked": {"model.document_mask": True, "model.position": "rope", "model.mlp": "swiglu"},
    "explicit": {"run.attention": "explicit", "model.tied": False, "model.bias": True},
    "drawn": {"model.init": "glorot", "model.embedding_projection": True, "model.skips": "convex"},
    "moe": {"model.name": "moe"},
    "moe-swiglu": {"model.name": "moe", "model.mlp": "swiglu", "model.n_expert": 3, "model.top_k": 1},
    "diagnostics": {"run.diagnostics": True},
    "average": {"regularization.ema": 0.9},
    "rollback": {"recovery.name": "rollback"},
    "accumulating": {"run.grad_accum": 2, "run.tokens": 4 * 32 * 32},
    **{name: {"optimizer.name": name} for name in ("adam", "stable-adamw", "muon", "lion", "sgd", "rmsprop")},
    **{name: {"clip.name": name} for name in ("value", "zclip", "adagc", "update-rms")},
}

# Those that differ most in what they allocate
OFTEN = ("masked", "diagnostics", "rollback", "muon")


def config(values=None):
    return tiny(SHAPE | LENGTH | (values or {}))


def allocated(run, runs, probed=False):
    """Train to the end; return the peak bytes of all tensors, as torch's profiler records them.

    probed: whether the runs are probed at their first rung.
    """
    gc.collect()  # what an earlier run left would be freed in the middle of this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trainer = Trainer([run] * runs)
        for rung, _ in trainer:
            if probed and rung == 1:
                trainer.probe(dict.fromkeys(range(runs), 0.5))
        assert rung == run.run.rungs
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.fixture(autouse=True)
def no_calibration(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "cache_root", lambda: tmp_path)


@pytest.mark.parametrize(
    ("name", "runs"),
    [(name, 1) if name in OFTEN else exhaustive(name, 1) for name in CASES]
    + [(name, 3) if name == "moe" else exhaustive(name, 3) for name in ("gpt", "dropout", "moe", "muon", "adagc")],
)
def test_the_estimate_is_what_the_real_run_allocates(name, runs):
    run = config(CASES[name])
    prepare(run.data, run.tokenizer)
    assert estimate_memory(run, V, runs).total == pytest.approx(allocated(run, runs), rel=0.06)


@pytest.mark.parametrize("name", ["average", exhaustive("rollback"), exhaustive("adagc")])
@pytest.mark.parametrize("runs", [1, exhaustive(3)])
def test_the_estimate_of_probed_runs_contains_the_copies_of_a_probe(name, runs):
    wide = {"model.n_embd": 256, "run.batch_size": 8}  # its weights outweigh its activations
    run = config(CASES[name] | wide | {"run.tokens": 4 * 8 * 32, "run.rungs": 2})
    prepare(run.data, run.tokenizer)
    peak = allocated(run, runs, probed=True)
    assert peak > 1.2 * allocated(run, runs)
    assert estimate_memory(run, V, runs, probed=True).total == pytest.approx(peak, rel=0.06)


@pytest.mark.parametrize(("layers", "name"), covering([1, 3], ["gpt", "moe"]))
def test_parameters_and_optimizer_are_counted_exactly(name, layers):
    run = config({"model.name": name, "model.n_layer": layers, "optimizer.name": "muon", "regularization.ema": 0.9})
    found = estimate_memory(run, V, runs=2)
    n = n_parameters(run.model, V)
    weights = Pack(run, V, 2, torch.device("cpu")).params
    assert found.parameters == found.gradients == 2 * 4 * n
    assert found.optimizer == 4 * sum(weights.state[key].numel() for key in run.optimizer.state_groups())
    assert found.other >= 2 * 4 * n  # the averages


@pytest.mark.parametrize("name", ["gpt", "moe"])
def test_activations_are_what_the_real_forward_pass_keeps(name):
    run = config({"model.name": name, "regularization.dropout": 0.1})
    pack = Pack(run, V, 1, torch.device("cpu"))
    pack.initialize(0, run)
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randint(V, (1, 32, 32))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pack.accumulate_grads(x, x, torch.ones(1, dtype=torch.int32), torch.ones(1), torch.ones(1))
    saved.pop(pack.params.weights.untyped_storage().data_ptr(), None)
    assert estimate_memory(run, V).activations == pytest.approx(sum(saved.values()), rel=0.02)


@pytest.mark.parametrize(
    ("field", "name"), covering(["run.batch_size", "model.context", "model.n_layer", "model.n_embd"], ["gpt", "moe"])
)
def test_more_of_anything_needs_more(name, field):
    # Large batches, so that no validation batch, which has a size of its own, is the peak.
    sizes = [config({"model.name": name, "run.batch_size": 512, "run.tokens": 2**17, field: n}) for n in (64, 128)]
    if field == "run.batch_size":
        sizes = [config({"model.name": name, "run.tokens": 2**17, field: n}) for n in (512, 1024)]
    if field == "model.n_layer":
        sizes = [config({"model.name": name, "run.batch_size": 512, "run.tokens": 2**17, field: n}) for n in (2, 4)]
    less, more = (estimate_memory(size, V) for size in sizes)
    assert more.total > less.total
    assert more.activations > less.activations


def test_a_run_that_no_machine_holds_is_estimated():
    run = config({"model.n_embd": 65_536, "model.n_head": 64})
    found = estimate_memory(run, V)
    matrices = 12 * 65_536**2 * 2
    assert found.parameters == pytest.approx(4 * matrices, rel=0.01)
    assert found.total > 4 * found.parameters


@pytest.mark.parametrize("base", sorted(ROOT.glob("studies/bases/*-small.yaml")), ids=lambda path: path.stem)
def test_what_is_shipped_can_be_estimated(base):
    tree, _ = read_config(base)
    run = updated(TrainConfig.model_validate(tree), {"run.device": "cpu"})
    n = n_parameters(run.model, V)
    assert estimate_memory(run, V, runs=2).parameters == 2 * 4 * n


def test_accumulating_adds_nothing():
    assert estimate_memory(config({"run.grad_accum": 2, "run.tokens": 2**16}), V) == estimate_memory(config(), V)


def test_an_estimate_does_not_change_the_run():
    run = tiny({"regularization.dropout": 0.1})
    before = alone(run)
    estimate_memory(run, V)
    assert alone(run) == before


def test_what_does_not_fit_is_stated_in_gigabytes():
    run = config()
    needed = estimate_memory(run, V).total
    assert memory_shortage(run, V, 1, needed) is None
    assert memory_shortage(run, V, 1, needed - 1).startswith("needs about ")
    assert memory_shortage(config({"run.batch_size": 2**14, "run.tokens": 2**20}), V, 1, 10**9).endswith(
        " GB, 1.0 GB are available"
    )


def test_what_was_measured_corrects_what_fits():
    run = config({"run.batch_size": 2048, "run.tokens": 2**18})
    needed = estimate_memory(run, V).total
    assert needed > capacity.MIN_ESTIMATE
    assert memory_shortage(run, V, 1, 2 * needed - 1) is None
    capacity.record_measurement(needed, 2 * needed, "cpu")
    assert memory_shortage(run, V, 1, 2 * needed) is None
    assert memory_shortage(run, V, 1, 2 * needed - 1) is not None


def test_shapes_that_were_seen_are_not_gone_through_again(monkeypatch):
    run = config({"model.n_embd": 48})
    first = memory_shortage(run, V, 2, 0)
    monkeypatch.setattr("model.memory.estimate.estimate_memory", lambda *args: pytest.fail("estimated again"))
    assert memory_shortage(updated(run, {"optimizer.lr": 0.5, "run.seed": 3}), V, 2, 0) == first


def test_the_total_is_the_sum_of_its_parts():
    assert MemoryEstimate(1, 2, 3, 4, 5, 6).total == 21
