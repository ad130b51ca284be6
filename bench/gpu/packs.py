"""Runs of 1 and 10 million parameters: K in one pack, K processes side by side, and one after the other."""

import multiprocessing
import statistics
import time
from collections.abc import Sequence
from queue import Empty
from typing import Any

import torch

from bench.gpu.card import mps_runs
from bench.gpu.networks import data_of, small_config, with_compile
from bench.gpu.records import Emit, Settings
from bench.gpu.timing import (
    gigabytes,
    peak_memory,
    reset_peak,
    seconds_of,
    spread,
    synchronize,
    take_turns,
)
from model.errors import is_out_of_memory
from model.section import updated
from model.train.trainer import Trainer

PACKS, PROCESSES = "Packs", "Processes"
SIZES = (1, 16, 64, 4)  # of packs; what matters most comes first
WARM = 3
STRIDE = 16  # updates between two looks at the clock


def build(settings: Settings, size: str, K: int, compiled: bool) -> tuple[Trainer, float]:
    """Return K runs in one pack after their first updates, and the seconds that the first update took."""
    config = with_compile(small_config(size, settings), compiled)
    trainer = Trainer([updated(config, {"run.seed": seed}) for seed in range(K)], data_of(config))
    first = seconds_of(lambda: trainer._train(1), settings.device)
    trainer._train(WARM)
    return trainer, first


def fresh(settings: Settings) -> None:
    """Forget compiled code and free memory. Without this, the second K would be compiled for any K."""
    torch.compiler.reset()
    reset_peak(settings.device)


def measure(settings: Settings, emit: Emit, size: str, compiled: bool, sizes: Sequence[int] = SIZES) -> None:
    """Emit the speed of packs of several sizes, and its ratio to that of runs one after the other (K = 1)."""
    single = 0.0
    for K in (1, 2) if settings.tiny else sizes:
        fresh(settings)
        try:
            trainer, first = build(settings, size, K, compiled)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            emit("Did not fit", network=f"{size}, K = {K}", error=str(error).partition("\n")[0][:200])
            continue
        tokens = trainer.shared.update_tokens()
        rates = [rate * K * tokens for rate in take_turns({"pack": trainer._train}, settings)["pack"]]
        rate = statistics.median(rates)
        single = single or rate
        columns = {"tokens/s": round(rate), "spread": spread(rates), "x one after the other": round(rate / single, 2)}
        memory = {"first update s": round(first, 1), "peak GB": gigabytes(peak_memory(settings.device))}
        emit(PACKS, runs=size, compile=trainer.shared.run.compile, K=K, **columns, **memory)
        del trainer


def warm_up(settings: Settings, emit: Emit, size: str, sizes: Sequence[int] = SIZES) -> None:
    """Compile the steps of all packs, so that later parts find them in the cache on disk."""
    for K in (1,) if settings.tiny else sizes:
        fresh(settings)
        _, first = build(settings, size, K, compiled=True)
        emit("Compilation", network=f"{size}, K = {K}", **{"first update s": round(first, 1)})


def processes(settings: Settings, emit: Emit, size: str) -> None:
    """Emit the speed of K processes with one run each on the same device, without torch.compile."""
    single = 0.0
    for K in (1, 2) if settings.tiny else (1, 4, 16, 64):
        began = time.perf_counter()
        rates = _in_processes(settings, size, K)
        if len(rates) < K:
            emit(PROCESSES, runs=size, K=K, error=f"{K - len(rates)} of {K} processes failed")
            break
        single = single or sum(rates)
        ratio = {"x one after the other": round(sum(rates) / single, 2), "MPS": "yes" if mps_runs() else "no"}
        started = {"start and measurement s": round(time.perf_counter() - began, 1)}
        emit(PROCESSES, runs=size, K=K, **{"tokens/s": round(sum(rates))}, **ratio, **started)


def _in_processes(settings: Settings, size: str, K: int) -> list[float]:
    """Return the tokens per second of K processes that train at the same time. Failed processes are left out."""
    # Forks of this process, which has imported torch and has not used the device.
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(K), context.Queue()
    workers = [context.Process(target=_train_alone, args=(settings, size, seed, barrier, queue)) for seed in range(K)]
    for worker in workers:
        worker.start()
    rates = []
    try:
        while len(rates) < K:
            try:
                rates.append(queue.get(timeout=1))
            except Empty:
                if not any(worker.is_alive() for worker in workers):
                    break
    finally:
        for worker in workers:
            worker.join(1)
            worker.kill()
    return rates


def _train_alone(settings: Settings, size: str, seed: int, barrier: Any, queue: Any) -> None:
    """Train one run for a fixed time that begins when all processes are warm; report tokens per second."""
    torch.set_num_threads(1)
    config = updated(small_config(size, settings), {"run.seed": seed})
    trainer = Trainer([config], data_of(config))
    trainer._train(WARM)
    synchronize(settings.device)
    barrier.wait(60)
    began, updates = time.perf_counter(), 0
    while time.perf_counter() - began < 5 * settings.seconds:
        trainer._train(STRIDE)
        synchronize(settings.device)
        updates += STRIDE
    queue.put(updates * config.update_tokens() / (time.perf_counter() - began))
    queue.close()
    queue.join_thread()
    barrier.wait(60)  # no process stops while another one measures
