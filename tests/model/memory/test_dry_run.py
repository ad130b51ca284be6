import json
import math
import os
import subprocess
import sys
from itertools import islice

import pytest

from model.data.prepare import prepare
from model.errors import ConfigError
from model.memory.dry_run import DryRun, dry_run, run_request
from model.memory.estimate import estimate_memory
from model.section import updated
from model.train.trainer import Trainer
from tests.support.cases import exhaustive
from tests.support.tiny import UPDATE, alone, tiny

GB = 10**9
# Some 60 MB of activations
LARGE = {"model.n_layer": 2, "model.n_embd": 128, "model.context": 64, "run.batch_size": 64, "run.tokens": 2**14}


def data(config):
    return prepare(config.data, config.tokenizer)


def request(config, limit, updates=2):
    """Run the program on a request and return its result."""
    body = {"config": config.model_dump(mode="json"), "updates": updates, "runs": 1, "limit": limit}
    command = [sys.executable, "-m", "model.memory.dry_run"]
    process = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True)
    assert not process.stderr
    return json.loads(process.stdout)


def test_a_dry_run_does_not_change_the_run():
    config = tiny({"regularization.dropout": 0.1, "regularization.ema": 0.9})
    before = alone(config)
    assert isinstance(dry_run(config, data(config)), DryRun)
    assert alone(config) == before


@pytest.mark.parametrize("accum", [2, exhaustive(1)])
def test_the_first_updates_are_those_of_the_run(accum):
    # Eleven updates in three rungs: the learning rates depend on how many there are.
    values = {"run.grad_accum": accum, "run.tokens": 11 * accum * UPDATE, "schedule.warmup": 0.5}
    config = tiny(values | {"optimizer.lr": 0.03})
    updates = config.marks()[-1]
    each = updated(config, {"run.rungs": updates, "run.tokens": updates * accum * UPDATE})
    for n in (1, 2, 3):
        *_, (_, metrics) = islice(Trainer([each]), n)
        assert dry_run(config, data(config), updates=n).loss == metrics[0].train_loss


def test_a_pack_is_as_fast_as_its_runs_together():
    found = dry_run(tiny(), data(tiny()), runs=3)
    assert found.tokens_per_second > 0
    assert found.seconds > 2 * 3 * UPDATE / found.tokens_per_second / 2


def test_a_run_that_diverges_is_no_fault_of_the_set_up():
    config = tiny({"optimizer.lr": 1e30, "clip.max_norm": 1e30, "schedule.warmup": 0.0})
    assert not math.isfinite(dry_run(config, data(config), updates=3).loss)


def test_a_long_validation_split_is_not_scored_whole(monkeypatch):
    config = tiny({"data.val_fraction": 0.3, "data.layout": "documents"})
    seen = []
    real = Trainer.__init__

    def spy(self, configs, prepared):
        seen.append(prepared.splits["val"])
        real(self, configs, prepared)

    monkeypatch.setattr(Trainer, "__init__", spy)
    monkeypatch.setattr("model.memory.dry_run.EVAL_TOKENS", 512)
    dry_run(config, data(config))
    full = data(config).splits["val"]
    assert full.n_targets > 2000
    assert seen[0].n_targets == 512
    assert seen[0].starts[-1] == 512


def test_what_cannot_be_trained_is_reported():
    config = tiny({"regularization.mask_tokens": 0.1, "run.device": "mps"})
    with pytest.raises(ConfigError, match="no mps device"):
        dry_run(config, data(config))


def test_the_peak_is_about_what_was_estimated():
    config = tiny(LARGE)
    result = request(config, 4 * GB)
    needed = estimate_memory(config, 257).total
    assert 0.9 * needed < result["peak_bytes"] < needed + 200e6  # libraries load more of themselves


def test_too_little_memory_is_an_answer():
    config = tiny(LARGE)
    assert "out_of_memory" in request(config, estimate_memory(config, 257).total // 2)


@pytest.mark.parametrize(("message", "key"), [
    ("could not create a primitive", "out_of_memory"),  # seen once in thousands of runs, where a kernel found no memory
    ("could not create a primitive descriptor for a matmul primitive", "error"),
])  # fmt: skip
def test_a_kernel_that_finds_no_memory_under_the_limit_is_too_little_memory(message, key, monkeypatch):
    def fail(*arguments):
        raise RuntimeError(message)

    monkeypatch.setattr("model.memory.dry_run.dry_run", fail)
    monkeypatch.setattr("model.memory.dry_run.limit_memory", lambda limit, device: None)
    request = {"config": tiny().model_dump(mode="json"), "updates": 1, "runs": 1, "limit": GB}
    assert run_request(request) == {key: message}


def test_an_error_of_the_set_up_is_an_answer():
    config = tiny({"data.path": os.devnull})
    assert request(config, GB)["error"].startswith("data")


def test_a_loss_that_is_not_finite_is_null():
    config = tiny({"optimizer.lr": 1e30, "clip.max_norm": 1e30, "schedule.warmup": 0.0})
    assert request(config, GB, updates=3)["loss"] is None
