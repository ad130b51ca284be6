"""The tiny run: 30 kB of generated text, one layer of width 16, 24 updates, about 50 ms."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import TrainConfig
from model.section import updated
from model.train.trainer import Metrics, Trainer

UPDATE = 4 * 16  # tokens of one update: batch x context


def text(seed: int = 0, lines: int = 1000) -> str:
    """Return lines of frequent and rare words, with an empty line after every tenth line."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlué"))
    words = ["".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(80)]
    drawn = np.minimum(rng.zipf(1.5, size=(lines, 6)) - 1, 79)
    return "\n".join(" ".join(words[i] for i in row) + "." + "\n" * (n % 10 == 9) for n, row in enumerate(drawn))


def corpus(name: str = "tiny.txt", seed: int = 0) -> str:
    """Return the path of a file with such text in the cache folder of the tests."""
    return shared(name, lambda: text(seed))


def shared(name: str, content: Callable[[], str]) -> str:
    """Return the path of a file in the cache folder, written whole by the first process that needs it."""
    path = Path(os.environ["HPO_CACHE"]) / name
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(content(), "utf-8")
        part.replace(path)
    return str(path)


def tiny(values: dict[str, Any] | None = None) -> TrainConfig:
    """Return the configuration of the tiny run: three rungs of eight updates. values: dotted fields to replace."""
    base = {
        "data.name": "text",
        "data.path": corpus(),
        "tokenizer.name": "bytes",
        "model.n_layer": 1,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.context": 16,
        "run.batch_size": 4,
        "run.tokens": 24 * UPDATE,
        "run.rungs": 3,
        "run.device": "cpu",
    }
    return updated(TrainConfig(), base | (values or {}))


def timeless(m: Metrics) -> Metrics:
    """Return metrics without the measured times."""
    return m._replace(tokens_per_second=0.0, seconds=0.0)


def curves(trainer: Trainer) -> dict[int, list[Metrics]]:
    """Train all runs to their end; return the metrics of each lane, rung by rung."""
    by_lane: dict[int, list[Metrics]] = {}
    for _, metrics in trainer:
        for lane, m in metrics.items():
            by_lane.setdefault(lane, []).append(timeless(m))
    return by_lane


def alone(config: TrainConfig) -> list[Metrics]:
    """Train one run without a pack; return its metrics, rung by rung."""
    return curves(Trainer([config]))[0]


def assert_close(found: list[Metrics], wanted: list[Metrics], tolerance: float = 1e-5) -> None:
    """Check that two curves agree: marks and rates exactly, losses and norms within a tolerance."""
    assert [(m.rung, m.tokens, m.updates, m.lr) for m in found] == [(m.rung, m.tokens, m.updates, m.lr) for m in wanted]
    for field in ("val_loss", "val_bpb", "train_loss", "grad_norm"):
        a, b = ([getattr(m, field) for m in ms] for ms in (found, wanted))
        assert a == pytest.approx(b, abs=tolerance, rel=tolerance, nan_ok=True), field
