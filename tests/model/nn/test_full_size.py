import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hpo.config.files import load_base
from model.config import TrainConfig
from model.data.prepared import PreparedData, Split
from model.memory.capacity import free_memory
from model.memory.dry_run import dry_run
from model.memory.estimate import estimate_memory
from model.nn.shapes import n_parameters
from model.section import updated
from model.train.trainer import Trainer

VOCABULARY = {"mainrun": 16_000, "blueberry": 49_152, "microgpt": 27, "unet": 32_000}
PARAMETERS = {"mainrun": 27_172_864, "blueberry": 79_059_840, "microgpt": 4_192, "unet": 266_896_392}


def made_up(vocab_size: int, documents: int = 40, length: int = 1500) -> PreparedData:
    """Return splits of ids of chance, since no machine has all the texts; the end token stands between documents."""
    rng = np.random.default_rng(0)
    splits = {}
    for name in ("train", "val", "test"):
        n = documents if name == "train" else 4
        starts = np.arange(n + 1, dtype=np.int64) * length
        tokens = rng.integers(1, vocab_size, n * length + 1).astype(np.uint16)
        tokens[starts] = 0
        splits[name] = Split(name, tokens, starts, n * length, n, 0)
    return PreparedData(Path(), "made up", vocab_size, splits)


def short(name: str, device: str) -> TrainConfig:
    """Return a base in its original size, for two updates."""
    config = load_base(name, "base", TrainConfig)
    tokens = 2 * config.update_tokens()
    return updated(config, {"run.tokens": tokens, "run.rungs": 1, "run.device": device, "run.compile": "off"})


def assert_trains(config: TrainConfig, vocab_size: int, wanted: int) -> None:
    trainer = Trainer([config], made_up(vocab_size))
    assert trainer.pack.params.weights.shape[1] == wanted
    ((_, metrics),) = trainer
    assert math.isfinite(metrics[0].val_loss)
    assert metrics[0].val_loss < 1.5 * math.log(vocab_size)


def fitting(config: TrainConfig, vocab_size: int, room: int) -> TrainConfig:
    """Return the configuration with micro-batches that fit into memory by estimate, and updates of the same size."""
    while estimate_memory(config, vocab_size).total > 0.8 * room and config.run.batch_size > 1:
        run = config.run
        config = updated(config, {"run.batch_size": run.batch_size // 2, "run.grad_accum": run.grad_accum * 2})
    return config


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_base_in_its_original_size_trains_on_a_gpu_within_its_estimate(name):
    vocab_size = VOCABULARY[name]
    config = fitting(short(name, "cuda"), vocab_size, free_memory("cuda"))
    assert_trains(config, vocab_size, PARAMETERS[name])
    estimate = estimate_memory(config, vocab_size).total
    peak = dry_run(config, made_up(vocab_size), updates=1).peak_bytes
    # The libraries of a GPU take some memory of their own, which matters to small runs.
    assert 0.5 * estimate < peak + 2**28
    assert peak < 1.15 * estimate + 2**28


def test_micro_batches_shrink_until_they_fit() -> None:
    config = short("microgpt", "cpu")
    room = estimate_memory(config, 27).total
    smaller = fitting(config, 27, room)
    assert smaller.run.batch_size < config.run.batch_size
    assert smaller.update_tokens() == config.update_tokens()


def test_the_smallest_base_in_its_original_size_trains_on_a_cpu():
    assert_trains(short("microgpt", "cpu"), VOCABULARY["microgpt"], PARAMETERS["microgpt"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_base_in_its_original_size_has_the_parameters_of_its_report(name):
    config = load_base(name, "base", TrainConfig)
    assert getattr(config.tokenizer, "vocab_size", 27) == VOCABULARY[name]
    assert n_parameters(config.model, VOCABULARY[name]) == PARAMETERS[name]
