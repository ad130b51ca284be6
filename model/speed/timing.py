"""How fast the first steps of a run are on this machine: measured once for each shape, and remembered."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model.cache import cache_root, locked, write_whole
from model.config import ENGINE, TrainConfig
from model.data.prepared import PreparedData
from model.errors import ConfigError
from model.memory.capacity import device_name
from model.section import updated
from model.train.device import resolve
from model.train.trainer import Trainer

ENDLESS = {"run.tokens": 10**12, "run.rungs": 1, "run.align": 0}  # more tokens than any measurement trains
WARM, PIECES, PIECE_S = 3, 5, 0.1  # steps before the first measurement, measurements, seconds of one of them


class Speed(NamedTuple):
    """Seconds of the first steps of K runs in one pack."""

    step_s: float
    """Of one micro-step of all runs, their optimizer steps included."""
    first_s: float
    """Of the first micro-step, compilation included."""


def speed_of(config: TrainConfig, prepared: PreparedData, runs: int = 1) -> Speed:
    """Return the speed of a pack of equal runs, from the table of this machine or by a measurement.

    Raises:
        ConfigError: this machine does not support the configuration.
        Exception: any other error that would end the runs, such as too little memory.
    """
    key = _key(config, prepared.vocab_size, runs)
    if (known := remembered(config, prepared.vocab_size, runs)) is not None:
        return known
    speed = measure_speed(config, prepared, runs)
    with suppress(ConfigError), locked(_file()):  # a cache folder that cannot be written
        write_whole(_file(), [json.dumps({**_read(), key: speed}, indent=1).encode()])
    return speed


def remembered(config: TrainConfig, vocab_size: int, runs: int = 1) -> Speed | None:
    """Return the speed that was measured earlier on this machine, None if there is none."""
    try:
        return Speed(*map(float, _read()[_key(config, vocab_size, runs)]))
    except (LookupError, TypeError, ValueError):
        return None


def measure_speed(config: TrainConfig, prepared: PreparedData, runs: int = 1) -> Speed:
    """Train the first steps of a pack of equal runs for about a second. The result of the training is discarded.

    The fastest of several short pieces counts, because other programs only make a piece slower.
    """
    start = time.perf_counter()
    trainer = Trainer([updated(config, ENDLESS)] * runs, prepared)
    trainer._train(1)
    _wait(trainer.device)
    first_s = time.perf_counter() - start
    trainer._train(WARM)
    n = max(1, round(PIECE_S / max(1e-6, _seconds(trainer, 2) / 2)))
    return Speed(min(_seconds(trainer, n) / n for _ in range(PIECES)), first_s)


def _seconds(trainer: Trainer, n: int) -> float:
    """Return the seconds of n micro-steps: of this process on one CPU thread, where other programs do not count."""
    on_cpu = trainer.device.type == "cpu" and torch.get_num_threads() == 1
    clock: Callable[[], float] = time.process_time if on_cpu else time.perf_counter
    _wait(trainer.device)
    start = clock()
    trainer._train(n)
    _wait(trainer.device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _key(config: TrainConfig, vocab_size: int, runs: int) -> str:
    """Return a text that names the machine, the shape and everything else on which the speed depends."""
    config = resolve(config)
    numbers = config.regularization.numbers() | config.model.numbers()
    active = sorted(name for name, value in numbers.items() if value > 0)
    parts = [config.pack_key(), active, vocab_size, torch.get_num_threads(), torch.__version__, ENGINE]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    compiled = "compiled" if config.run.compile == "on" else "eager"
    return f"{device_name(config.run.device)}, {runs} runs, {compiled}, {digest}"


def _file() -> Path:
    return cache_root() / "speed.json"


def _read() -> dict[str, Any]:
    """Return the measurements of this machine; none if the file is missing or damaged."""
    with suppress(OSError, ValueError):
        table = json.loads(_file().read_text("utf-8"))
        return table if isinstance(table, dict) else {}
    return {}
