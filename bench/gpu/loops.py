"""One run (K = 1) against two loops of equal shape: a plain loop over the same network, and a nanoGPT-style loop."""

import statistics
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.nanogpt import training_loop
from bench.gpu.networks import base_config, data_of, small_config, with_compile
from bench.gpu.records import Emit, Settings
from bench.gpu.timing import seconds_of, spread, take_turns, throughput
from model.config import TrainConfig
from model.data.batches import TrainingBatches
from model.data.prepared import PreparedData
from model.nn.gpt import Network
from model.nn.init import initial_weights
from model.section import updated
from model.train.trainer import Trainer

TABLE = "One run against plain loops"
OURS, PLAIN, NANO = "Trainer", "plain loop, same network", "nanoGPT-style loop"


def plain_loop(
    config: TrainConfig, prepared: PreparedData, device: torch.device, compiled: bool
) -> Callable[[int], Any]:
    """Return a function that trains for some updates: the Trainer's network and batches, torch's AdamW."""
    network = Network(config.model, prepared.vocab_size, device)
    initial = initial_weights(config.model, prepared.vocab_size, config.run.seed)
    weights = {name: weight[None].to(device).requires_grad_() for name, weight in initial.items()}
    order = TrainingBatches(prepared.splits["train"], config.data, config.model.context, config.run.seed)
    optimizer = torch.optim.AdamW(weights.values(), 3e-4, (0.9, 0.95), fused=True)
    B, done = config.run.batch_size, count()

    def loss_of(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(network(weights, x).float().flatten(0, 1), y.flatten(), ignore_index=-1)

    forward = torch.compile(loss_of) if compiled else loss_of

    def batch() -> list[Tensor]:
        arrays = map(torch.from_numpy, order.batch(next(done) * B, B))
        if device.type == "cuda":
            return [array[None].pin_memory().to(device, non_blocking=True) for array in arrays]
        return [array[None] for array in arrays]

    def run(updates: int) -> None:
        x, y = batch()
        for _ in range(updates):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
                loss = forward(weights, x, y)
            x, y = batch()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def sides(settings: Settings, size: str, compiled: bool) -> tuple[dict[str, Callable[[int], Any]], int]:
    """Return the three loops of one size, and the tokens of an update."""
    config = small_config(size, settings) if size.endswith(" M") else base_config(size, settings)
    config = updated(config, {"regularization.dropout": 0.0})
    prepared = data_of(config, None if size.endswith(" M") else size, settings.tiny)
    device = torch.device(settings.device)
    trainer = Trainer([with_compile(config, compiled)], prepared)
    loops: dict[str, Callable[[int], Any]] = {
        OURS: trainer._train,
        PLAIN: plain_loop(config, prepared, device, compiled),
        NANO: training_loop(config, prepared, device, compiled),
    }
    return loops, config.update_tokens()


def measure(settings: Settings, emit: Emit, size: str, compiled: bool) -> None:
    """Emit the speed of the three loops, which take turns in one process."""
    loops, tokens = sides(settings, size, compiled)
    first = {name: seconds_of(lambda run=run: run(1), settings.device) for name, run in loops.items()}
    for run in loops.values():
        run(3)
    rates = take_turns(loops, settings)
    for name, speeds in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(rates[OURS], speeds, strict=True)]
        ratio = {"Trainer / loop": round(statistics.median(ratios), 3), "from - to": spread(ratios)}
        columns = throughput(speeds, tokens) | {"first update s": round(first[name], 1)}
        emit(TABLE, size=size, compiled="yes" if compiled else "no", loop=name, **columns, **ratio)


def warm_up(settings: Settings, emit: Emit, size: str) -> None:
    """Compile the three loops, so that a later part finds them in the cache on disk."""
    for name, run in sides(settings, size, True)[0].items():
        seconds = seconds_of(lambda run=run: run(1), settings.device)
        emit("Compilation", network=f"{size}, {name}", **{"first update s": round(seconds, 1)})
