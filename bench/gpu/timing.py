"""Time functions on a device: after a warm-up, between two synchronizations, in rounds that take turns."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench.gpu.records import Row, Settings


def synchronize(device: str) -> None:
    """Wait until the device has finished all work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """Return the seconds that a function takes, its work on the device included."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the smallest and the largest value as text."""
    return f"{_rounded(min(values), digits)} to {_rounded(max(values), digits)}"


def _rounded(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def take_turns(sides: Mapping[str, Callable[[int], Any]], settings: Settings) -> dict[str, list[float]]:
    """Return the updates per second of each side, round by round. The sides take turns, so that load slows all alike.

    sides: functions of the number of updates. Each must be warm.
    """
    updates = {}
    for name, run in sides.items():
        rate = 3 / seconds_of(lambda run=run: run(3), settings.device)
        updates[name] = max(3, round(rate * settings.seconds))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(settings.rounds):
        for name, run in sides.items():
            seconds = seconds_of(lambda run=run, name=name: run(updates[name]), settings.device)
            rates[name].append(updates[name] / seconds)
    return rates


def throughput(rates: Sequence[float], tokens: int) -> Row:
    """Return the columns of a speed. rates: updates per second of each round. tokens: of one update."""
    values = [rate * tokens for rate in rates]
    return {"tokens/s": round(statistics.median(values)), "spread": spread(values)}


def product_rates(settings: Settings, dtypes: Sequence[str] = ("bf16", "fp16", "tf32", "fp32")) -> dict[str, float]:
    """Return the floating point operations per second of a large matrix product of each type."""
    n, repeats = (128, 2) if settings.tiny else (8192, 5)
    rates = {}
    for name in dtypes:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
        a, b = (torch.randn(n, n, device=settings.device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        for _ in range(3):
            a @ b
        times = [seconds_of(lambda a=a, b=b: a @ b, settings.device) for _ in range(repeats)]
        rates[name] = 2 * n**3 / statistics.median(times)
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def peak_memory(device: str) -> int | None:
    """Return the peak bytes of tensors since the last reset, None where torch does not count them."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def reset_peak(device: str) -> None:
    """Free the memory of runs that have ended and restart the measurement of the peak."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def gigabytes(n_bytes: int | None) -> float | None:
    """Return a number of bytes in GB."""
    return None if n_bytes is None else round(n_bytes / 1e9, 3)
