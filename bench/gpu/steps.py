"""What happens on the device in ten steps: kernels, copies, synchronizations and idle time, from torch's profiler."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from bench.gpu.networks import BASES, base_config, data_of, with_compile
from bench.gpu.packs import build, fresh
from bench.gpu.records import Emit, Row, Settings
from bench.gpu.timing import synchronize
from model.train.trainer import Trainer

TABLE, MARK, STEPS = "Profile of ten steps", "ten steps", 10
KERNELS, SLOWEST, NAME = "Slowest kernels of a step", 10, 100  # rows of a case, characters of a name
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


def measure(settings: Settings, emit: Emit, runs: str, K: int, compiled: bool) -> None:
    """Emit the profile of ten steps of K runs, the assembly of their batches included, and the slowest kernels.

    runs: a size of packs, or a base in its full size.
    """
    fresh(settings)
    if runs in BASES:
        config = with_compile(base_config(runs, settings), compiled)
        trainer = Trainer([config], data_of(config, runs, settings.tiny))
    else:
        trainer, _ = build(settings, runs, K, compiled)
    trainer._train(STEPS)  # the tables of ten steps have been built once
    synchronize(settings.device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if settings.device == "cuda" else [])
    with profile(activities=activities):  # the first profile also loads the libraries of the profiler
        trainer._train(1)
        synchronize(settings.device)
    with profile(activities=activities) as profiler:
        with record_function(MARK):
            trainer._train(STEPS)
        synchronize(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text("utf-8"))["traceEvents"]
    name = {"runs": runs, "K": K, "compile": trainer.shared.run.compile}
    emit(TABLE, **name, **count_events(events))
    for row in slowest_kernels(events):
        emit(KERNELS, **name, **row)


def measure_packs(settings: Settings, emit: Emit) -> None:
    """Emit the profiles of one run and of packs, without and with torch.compile."""
    cases = [("1 M", K, compiled) for compiled in (False, True) for K in ((1, 2) if settings.tiny else (1, 16))]
    if not settings.tiny:
        cases += [("1 M", 64, True), ("10 M", 1, True), ("10 M", 16, True)]
    for runs, K, compiled in cases:
        measure(settings, emit, runs, K, compiled)


def slowest_kernels(events: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the kernels on which the device spends most time: microseconds and launches in a step."""
    spent: dict[str, list[float]] = {}
    for event in events:
        if event.get("ph") == "X" and event.get("cat") == "kernel":
            spent.setdefault(event["name"][:NAME], []).append(event["dur"])
    total = sum(map(sum, spent.values()))
    slowest = sorted(spent, key=lambda name: -sum(spent[name]))[:SLOWEST]
    return [
        {
            "kernel": name,
            "us": round(sum(spent[name]) / STEPS, 1),
            "launches": round(len(spent[name]) / STEPS, 1),
            "share": f"{sum(spent[name]) / total:.1%}",
        }
        for name in slowest
    ]


def count_events(events: Iterable[Mapping[str, Any]]) -> Row:
    """Return counts per step and the idle share of the device, from the events of a Chrome trace.

    The idle share is the part of the time from the start to the last kernel in which no kernel or copy ran.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    marks = [event for event in timed if event["name"] == MARK and event.get("cat") in ("user_annotation", "cpu_op")]
    begin = marks[0]["ts"] if marks else 0
    end = marks[0]["ts"] + marks[0]["dur"] if marks else float("inf")
    on_host = [event for event in timed if begin <= event["ts"] <= end]
    device = [event for event in timed if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    kernels = [event for event in device if event["cat"] == "kernel"]
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in device if event["ts"] >= begin)
    whole = max(stop for _, stop in spans) - (begin or spans[0][0]) if spans else 0

    def per_step(n: int) -> float:
        return round(n / STEPS, 1)

    return {
        "kernels": per_step(len(kernels)),
        "launches": per_step(sum(event["name"].startswith(LAUNCHES) for event in on_host)),
        "copies to the device": per_step(sum("HtoD" in event["name"] for event in device)),
        "copies to the host": per_step(sum("DtoH" in event["name"] for event in device)),
        "syncs": per_step(sum(event["name"] in SYNCS for event in on_host)),
        "operators": per_step(sum(event.get("cat") == "cpu_op" for event in on_host)),
        "idle": f"{1 - _covered(spans) / whole:.0%}" if whole else None,
        "ms": round((whole or (end - begin)) / 1000 / STEPS, 3),
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals that are sorted by their start."""
    total, until = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return total
