"""Dry run: train the first updates of a run and evaluate one batch, to check that it works and measure its memory.

`python -m model.memory.dry_run` reads a request as JSON from standard input and prints the result as JSON. A dry run
that exhausts memory then ends that process, not the caller.
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
from model.data.prepare import prepare
from model.data.prepared import PreparedData, Split
from model.errors import ConfigError, is_out_of_memory
from model.section import updated
from model.train.device import resolve
from model.train.evaluate import EVAL_TOKENS
from model.train.trainer import Trainer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# What oneDNN says where a kernel finds no memory. Without a limit it could mean something else.
KERNEL_FAILURES = ("could not create a primitive", "could not execute a primitive")


class DryRun(NamedTuple):
    """Time, memory and loss of the first updates of K equal runs in one pack."""

    seconds: float
    """Seconds from building the runs to the last validation batch."""
    tokens_per_second: float
    """Throughput of all runs together in the last update, without validation."""
    peak_bytes: int
    """Peak bytes: of tensors on a GPU; elsewhere, the growth of the peak of the process, other threads included."""
    loss: float
    """Training loss of the first run in the last update, in nats per token; not finite if it diverged."""


def dry_run(config: TrainConfig, prepared: PreparedData, updates: int = 2, runs: int = 1) -> DryRun:
    """Train the first updates of a run, with one validation batch after each, and return the measurements.

    updates: number of updates. runs: number of equal runs in the pack. The result of the training is discarded.

    Raises:
        ConfigError: this machine or this dataset does not support the configuration.
        Exception: any other error that would end the run, such as too little memory. See model/errors.py.
    """
    device = resolve(config).run.device
    short, small = _with_rung_per_update(config), _with_small_validation(prepared, config.model.context)
    base, started = _reset_peak(device), time.perf_counter()
    last = None
    try:
        # The trainer stops at each mark, so only the first updates are trained.
        for _, metrics in islice(Trainer([short] * runs, small), updates):
            last = metrics[0]
        seconds = time.perf_counter() - started
        peak = _peak(device) - base
    finally:
        _free_cache(device)
    assert last is not None
    loss = last.train_loss if math.isfinite(last.val_loss) else math.nan
    return DryRun(seconds, last.tokens_per_second * runs, max(0, peak), loss)


def _with_rung_per_update(config: TrainConfig) -> TrainConfig:
    """Return the config with a rung at each update. Its first updates, learning rates included, are unchanged."""
    updates = config.marks()[-1]
    length = {"run.tokens": updates * config.update_tokens(), "run.rungs": updates, "run.align": 0}
    return updated(config, length)


def _with_small_validation(prepared: PreparedData, context: int) -> PreparedData:
    """Return the data with a validation split of about one batch."""
    val = prepared.splits["val"]
    end = min(val.n_targets, max(1, EVAL_TOKENS // context) * context)
    starts = np.append(val.starts[val.starts < end], end)
    small: Split = dataclasses.replace(val, tokens=val.tokens[: end + 1], starts=starts)
    return dataclasses.replace(prepared, splits=prepared.splits | {"val": small})


def _reset_peak(device: str) -> int:
    """Reset the peak of memory use and return the bytes in use now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if device == "mps":
        return torch.mps.driver_allocated_memory()
    with suppress(OSError):  # not Linux, or no permission: the peak is then that of the whole process
        CLEAR.write_text("5")
    return _process_memory("VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return torch.mps.driver_allocated_memory() if device == "mps" else _process_memory("VmHWM")


def _process_memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes, or the peak resident size without /proc."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _free_cache(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def limit_memory(limit: int, device: str) -> None:
    """Limit this process to `limit` bytes beyond its memory now. There is no limit on an Apple GPU."""
    if device == "cuda":
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    elif device == "cpu" and STATUS.exists():
        # The data segment, not the address space, of which threads reserve much and use little.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_process_memory("VmData") + limit, hard))


def lift_limit(device: str) -> None:
    """Remove the limit, so that the process has memory to report the error."""
    if device == "cpu":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def run_request(request: dict[str, Any]) -> dict[str, Any]:
    """Do the dry run of a request. Return its fields, or {"out_of_memory": message} or {"error": message}.

    request: config (a TrainConfig as JSON), updates, runs, limit (bytes).
    """
    device = "cpu"
    try:
        config = resolve(TrainConfig.model_validate(request["config"]))
        device = config.run.device
        prepared = prepare(config.data, config.tokenizer)
        _warm_up(device)
        limit_memory(request["limit"], device)
        result = dry_run(config, prepared, request["updates"], request["runs"])
    except (ConfigError, ValidationError) as error:
        return {"error": str(error)}
    except Exception as error:
        lift_limit(device)
        text = str(error).strip().partition("\n")[0].split("DefaultCPUAllocator: ")[-1] or type(error).__name__
        return {"out_of_memory" if is_out_of_memory(error) or text in KERNEL_FAILURES else "error": text}
    return result._asdict() | {"loss": result.loss if math.isfinite(result.loss) else None}


def _warm_up(device: str) -> None:
    """Let the libraries load what they load at first use, so that it does not count as memory of the run."""
    x = torch.ones(64, 64, device=device, requires_grad=True)
    torch.nn.functional.gelu(x @ x).sum().backward()


if __name__ == "__main__":
    print(json.dumps(run_request(json.load(sys.stdin))))
