"""A rehearsal: the first updates of a run and a batch of its validation, to see that it works and what it needs.

As a program, `python -m model.rehearsal`, it reads one as JSON and writes what came of it as JSON, so that one that
takes all memory ends another process than the one that asked.
"""

import dataclasses
import gc
import json
import math
import resource
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from model.config import TrainConfig
from model.data.prepare import PreparedData, Split, prepare
from model.errors import ConfigError, is_out_of_memory
from model.section import updated
from model.train.device import resolve
from model.train.evaluate import EVAL_TOKENS
from model.train.trainer import Trainer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Rehearsal(NamedTuple):
    """What the first updates of K equal runs side by side took."""

    seconds: float
    """From building the runs to the last validation batch."""
    tokens_per_second: float
    """Of all runs together in the last update, validation left out."""
    peak_bytes: int
    """Of the tensors on a GPU; elsewhere what the peak of the whole process grew by, its other threads included."""
    loss: float
    """Of the first run in the last update, nats per token; not finite where it diverged, which is no fault."""


def rehearse(config: TrainConfig, prepared: PreparedData, updates: int = 2, runs: int = 1) -> Rehearsal:
    """Train the first updates as the run will, each with one batch of validation behind it; then forget it all.

    Raises:
        ConfigError: this machine or this text cannot do what the config asks.
        Exception: whatever else would end the run, such as too little memory: see model/faults.py.
    """
    device = resolve(config).run.device
    short, text = _short(config), _little_validation(prepared, config.model.context)
    base, began = _settled(device), time.perf_counter()
    last = None
    try:
        # The marks are reached one by one: nothing but the first updates is ever trained.
        for _, metrics in islice(Trainer([short] * runs, text), updates):
            last = metrics[0]
        seconds = time.perf_counter() - began
        peak = _peak(device) - base
    finally:
        _give_back(device)
    assert last is not None
    loss = last.train_loss if math.isfinite(last.val_loss) else math.nan
    return Rehearsal(seconds, last.tokens_per_second * runs, max(0, peak), loss)


def _short(config: TrainConfig) -> TrainConfig:
    """Return the config with a rung at each update: its first updates, learning rates included, are the same."""
    updates = config.marks()[-1]
    length = {"run.tokens": updates * config.update_tokens(), "run.rungs": updates, "run.align": 0}
    return updated(config, length)


def _little_validation(prepared: PreparedData, context: int) -> PreparedData:
    """Return the data with a validation split that is about one batch."""
    val = prepared.splits["val"]
    end = min(val.n_targets, max(1, EVAL_TOKENS // context) * context)
    starts = np.append(val.starts[val.starts < end], end)
    little: Split = dataclasses.replace(val, tokens=val.tokens[: end + 1], starts=starts)
    return dataclasses.replace(prepared, splits=prepared.splits | {"val": little})


def _settled(device: str) -> int:
    """Forget earlier peaks; return the bytes in use now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    with suppress(OSError):  # no Linux, or not allowed: the peak is then that of the process's whole life
        CLEAR.write_text("5")
    return _of_process("VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return torch.mps.driver_allocated_memory() if device == "mps" else _of_process("VmHWM")


def _of_process(field: str) -> int:
    """Return a size from /proc, in bytes; where there is none, the largest resident size so far."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _give_back(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def bound(limit: int, device: str) -> None:
    """Let this process have no more than `limit` bytes beyond what it has now; on an Apple GPU it cannot be done."""
    if device == "cuda":
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    elif device == "cpu" and STATUS.exists():
        # Data, not address space: threads reserve much of that and use little.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_of_process("VmData") + limit, hard))


def unbound(device: str) -> None:
    """Take the bound off again, so that what went wrong can be told."""
    if device == "cpu":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Rehearse what is asked for: config, updates, runs and limit, in bytes; return it, or what stood in its way."""
    device = "cpu"
    try:
        config = resolve(TrainConfig.model_validate(asked["config"]))
        device = config.run.device
        prepared = prepare(config.data, config.tokenizer)
        _warm_up(device)
        bound(asked["limit"], device)
        found = rehearse(config, prepared, asked["updates"], asked["runs"])
    except (ConfigError, ValidationError) as error:
        return {"error": str(error)}
    except Exception as error:
        unbound(device)
        text = str(error).strip().partition("\n")[0].split("DefaultCPUAllocator: ")[-1] or type(error).__name__
        return {"out_of_memory" if is_out_of_memory(error) else "error": text}
    return found._asdict() | {"loss": found.loss if math.isfinite(found.loss) else None}


def _warm_up(device: str) -> None:
    """Have the libraries load what they load at the first use, which no run of its own is to be blamed for."""
    x = torch.ones(64, 64, device=device, requires_grad=True)
    torch.nn.functional.gelu(x @ x).sum().backward()


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
